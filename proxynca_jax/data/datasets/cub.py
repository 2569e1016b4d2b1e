"""CUB-200-2011: photographs of birds, 200 species."""

from pathlib import Path

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets.class_folders import read_class_folders
from proxynca_jax.data.datasets.published import Counts
from proxynca_jax.data.split import DataSet, divide_by_class, second_half

LAYOUT = "CUB-200-2011 is CaltechDATA's archive CUB_200_2011.tgz, extracted: images/<class folder>/*.jpg."
COUNTS = Counts(train=5_864, queries=5_924)


def read(root: Path, _: DataConfig) -> DataSet:
    """Trains on the first half of the classes and evaluates on the second.

    Args:
        root: The directory that contains `images/`.

    Raises:
        UserError: If it contains something else.
    """
    whole = read_class_folders(root / "images", LAYOUT)
    return divide_by_class(whole, second_half(len(whole.class_names)))

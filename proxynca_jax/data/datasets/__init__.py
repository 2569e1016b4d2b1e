"""The data sets: one row each, and one file each that reads it.

To add one, write a file whose `read` returns a `DataSet` and add a row to `DATASETS`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import cars, cub, folder, glyphs, sop, table, tfds
from proxynca_jax.data.datasets.published import Counts, warn_if_counts_differ
from proxynca_jax.data.split import DataSet
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine import arguments


@dataclasses.dataclass(frozen=True)
class DataSetSource:
    """Where a data set comes from. Its name is the key in `DATASETS`, and the value of `data.dataset`."""

    read: Callable[[Path, DataConfig], DataSet]  # takes the data set's directory, or its file
    layout: str = ""  # what that directory must contain, for errors; empty: the data set needs no directory
    is_file: bool = False  # data.root is a file, not a directory
    archive_folder: str = ""  # the folder that the published archive extracts to; data.root may be its parent
    published: Counts | None = None  # another number of images is warned of


DATASETS: dict[str, DataSetSource] = {
    "cub": DataSetSource(cub.read, cub.LAYOUT, archive_folder="CUB_200_2011", published=cub.COUNTS),
    "cars": DataSetSource(cars.read, cars.LAYOUT, archive_folder="stanford_cars", published=cars.COUNTS),
    "sop": DataSetSource(sop.read, sop.LAYOUT, archive_folder="Stanford_Online_Products", published=sop.COUNTS),
    "folder": DataSetSource(folder.read, folder.LAYOUT),
    "table": DataSetSource(table.read, table.LAYOUT, is_file=True),
    "tfds": DataSetSource(tfds.read, tfds.LAYOUT),
    "glyphs": DataSetSource(glyphs.read),
}


def load_dataset(config: DataConfig) -> DataSet:
    """Finds the images of a data set and divides them into training and evaluation.

    Args:
        config: Which data set, where it is and, for some, which classes are for evaluation.

    Returns:
        The training images and the evaluation images. They share no class. Images are read later, when indexed.

    Raises:
        UserError: If the name is unknown, or the directory does not contain what the data set needs.

    Warns:
        UserWarning: If the number of images differs from the published one.
    """
    name = config.dataset
    if name not in DATASETS:
        raise UserError(f"data.dataset is {name!r}: {nearest(name, DATASETS)}")
    source = DATASETS[name]
    dataset = source.read(_find_root(config, source), config)
    if source.published:
        warn_if_counts_differ(name, dataset, source.published)
    return dataset


def _find_root(config: DataConfig, source: DataSetSource) -> Path:
    """Returns the data set's directory or file. If `data.root` contains the archive's folder, it is that folder."""
    root = arguments.path(config.root)
    if not source.layout:
        return root
    kind = "file" if source.is_file else "directory"
    if not config.root:
        raise UserError(
            f"data.root is empty; the data set {config.dataset!r} needs its {kind}: "
            f"--config.data.root=/path/to/{config.dataset}{'.csv' if source.is_file else ''}. {source.layout}"
        )
    if not (root.is_file() if source.is_file else root.is_dir()):
        raise UserError(f"data.root is {str(root)!r}, which is not a {kind}. {source.layout}")
    extracted = root / source.archive_folder
    return extracted if extracted.is_dir() else root

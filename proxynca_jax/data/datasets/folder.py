"""Your own images: one folder per class."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets.class_folders import read_class_folders
from proxynca_jax.data.image_files import IMAGE_SUFFIXES
from proxynca_jax.data.split import DataSet, divide_by_class, random_classes
from proxynca_jax.errors import UserError, nearest

LAYOUT = f"A folder data set is one folder per class, with images ({' '.join(sorted(IMAGE_SUFFIXES))}) in each."


def read(root: Path, config: DataConfig) -> DataSet:
    """Evaluates on the classes that `eval_classes_file` lists or, without it, on a random fraction of them.

    Args:
        root: The directory that contains the class folders.
        config: How to choose the evaluation classes.

    Raises:
        UserError: If there are no class folders, or the list cannot be read or names a class that has no folder.
    """
    whole = read_class_folders(root, LAYOUT)
    if config.eval_classes_file:
        evaluation = _listed_classes(Path(config.eval_classes_file).expanduser(), whole.class_names, root)
    else:
        evaluation = random_classes(len(whole.class_names), config.eval_fraction, config.split_seed)
    return divide_by_class(whole, evaluation)


def _listed_classes(path: Path, class_names: tuple[str, ...], root: Path) -> Bool[np.ndarray, " C"]:
    """Marks the classes that a file lists, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.eval_classes_file cannot be read: {error}. It is text, one class a line.") from error
    chosen = {line.strip() for line in lines} - {""}
    unknown = sorted(chosen - set(class_names))
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} classes that have no folder in {root}, the first is {unknown[0]!r}: "
            f"{nearest(unknown[0], class_names)}"
        )
    return np.array([name in chosen for name in class_names])

"""Your own images: one folder per class."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets.class_folders import read_class_folders
from proxynca_jax.data.image_files import IMAGE_SUFFIXES
from proxynca_jax.data.split import DataSet, divide_by_class, random_classes
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine import arguments

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
    return divide_by_class(whole, evaluation_classes(whole.class_names, config))


def evaluation_classes(class_names: tuple[str, ...], config: DataConfig) -> Bool[np.ndarray, " C"]:
    """Marks the classes that `eval_classes_file` lists or, without it, a random fraction of them.

    Raises:
        UserError: If the list cannot be read or names another class.
    """
    if config.eval_classes_file:
        return _listed_classes(arguments.path(config.eval_classes_file), class_names, config.root)
    return random_classes(len(class_names), config.eval_fraction, config.split_seed)


def _listed_classes(path: Path, class_names: tuple[str, ...], root: str) -> Bool[np.ndarray, " C"]:
    """Marks the classes that a file lists, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.eval_classes_file cannot be read: {error}. It is text, one class a line.") from error
    chosen = {line.strip() for line in lines} - {""}
    unknown = sorted(chosen - set(class_names))
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} classes that are not in {root}, the first is {unknown[0]!r}: "
            f"{nearest(unknown[0], class_names)}"
        )
    return np.array([name in chosen for name in class_names])

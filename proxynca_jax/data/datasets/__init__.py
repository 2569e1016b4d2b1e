"""A data set's directory becomes two class-disjoint splits: the training classes and classes that training never sees.

Images are listed here and read one by one when they are asked for; `transforms` decodes them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from proxynca_jax.config import DATASETS, DataConfig
from proxynca_jax.data.datasets import annotations, glyphs, tfds_images
from proxynca_jax.data.split import Split, divide, random_classes, second_half, warn_about_counts
from proxynca_jax.errors import UserError, nearest

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})

LAYOUTS = {
    "cub": "CUB-200-2011 is the archive CUB_200_2011.tgz of CaltechDATA, extracted: images/<class folder>/*.jpg.",
    "cars": annotations.CARS_LAYOUT,
    "sop": annotations.SOP_LAYOUT,
    "folder": f"A folder data set is one folder per class, with images ({' '.join(sorted(IMAGE_SUFFIXES))}) in each.",
    "tfds": tfds_images.LAYOUT,
}
ARCHIVE_FOLDERS = {"cub": "CUB_200_2011", "cars": "stanford_cars", "sop": "Stanford_Online_Products"}


class FileImages(Sequence[bytes]):
    """The contents of image files, each read when it is indexed."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    # Here and below: no slices, because images are always asked for one at a time.
    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        path = self.paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            message = f"cannot read the image {path}: {error.strerror}. It has to stay where it was when the run began."
            raise UserError(message) from error


def load_splits(config: DataConfig) -> tuple[Split, Split]:
    """Finds the images of a data set and divides them by class.

    Args:
        config: Which data set and where it lies; for a folder and glyphs, also how their classes are divided.

    Returns:
        The training split and the evaluation split. They share no class.

    Raises:
        UserError: If the name is unknown or the directory does not hold what the data set needs.

    Warns:
        UserWarning: If the number of images differs from the published one.
    """
    dataset = config.dataset
    if dataset not in DATASETS:
        raise UserError(f"data.dataset is {dataset!r}, which is no known data set: {nearest(dataset, DATASETS)}")
    if dataset == "glyphs":
        whole = glyphs.draw_all()
        return divide(whole, random_classes(len(whole.class_names), config.eval_fraction, config.split_seed))
    root = _find_root(config)
    if dataset == "tfds":
        return tfds_images.load_splits(root)
    if dataset == "folder":
        whole = _read_class_folders(root, LAYOUTS["folder"])
        return divide(whole, _held_out(config, whole.class_names))
    if dataset == "cub":
        whole = _read_class_folders(root / "images", LAYOUTS["cub"])
        evaluation = second_half(len(whole.class_names))
    elif dataset == "cars":
        whole = _file_split(*annotations.read_cars(root))
        evaluation = second_half(len(whole.class_names))
    else:
        paths, classes, class_names, evaluation = annotations.read_sop(root)
        whole = _file_split(paths, classes, class_names)
    splits = divide(whole, evaluation)
    warn_about_counts(dataset, splits)
    return splits


def _find_root(config: DataConfig) -> Path:
    layout = LAYOUTS[config.dataset]
    if not config.root:
        raise UserError(f"data.root is empty; the data set {config.dataset!r} needs its directory. {layout}")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root is {str(root)!r}, which is not a directory. {layout}")
    extracted = root / ARCHIVE_FOLDERS.get(config.dataset, "")
    return extracted if extracted.is_dir() else root


def _read_class_folders(root: Path, layout: str) -> Split:
    """Reads `<class folder>/<image>`, sorted, without names that start with a dot, such as macOS's `._` files."""
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    if not folders:
        raise UserError(f"{root} holds no class folders. {layout}")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES)
        paths += images
        labels += [label] * len(images)
    return _file_split(paths, labels, [folder.name for folder in folders])


def _file_split(paths: Sequence[Path], labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> Split:
    return Split(
        images=FileImages(paths),
        names=[str(path) for path in paths],
        labels=np.asarray(labels, np.int32),
        class_names=tuple(class_names),
    )


def _held_out(config: DataConfig, class_names: tuple[str, ...]) -> Bool[np.ndarray, " C"]:
    """Marks a folder data set's evaluation classes, listed in a file or drawn by seed."""
    if not config.eval_classes_file:
        return random_classes(len(class_names), config.eval_fraction, config.split_seed)
    path = Path(config.eval_classes_file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.eval_classes_file cannot be read: {error}. It is text, one class a line.") from error
    chosen = {line.strip() for line in lines} - {""}
    unknown = sorted(chosen - set(class_names))
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} classes that have no folder in {config.root}, the first is {unknown[0]!r}: "
            f"{nearest(unknown[0], class_names)}"
        )
    return np.array([name in chosen for name in class_names])

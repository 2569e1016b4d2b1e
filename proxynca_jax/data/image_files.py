"""Image files as a split: their contents are read when they are indexed."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from proxynca_jax.data.split import Split
from proxynca_jax.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})


def list_images(folder: Path) -> list[Path]:
    """Lists the image files in a folder and in all folders below it, sorted.

    Names that start with a dot are skipped: macOS writes `._` files next to images. So is what is no regular file, such
    as a pipe or a link to nothing.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    return sorted(found)


class FileImages(Sequence[bytes]):
    """The contents of image files. A file is read when it is indexed."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    # Images are always read one at a time, so there are no slices.
    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return read_image(self.paths[index])


def read_image(path: Path) -> bytes:
    """Reads an image file's content.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the image {path}: {error.strerror}. Images must stay in place until the run ends."
        ) from error


def file_split(
    paths: Sequence[Path],
    labels: Sequence[int] | Int[np.ndarray, " N"],
    class_names: Sequence[str],
    boxes: Sequence[tuple[int, int, int, int]] | None = None,
) -> Split:
    """Makes a split of image files.

    Args:
        paths: N image files.
        labels: The class of each, from 0.
        class_names: C names.
        boxes: N, or None: as in `Split`.
    """
    return Split(
        images=FileImages(paths),
        names=[str(path) for path in paths],
        labels=np.asarray(labels, np.int32),
        class_names=tuple(class_names),
        boxes=None if boxes is None else np.asarray(boxes, np.int32),
    )


def require_files(paths: Sequence[Path], layout: str) -> None:
    """Checks that annotated images are on disk.

    Args:
        paths: The images.
        layout: What the data set's directory must contain, for the error.

    Raises:
        UserError: If an image is missing.
    """
    # Listing each folder once is cheaper than one system call an image.
    listing = {folder: {file.name for file in folder.glob("*")} for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in listing[path.parent]]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} annotated images are missing, the first is {missing[0]}. Extract the "
            f"images again, next to the annotations. {layout}"
        )

"""Image files as a split: their contents are read when they are indexed."""

import hashlib
import os
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from jaxtyping import Int

from proxynca_jax.data.split import Split
from proxynca_jax.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})

DOWNLOAD_AGAIN = "Fetch the annotations again from a source that you trust."


def list_images(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Lists the image files in a folder and in all folders below it, sorted.

    Names that start with a dot are skipped: macOS writes `._` files next to images. So is what is no regular file, such
    as a pipe or a link to nothing.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    return sorted(found)


def in_share(path: Path | str, share: tuple[int, int]) -> bool:
    """Whether a file belongs to the share of a process. That depends on its path alone.

    Args:
        path: Absolute.
        share: The number of the process, from 0, and the number of processes.
    """
    number, count = share
    return zlib.crc32(os.fsencode(path)) % count == number


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


def content_digest(content: bytes) -> str:
    """Computes the digest of a file's content, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


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
        files=True,
    )


def shared_folder(names: Sequence[str]) -> str:
    """Returns the folder that contains all these files, in it or in folders below it."""
    return os.path.dirname(os.path.commonprefix([min(names), max(names)]))  # noqa: PTH120, RUF071 - dirname ends it


def annotated_images(folder: Path, names: Sequence[object], annotations: Path) -> list[Path]:
    """Returns the paths of images that an annotation file names.

    Args:
        folder: The folder that the names start from.
        names: As the file has them.
        annotations: The file, for errors.

    Raises:
        UserError: If a name is no text or leads out of the folder, or if two are equal.
    """
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name:
            raise UserError(f"{annotations}, image {number}: its name is {name!r}; it must be text. {DOWNLOAD_AGAIN}")
        # Backslashes and drives lead out on Windows only, but no data set has them.
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise UserError(
                f"{annotations}, image {number}: {name!r} leads out of {folder}. Names must be relative and without "
                f"'..'. {DOWNLOAD_AGAIN}"
            )
        if name in seen:
            raise UserError(f"{annotations}, image {number}: {name!r} is there twice. {DOWNLOAD_AGAIN}")
        seen.add(name)
    return [folder / str(name) for name in names]


def require_files(paths: Sequence[Path], layout: str) -> None:
    """Checks that annotated images are on disk, as regular files.

    Args:
        paths: The images.
        layout: What the data set's directory must contain, for the error.

    Raises:
        UserError: If an image is missing.
    """
    # Listing each folder once is cheaper than one system call an image.
    listing = {folder: _regular_files(folder) for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in listing[path.parent]]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} annotated images are missing, the first is {missing[0]}. Extract the "
            f"images again, next to the annotations. {layout}"
        )


def _regular_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()

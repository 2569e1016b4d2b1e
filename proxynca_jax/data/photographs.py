"""Photographs of any folder: upright, as their EXIF orientation says. Those that cannot be read are left out."""

import importlib
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from proxynca_jax.data.image_files import IMAGE_SUFFIXES, in_share, list_images, read_image
from proxynca_jax.data.pipeline import NO_LABEL
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import Pixels, decode_upright
from proxynca_jax.errors import UserError

HEIC_SUFFIXES = frozenset({".heic", ".heif"})
SUFFIXES = IMAGE_SUFFIXES | HEIC_SUFFIXES
IN_PLACE = np.zeros((1, 1, 3), np.uint8)  # of a photograph that cannot be read


class Photographs(Sequence[Pixels]):
    """Decodes a photograph when it is indexed. `faults` says why some of those indexed so far cannot be read."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.faults: dict[int, str] = {}
        self.reads_heic = any(path.suffix.lower() in HEIC_SUFFIXES for path in paths) and _read_heic()

    def __len__(self) -> int:
        return len(self.paths)

    # Images are always read one at a time, so there are no slices.
    def __getitem__(self, index: int) -> Pixels:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return self._decode(self.paths[index])
        except UserError as error:
            self.faults[index] = str(error)
            return IN_PLACE

    def _decode(self, path: Path) -> Pixels:
        if path.suffix.lower() in HEIC_SUFFIXES and not self.reads_heic:
            raise UserError(f"{path}: reading HEIC needs the package pillow-heif: pip install 'proxynca_jax[heic]'.")
        return decode_upright(self.read(path), str(path))

    def read(self, path: Path) -> bytes:
        """Reads a photograph's file.

        Raises:
            UserError: If it cannot be read.
        """
        return read_image(path)


def _read_heic() -> bool:
    """Adds HEIC to the formats that Pillow reads. Returns False if the package for it is not installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ModuleNotFoundError:
        return False
    return True


def find_photographs(folder: Path, share: tuple[int, int] = (0, 1)) -> tuple[Split, Photographs]:
    """Lists the photographs in a folder and in all folders below it. Names that start with a dot are skipped.

    Args:
        folder: To search.
        share: The number of this process, from 0, and the number of processes that share the photographs.

    Returns:
        A split without classes, and its images.

    Raises:
        UserError: If it is not a folder, or contains no image files.
    """
    if not folder.is_dir():
        raise UserError(f"--images is {str(folder)!r}, which is not a folder.")
    if not (paths := list_images(folder, SUFFIXES)):
        raise UserError(f"{folder} holds no images, that is files ending in {' '.join(sorted(SUFFIXES))}.")
    photographs = Photographs([path for path in paths if in_share(path.absolute(), share)])
    return photograph_split(photographs), photographs


def photograph_split(photographs: Photographs) -> Split:
    """Makes a split without classes."""
    names = [str(path) for path in photographs.paths]
    return Split(photographs, names, np.full(len(names), NO_LABEL, np.int32), class_names=())


def readable(
    batches: Generator[Float[np.ndarray, "batch dim"], None, None],
    photographs: Photographs,
    names: list[str],
    *,
    strict: bool,
) -> Generator[Float[np.ndarray, "rows dim"], None, None]:
    """Drops the rows of photographs that cannot be read.

    Args:
        batches: One row per photograph, in order.
        photographs: All of them.
        names: Receives the paths of the rows of each batch, before the batch is yielded.
        strict: Drop none.

    Raises:
        UserError: At the end, if there is no row; if `strict`, after the batch of the first that cannot be read.
    """
    start = 0
    for batch in batches:
        if strict and photographs.faults:
            raise UserError(photographs.faults[min(photographs.faults)])
        rows = [row for row in range(len(batch)) if start + row not in photographs.faults]
        names += [str(photographs.paths[start + row]) for row in rows]
        start += len(batch)
        yield batch[rows]
    if not names:
        raise UserError(f"none of the {start:,} images can be read. The first: {photographs.faults[0]}")

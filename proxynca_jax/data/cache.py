"""Decoded images in a file, written once: whole ones for training, crops for evaluation.

The pixels are those of decoding, so that training and scores are the same to the last bit with and without it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from proxynca_jax.config import DataConfig
from proxynca_jax.data.pipeline import evaluation_crops, whole_images
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import Pixels
from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replacing
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.progress import Progress

FORMAT = 1  # of a record: height and width as two little-endian uint32, then RGB rows
# One image a group, so that one can be read alone; photographs as pixels hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


class _CachedImages(Sequence[Pixels]):
    """The images of a cache file, each read when it is indexed."""

    def __init__(self, path: pathlib.Path, images: int):
        self.path = path
        with _usable(path):
            self.records = ArrayRecordDataSource(str(path))
            if len(self) != images:
                raise RuntimeError(f"it holds {len(self)} images, required are {images}")

    def __len__(self) -> int:
        return len(self.records)

    # No slices, because images are always asked for one at a time.
    def __getitem__(self, index: int) -> Pixels:  # pyright: ignore[reportIncompatibleMethodOverride]
        with _usable(self.path):
            record = self.records[index]
        height, width = np.frombuffer(record, "<u4", 2).tolist()
        return np.frombuffer(record, np.uint8, offset=8).reshape(height, width, 3)


@contextlib.contextmanager
def _usable(path: pathlib.Path) -> Iterator[None]:
    """What ArrayRecord has to say of a file that is damaged, or of a full disk, is the user's error."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"the cache file {path} cannot be used: {error}. Delete it, and it is made again.") from error


def cached(split: Split, config: DataConfig, *, max_side: int, check: Callable[[], None] = never) -> Split:
    """The same split with its images in the folder `config.cache`, where they are written if they are not there yet.

    A file's name depends on all that its pixels depend on but the content of the images: their names and order, and
    `max_side` or the two sizes of crops. So a folder serves any number of data sets and settings. Images that changed
    under an old name are not noticed.

    Args:
        split: the images.
        config: where to keep them, and with how many threads to decode.
        max_side: pixels; larger images are shrunk to it first; 0 shrinks none.
        check: called after each image; raises to stop, and then nothing is kept.

    Raises:
        UserError: if an image cannot be decoded, or the file cannot be written or read.
    """
    make = functools.partial(whole_images, split, config, max_side=max_side)
    return dataclasses.replace(split, images=_cached_images(make, str(max_side), split, config, check))


def cached_crops(split: Split, config: DataConfig, check: Callable[[], None] = never) -> Split:
    """The same split with the crops that an evaluation embeds as its images, cached as `cached` does.

    Args:
        split: the images.
        config: where to keep them, the two sizes of `transforms.eval_transform`, and with how many threads to decode.
        check: as there.

    Raises:
        UserError: as there.
    """
    make = functools.partial(evaluation_crops, split, config)
    sizes = f"{config.resize_size} {config.image_size}"
    return dataclasses.replace(split, images=_cached_images(make, sizes, split, config, check), cropped=True)


def _cached_images(
    make: Callable[[], Generator[Pixels, None, None]],
    made_as: str,
    split: Split,
    config: DataConfig,
    check: Callable[[], None],
) -> _CachedImages:
    """What `make` yields, from the file for the split's names and `made_as`, which is written if it is missing."""
    folder = pathlib.Path(config.cache).expanduser()
    identity = "\0".join([str(FORMAT), made_as, *split.names])
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.array_record"
    images = len(split.labels)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache is {config.cache!r}, and that folder cannot be made: {error}.") from error
        _write(path, make, images, check)
    return _CachedImages(path, images)


def _write(
    path: pathlib.Path, make: Callable[[], Generator[Pixels, None, None]], images: int, check: Callable[[], None]
) -> None:
    with replacing(path) as partial, _usable(path), Progress(f"decoding into {path}", images=images) as progress:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        with contextlib.closing(make()) as decoded:
            for image in decoded:
                writer.write(np.array(image.shape[:2], "<u4").tobytes() + image.tobytes())
                progress.advance(1)
                check()
        writer.close()

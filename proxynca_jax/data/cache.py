"""Caches decoded images in ArrayRecord files: whole images for training, crops for evaluation.

The cached pixels equal the decoded ones, so training and scores are the same to the last bit with and without a cache.
A file's name is a digest of the images' contents, so other images never have the same file.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from proxynca_jax.config import DataConfig
from proxynca_jax.data.array_record_package import require_array_record
from proxynca_jax.data.inspection import digests
from proxynca_jax.data.pipeline import evaluation_crops, whole_images
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import Pixels
from proxynca_jax.errors import UserError
from proxynca_jax.machine import arguments
from proxynca_jax.machine.atomic_file import GO_ON, replacing
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.progress import Progress

# Version of the records: height and width as two little-endian uint32, then RGB rows. The last one is the identity.
FORMAT = 2
# Groups of one image can be read one by one. The pixels of photographs hardly compress.
WRITER_OPTIONS = "group_size:1,uncompressed"


class _CachedImages(Sequence[Pixels]):
    """The images of a cache file. An image is read when it is indexed."""

    def __init__(self, path: pathlib.Path, images: int, identity: bytes):
        from array_record.python.array_record_data_source import ArrayRecordDataSource  # not on Windows

        self.path = path
        with _usable(path):
            self.records = ArrayRecordDataSource(str(path))
            if len(self) != images:
                raise RuntimeError(f"it contains {len(self)} images, required are {images}")
            if self.records[images] != identity:
                raise RuntimeError("it was made from other images")

    def __len__(self) -> int:
        return len(self.records) - 1

    # Images are always read one at a time, so there are no slices.
    def __getitem__(self, index: int) -> Pixels:  # pyright: ignore[reportIncompatibleMethodOverride]
        with _usable(self.path):
            record = self.records[index]
        height, width = np.frombuffer(record, "<u4", 2).tolist()
        return np.frombuffer(record, np.uint8, offset=8).reshape(height, width, 3)


@contextlib.contextmanager
def _usable(path: pathlib.Path, advice: str = "Delete it; the next run writes it again.") -> Iterator[None]:
    """Converts ArrayRecord's errors, for damaged files and full disks, into UserErrors."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"the cache file {path} cannot be used: {error}. {advice}") from error


def require_cache(config: DataConfig) -> None:
    """Checks that this machine can read and write the files of `config.cache`, if it is set.

    Raises:
        UserError: If it cannot.
    """
    if config.cache:
        require_array_record(f"data.cache is {config.cache!r}")


def cached(split: Split, config: DataConfig, *, max_side: int, check: Callable[[], None] = never) -> Split:
    """Replaces the images of a split by those of a file in `config.cache`. Writes the file if it is missing.

    The file's name depends on the contents, boxes and order of the images, and on `max_side` or the two sizes of crops.
    So one folder serves any number of data sets and settings. When images change, another file is written; when they
    move, the same file is used.

    Args:
        split: The images.
        config: The folder, and the number of decoding threads.
        max_side: Pixels; images whose longer side is above it are shrunk to it; 0 shrinks none.
        check: Called after each image; raises to stop, and then no file remains.

    Raises:
        UserError: If array-record is missing, an image cannot be decoded, or the file cannot be written or read.
    """
    make = functools.partial(whole_images, split, config, max_side=max_side)
    return dataclasses.replace(split, images=_cached_images(make, str(max_side), split, config, check), boxes=None)


def cached_crops(split: Split, config: DataConfig, check: Callable[[], None] = never) -> Split:
    """Replaces the images of a split by their evaluation crops, cached as `cached` does.

    Args:
        split: The images.
        config: The folder, what `transforms.eval_transform` reads, and the number of decoding threads.
        check: As for `cached`.

    Raises:
        UserError: As for `cached`.
    """
    make = functools.partial(evaluation_crops, split, config)
    sizes = f"{config.resize_size} {config.image_size}" + " squashed" * config.squash
    images = _cached_images(make, sizes, split, config, check)
    return dataclasses.replace(split, images=images, boxes=None, cropped=True)


def _cached_images(
    make: Callable[[], Generator[Pixels, None, None]],
    made_as: str,
    split: Split,
    config: DataConfig,
    check: Callable[[], None],
) -> _CachedImages:
    """Opens the cache file of a split. Writes it first if it is missing.

    Args:
        make: Starts decoding the images.
        made_as: What the pixels depend on, apart from the images: part of the file's name.
        split: The images.
        config: The folder.
        check: As for `cached`.
    """
    require_cache(config)
    folder = arguments.path(config.cache)
    content = split.digests if split.digests is not None else digests(split, config)
    identity = hashlib.sha256("\0".join([str(FORMAT), made_as, *content]).encode())
    path = folder / f"{identity.hexdigest()[:16]}.array_record"
    images = len(split.labels)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache is {config.cache!r}, and that folder cannot be made: {error}.") from error
        _write(path, make, images, identity.digest(), check)
    return _CachedImages(path, images, identity.digest())


def _write(
    path: pathlib.Path,
    make: Callable[[], Generator[Pixels, None, None]],
    images: int,
    identity: bytes,
    check: Callable[[], None],
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter  # not on Windows

    with replacing(path) as partial, _usable(path, GO_ON), Progress(f"decoding into {path}", images=images) as progress:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        with contextlib.closing(make()) as decoded:
            for image in decoded:
                writer.write(np.array(image.shape[:2], "<u4").tobytes() + image.tobytes())
                progress.advance(1)
                check()
        writer.write(identity)
        writer.close()

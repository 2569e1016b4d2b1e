"""Reads every image file once, before a run begins: finds those that are damaged, and computes digests of all.

The digests of good files are kept in the user's cache folder by path, size and times. While these stay the same, a file
is not read again.
"""

import dataclasses
import hashlib
import itertools
import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from proxynca_jax.config import SKIP, DataConfig
from proxynca_jax.data.image_files import read_image, shared_folder
from proxynca_jax.data.pipeline import decoding_threads
from proxynca_jax.data.split import DataSet, Evaluation, Split, take
from proxynca_jax.data.transforms import decode
from proxynca_jax.errors import UserError
from proxynca_jax.machine import processes
from proxynca_jax.machine.atomic_file import replacing
from proxynca_jax.machine.cache_folder import cache_folder
from proxynca_jax.machine.interrupt import never

# What this version decodes, another one may not: each remembers files of its own.
VERSION = f"1 {PIL.__version__}"
IMAGES_PER_TASK = 64
FAULTS_SHOWN = 5
# A file that is written again within one tick of its file system's clock (2 s on FAT) keeps its times.
SETTLED_SECONDS = 2.0
PUBLISHED_SPLITS = ("cub", "cars", "sop", "tfds")  # data sets whose splits are not the user's to change
Stamp = tuple[int, int, int]  # size, time of the last change of the content and of anything, in ns


class Seen(NamedTuple):
    """What reading an image has shown."""

    digest: str
    fault: str = ""  # why it cannot be used; empty: it can
    path: str = ""  # of its file, absolute
    stamp: Stamp | None = None  # of the file; None: do not remember it


def inspect_dataset(dataset: DataSet, config: DataConfig) -> tuple[DataSet, dict[str, str]]:
    """Inspects all images of a data set as `inspect_splits` does, and checks that no image is on both of its sides.

    With several processes, all must call this. The first reads the files, and the others find the digests if they
    share its cache folder.

    Returns:
        The data set, and the fault of each image that was left out, by name.

    Raises:
        UserError: As for `inspect_splits`, or if an image is to be trained on and evaluated on.
    """
    with processes.first_before_others():
        sides, faults = inspect_splits(dataset.sides(), config)
    train, *evaluation = sides.values()
    require_apart(train, evaluation, published=config.dataset in PUBLISHED_SPLITS)
    return DataSet(train, Evaluation(*evaluation)), faults


def inspect_splits(
    sides: Mapping[str, Split], config: DataConfig, check: Callable[[], None] = never
) -> tuple[dict[str, Split], dict[str, str]]:
    """Reads and decodes every image file, and computes its digest.

    Images that are no files are not decoded: drawn ones are whole, and ArrayRecord files have checksums.

    Args:
        sides: Splits by name.
        config: What to do about damaged files, and the number of threads.
        check: Called often; raises to stop.

    Returns:
        The splits with `digests`, and the fault of each image that was left out, by name.

    Raises:
        UserError: If a file cannot be read or decoded and `data.on_bad_image` is not SKIP, or if leaving such files
            out leaves a class without images.
    """
    seen = _see(list(sides.values()), config, check)
    faults = {
        split.names[row]: seen[number][row].fault
        for number, split in enumerate(sides.values())
        for row in range(len(split.names))
        if seen[number][row].fault
    }
    if faults and config.on_bad_image != SKIP:
        images = sum(len(split.names) for split in sides.values())
        raise UserError(
            "\n  ".join([f"{len(faults):,} of {images:,} images cannot be used:", *_first(faults.values())])
            + "\nRepair or remove them, or leave them out: --config.data.on_bad_image=skip."
        )
    kept = {side: _good(split, found) for (side, split), found in zip(sides.items(), seen, strict=True)}
    return kept, faults


def digests(split: Split, config: DataConfig) -> list[str]:
    """Computes the digest of each image and its box. Files that cannot be read have the digest of their fault."""
    (found,) = _see([split], config)
    return _with_boxes(split, [image.digest or _digest(image.fault.encode()) for image in found])


def require_apart(train: Split, evaluation: Iterable[Split], *, published: bool) -> None:
    """Checks that no image is both trained on and evaluated on.

    Args:
        train: The training images, with digests.
        evaluation: Queries and gallery, with digests.
        published: Whether the split is a published one. Equal images in two files are then only warned of.

    Raises:
        UserError: If an image is on both sides. The message has both names.

    Warns:
        UserWarning: As `published` says.
    """
    trained = dict(zip(train.digests or (), train.names, strict=True))
    pairs = [
        (trained[digest], name)
        for split in evaluation
        for digest, name in zip(split.digests or (), split.names, strict=True)
        if digest in trained
    ]
    if not pairs:
        return
    found = f"{len(pairs):,} images are for training and for evaluation:"
    lines = _first(f"{ours} is the same as {theirs}" for ours, theirs in pairs)
    if published and not any(_is_same_file(*pair) for pair in pairs):
        warnings.warn(f"{found} {'; '.join(lines)}. The split is the published one.", stacklevel=2)
        return
    raise UserError("\n  ".join([found, *lines]) + "\nRemove one of each two: scores must be of images not trained on.")


def _is_same_file(ours: str, theirs: str) -> bool:
    return os.path.realpath(ours) == os.path.realpath(theirs)


def _first(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are."""
    lines = list(lines)
    more = [f"and {len(lines) - FAULTS_SHOWN:,} more"] if len(lines) > FAULTS_SHOWN else []
    return [*lines[:FAULTS_SHOWN], *more]


def _good(split: Split, found: list[Seen]) -> Split:
    """Leaves out the images that have a fault."""
    split = dataclasses.replace(split, digests=_with_boxes(split, [image.digest for image in found]))
    good = np.array([not image.fault for image in found], bool)
    if good.all():
        return split
    kept = take(split, good)
    lost = np.setdiff1d(split.labels, kept.labels)
    if len(lost):
        name = split.class_names[lost[0]]
        raise UserError(
            f"data.on_bad_image is 'skip', and no image of {len(lost)} classes can be read, the first is {name!r}. "
            "Repair the images or remove the classes."
        )
    return kept


def _see(splits: list[Split], config: DataConfig, check: Callable[[], None] = never) -> list[list[Seen]]:
    """Looks at each image of each split. What was read until an error or Ctrl-C is remembered, too."""
    memory = _memory(splits)
    known = {} if memory is None else _recall(memory)
    rows = iter([(split, row) for split in splits for row in range(len(split.names))])
    tasks = list(iter(lambda: list(itertools.islice(rows, IMAGES_PER_TASK)), []))
    images = sum(len(split.names) for split in splits)
    seen: list[Seen] = []
    pool = ThreadPoolExecutor(decoding_threads(config), "inspect")
    try:
        hidden = not sys.stderr.isatty()
        with tqdm(total=images, desc="reading images", unit="img", leave=False, disable=hidden) as bar:
            for part in pool.map(lambda task: [_look(split, row, known) for split, row in task], tasks):
                seen += part
                bar.update(len(part))
                check()
    finally:
        pool.shutdown(cancel_futures=True)
        if memory is not None:
            _remember(memory, known, seen)
    every = iter(seen)
    return [list(itertools.islice(every, len(split.names))) for split in splits]


def _look(split: Split, row: int, known: Mapping[str, tuple[Stamp, str]]) -> Seen:
    return _look_at_file(split.names[row], known) if split.files else Seen(_digest(_content(split.images[row])))


def _with_boxes(split: Split, found: list[str]) -> list[str]:
    """Makes digests of images and their boxes from digests of images."""
    if split.boxes is None:
        return found
    return [_digest(digest.encode() + box.tobytes()) for digest, box in zip(found, split.boxes, strict=True)]


def _content(image: bytes | np.ndarray) -> bytes:
    return image if isinstance(image, bytes) else str(image.shape).encode() + image.tobytes()


def _look_at_file(name: str, known: Mapping[str, tuple[Stamp, str]]) -> Seen:
    try:
        about = os.stat(name)  # noqa: PTH116 - without a Path, 120,000 calls take half the time
    except OSError as error:
        return Seen("", f"{name}: it cannot be read: {error.strerror}")
    if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
        return Seen("", f"{name}: it is not a regular file")
    path, stamp = os.path.abspath(name), (about.st_size, about.st_mtime_ns, about.st_ctime_ns)  # noqa: PTH100
    before = known.get(path)
    if before and before[0] == stamp:
        return Seen(before[1])
    try:
        content = read_image(Path(name))
        decode(content, name)
    except UserError as error:
        return Seen("", str(error))
    settled = time.time_ns() - about.st_ctime_ns > SETTLED_SECONDS * 1e9
    return Seen(_digest(content), "", path, stamp if settled else None)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _memory(splits: list[Split]) -> Path | None:
    """The file that remembers these images, one for each folder that contains a data set. None: there is none."""
    names = [name for split in splits if split.files for name in split.names]
    folder = cache_folder()
    if folder is None or not names:
        return None
    identity = _digest(f"{VERSION} {Path(shared_folder(names)).absolute()}".encode())
    return folder / "images" / f"{identity}.parquet"


def _recall(memory: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        columns = pq.read_table(memory).to_pydict()
        stamps = zip(columns["size"], columns["modified_ns"], columns["changed_ns"], strict=True)
        return dict(zip(columns["path"], zip(stamps, columns["digest"], strict=True), strict=True))
    except (OSError, ValueError, KeyError, pa.ArrowException):  # it is not there, or damaged: read all images again
        return {}


def _remember(memory: Path, known: dict[str, tuple[Stamp, str]], seen: list[Seen]) -> None:
    new = {image.path: (image.stamp, image.digest) for image in seen if image.stamp}
    if not new:
        return
    rows = known | new
    stamps = np.array([stamp for stamp, _ in rows.values()], np.int64)
    columns = dict(zip(("size", "modified_ns", "changed_ns"), stamps.T, strict=True))
    table = pa.table({"path": list(rows), "digest": [digest for _, digest in rows.values()], **columns})
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as partial:
            pq.write_table(table, partial, compression="zstd")
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition(". ")[0]
        warnings.warn(f"the images will be read again next time: {reason}", stacklevel=2)

"""Brings an index up to date with a folder: embeds what is new or changed, and removes what is gone.

A file with the size and the time of its row is not read. A file whose content is in the index already, because it was
renamed, moved or copied, is read but not embedded. Rows are added a few hundred at a time, each time all or none, so a
stopped update goes on where it was.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from proxynca_jax.data.image_files import content_digest, in_share, list_images, read_image
from proxynca_jax.data.photographs import SUFFIXES, Photographs, photograph_split
from proxynca_jax.embedder import Embedder
from proxynca_jax.errors import UserError
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.progress import Progress
from proxynca_jax.machine.signals import Interrupted
from proxynca_jax.vector_index.engine import Engine, below, columns, schema, text

ROWS_PER_ADD = 1024
SECONDS_PER_ADD = 20.0  # what a killed process loses at most
READERS = 8  # threads that read files for their digests; they wait for the disk


class File(NamedTuple):
    """A file as it was listed."""

    path: str
    label: str
    size: int  # bytes
    modified_ns: int


class Row(NamedTuple):
    """A row to add."""

    file: File
    digest: str
    vector: Sequence[float] | Float[np.ndarray, " dim"]


class Changes(NamedTuple):
    """What an update did, in numbers of files."""

    embedded: int
    recognised: int  # their content was in the index already: they were renamed, moved, copied or only touched
    unchanged: int
    removed: int
    left_out: dict[str, str]  # by path: why a file cannot be used


class _DigestedPhotographs(Photographs):
    """Photographs whose contents are digested as they are read."""

    def __init__(self, paths: Sequence[Path]):
        super().__init__(paths)
        self.digests: dict[Path, str] = {}

    def read(self, path: Path) -> bytes:
        content = super().read(path)
        self.digests[path] = content_digest(content)
        return content


class Listed(NamedTuple):
    """The photographs of a folder."""

    folder: str  # absolute
    files: list[File]
    faults: dict[str, str]  # by path: why a file cannot be used
    takes: Callable[[str], bool] = lambda _: True  # whether the file of a path belongs to this process

    def share(self, number: int, count: int) -> "Listed":
        """The photographs of one of many processes. Which they are depends on their paths alone."""

        def takes(path: str) -> bool:
            return in_share(path, (number, count))

        files = [file for file in self.files if takes(file.path)]
        return Listed(self.folder, files, {path: fault for path, fault in self.faults.items() if takes(path)}, takes)


def list_files(folder: Path) -> Listed:
    """Lists the photographs in a folder and in all folders below it. The first folder on the way is the label.

    Raises:
        UserError: if the folder is none or has no images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name a folder of photographs.")
    files, faults = list[File](), dict[str, str]()
    for path in list_images(folder, SUFFIXES):
        try:
            label, *rest = path.relative_to(folder).parts
            files.append(_file(path, label if rest else ""))
        except UnicodeEncodeError:
            faults[str(path.absolute())] = f"{str(path)!r}: its name is not UTF-8. Rename it."
        except OSError as error:
            faults[str(path.absolute())] = f"{path}: it cannot be read: {error.strerror}"
    if not files:
        raise UserError(f"{folder} has no images, that is files ending in {' '.join(sorted(SUFFIXES))}.")
    return Listed(str(folder.absolute()), files, faults)


def _file(path: Path, label: str) -> File:
    name, about = str(path.absolute()), path.stat()
    name.encode()  # databases store text as UTF-8
    return File(name, label, about.st_size, about.st_mtime_ns)


def update(
    engine: Engine,
    listed: Listed,
    embedder: Embedder,
    check: Callable[[], None] = never,
    *,
    progress: bool = True,
) -> Changes:
    """Brings an index up to date with the photographs in a folder and in all folders below it.

    Args:
        engine: the index, after `begin`. Rows of files in other folders stay.
        listed: the photographs.
        embedder: the network of the index.
        check: called often; raises to stop. What was embedded until then is added first.
        progress: show a bar on a terminal.
    """
    return _update(engine, listed, embedder, check, where=below(listed.folder), progress=progress)


def embed_again(
    engine: Engine,
    labels: Mapping[str, str],
    embedder: Embedder,
    check: Callable[[], None] = never,
    *,
    progress: bool = True,
) -> Changes:
    """Fills an index with files that another one has, as far as they are still there.

    Args:
        engine: the index, after `begin`.
        labels: by the paths of the files.
        embedder: as for `update`.
        check: as for `update`.
        progress: as for `update`.
    """
    files = [_file(Path(path), label) for path, label in labels.items() if Path(path).is_file()]
    return _update(engine, Listed("", files, {}), embedder, check, where=None, progress=progress)


def _update(
    engine: Engine,
    listed: Listed,
    embedder: Embedder,
    check: Callable[[], None],
    *,
    where: str | None,
    progress: bool,
) -> Changes:
    """Makes the rows that `where` holds for those of the files."""
    files, left_out = listed.files, dict(listed.faults)
    rows_before = columns(engine, ("path", "size", "modified_ns"), where)
    before = {path: (size, modified_ns) for path, size, modified_ns in rows_before if listed.takes(path)}
    new = [file for file in files if before.get(file.path) != (file.size, file.modified_ns)]
    embedded = recognised = 0
    with Progress("indexing", images=len(new), shown=progress) as bar:
        # Only files of the same size can have the same content, so the others need not be read twice.
        sizes = {size for (size,) in columns(engine, ("size",))} if new else set()
        unknown = [file for file in new if file.size not in sizes]
        for files_of_size in _parts([file for file in new if file.size in sizes]):
            check()
            rows = _recognise(engine, files_of_size)
            _add(engine, rows)
            found = {row.file for row in rows}
            unknown += [file for file in files_of_size if file not in found]
            recognised += len(rows)
            bar.advance(len(rows))
        for rows, faults in _embed(embedder, unknown, check):
            _add(engine, rows)
            left_out |= faults
            embedded += len(rows)
            bar.advance(len(rows) + len(faults))
    gone = sorted(before.keys() - ({file.path for file in files} - left_out.keys()))
    engine.remove(gone)
    return Changes(embedded, recognised, len(files) - len(new), len(gone), left_out)


def _recognise(engine: Engine, files: Sequence[File]) -> list[Row]:
    """Finds rows of the same contents. Files that cannot be read are not among them."""
    with ThreadPoolExecutor(READERS) as pool:
        digests = dict(zip(files, pool.map(_read_digest, files), strict=True))
    wanted = ", ".join(text(digest) for digest in set(digests.values()) if digest)
    known = dict(columns(engine, ("digest", "vector"), f"digest IN ({wanted})")) if wanted else {}
    return [Row(file, digest, known[digest]) for file, digest in digests.items() if digest in known]


def _read_digest(file: File) -> str:
    try:
        return content_digest(read_image(Path(file.path)))
    except UserError:
        return ""


def _embed(
    embedder: Embedder, files: Sequence[File], check: Callable[[], None]
) -> Iterator[tuple[list[Row], dict[str, str]]]:
    """Embeds files, and yields rows for one `add` at a time, with the faults of files that cannot be used.

    After `check` has raised, the rows that are ready come first.
    """
    if not files:
        return
    photographs = _DigestedPhotographs([Path(file.path) for file in files])
    rows, faults, start, since = list[Row](), dict[str, str](), 0, time.monotonic()
    try:
        with contextlib.closing(embedder.batches(photograph_split(photographs), check)) as batches:
            for batch in batches:
                for place, vector in enumerate(batch, start):
                    if (fault := photographs.faults.pop(place, None)) is not None:
                        faults[files[place].path] = fault
                    else:
                        rows.append(Row(files[place], photographs.digests.pop(photographs.paths[place]), vector))
                start += len(batch)
                if len(rows) >= ROWS_PER_ADD or time.monotonic() - since > SECONDS_PER_ADD:
                    yield rows, faults
                    rows, faults, since = [], {}, time.monotonic()
    except Interrupted:
        yield rows, faults
        raise
    yield rows, faults


def _add(engine: Engine, rows: Sequence[Row]) -> None:
    if not rows:
        return
    vectors = np.array([row.vector for row in rows], np.float32)
    about_files = [list(column) for column in zip(*(row.file for row in rows), strict=True)]
    digests = [row.digest for row in rows]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    engine.add(pa.table([*about_files, digests, vector], schema=schema(vectors.shape[1])))


def _parts(files: Sequence[File]) -> Iterator[Sequence[File]]:
    for start in range(0, len(files), ROWS_PER_ADD):
        yield files[start : start + ROWS_PER_ADD]

"""Reads and writes embedding files: NumPy's .npz and Parquet.

| `.npz`, arrays of length N | Parquet, columns | content |
| --- | --- | --- |
| `embeddings` (N, D) | `embedding`, a list of D | numbers |
| `labels` | `label` | class of each image, integers or strings |
| `paths` | `path` | path of each image; optional when reading |

Written files also contain their provenance as JSON, under the key `proxynca_jax`: an array in .npz files, schema
metadata in Parquet files.
"""

import json
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int, Shaped

from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine.atomic_file import replacing
from proxynca_jax.weights.converted_file import METADATA_KEY

SUFFIXES = (".npz", ".parquet")
COPIED_BYTES = 2**20  # at a time
ROW_GROUP = 4096  # fewest images per Parquet row group; small groups would slow readers down


class Contents(NamedTuple):
    """The content of an embedding file, except for the embeddings."""

    paths: Sequence[str]  # N; may grow while the embeddings are made, to the number made so far
    labels: Int[np.ndarray, " N"] | None  # N; None if no classes are known
    dim: int  # D
    about: Mapping[str, Any]  # provenance of the file, JSON-serialisable


def check_output(path: pathlib.Path) -> None:
    """Checks, before any work, that an embedding file can be written.

    Raises:
        UserError: the suffix is not one of `SUFFIXES`, the folder does not exist, or the path is a folder.
    """
    _check_suffix(path)
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}. Create it or choose another.")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder. Name a file in it.")


def write_embeddings(
    path: pathlib.Path, batches: Iterable[Float32[np.ndarray, "batch dim"]], contents: Contents
) -> None:
    """Writes an embedding file atomically. Replaces an existing file only when the new one is complete.

    Args:
        path: of the file, with one of `SUFFIXES`.
        batches: the embeddings in batches of any size. They are written one by one.
        contents: the rest of the file.

    Raises:
        UserError: the file cannot be written.
    """
    write = _write_npz if _check_suffix(path) == ".npz" else _write_parquet
    with replacing(path) as partial:
        write(partial, batches, contents)


def read_embeddings(
    path: pathlib.Path,
) -> tuple[Float[np.ndarray, "N D"], Shaped[np.ndarray, " N"]]:
    """Reads embeddings and labels from a file that this package or any other program wrote.

    Args:
        path: of the file, with one of `SUFFIXES`.

    Returns:
        The embeddings, in at least single precision, and their labels, integers or strings.

    Raises:
        UserError: the file does not exist, or it does not contain embeddings and labels.
    """
    read = _read_npz if _check_suffix(path) == ".npz" else _read_parquet
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        embeddings, labels = read(path)
    except UserError:
        raise
    except Exception as error:  # damaged and hostile files: zlib.error, TokenError, MemoryError for claimed sizes, ...
        raise UserError(f"{path} cannot be read as a {path.suffix} file: {error}") from error
    if not isinstance(embeddings, np.ndarray) or not isinstance(labels, np.ndarray):
        raise UserError(f"{path} is damaged: its embeddings or labels are not arrays.")
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not embeddings.size:
        raise UserError(
            f"{path} contains embeddings of shape {embeddings.shape} and labels of shape {labels.shape}. The shapes "
            "must be (N, D) and (N,): one row and one label per image."
        )
    if embeddings.dtype.kind not in "fiu":
        raise UserError(f"the embeddings in {path} are of type {embeddings.dtype}; they must be real numbers.")
    if labels.dtype.kind not in "iuU":
        raise UserError(f"the labels in {path} are of type {labels.dtype}; they must be integers or strings.")
    if labels.dtype.kind != "U":
        labels = labels.astype(np.int64)  # so labels of two files can be compared, even if their dtypes differ
    return embeddings.astype(np.result_type(embeddings, np.float32), copy=False), labels


def read_about(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns the `Contents.about` of a file that `read_embeddings` can read; empty if another program wrote it."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            text = str(arrays[METADATA_KEY]) if METADATA_KEY in arrays.files else "{}"
    else:
        text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY.encode(), b"{}").decode()
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: what it says of its embeddings cannot be read ({error}).") from error


def _check_suffix(path: pathlib.Path) -> str:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix!r}; embedding files end in {' or '.join(SUFFIXES)}.")
    return path.suffix


def _require(path: pathlib.Path, kind: str, names: Sequence[str], found: Sequence[str]) -> None:
    for name in names:
        if name not in found:
            raise UserError(f"{path} has no {kind} {name!r}; required: {', '.join(names)}. {nearest(name, found)}")


def _write_npz(path: pathlib.Path, batches: Iterable[Float32[np.ndarray, "batch dim"]], contents: Contents) -> None:
    """Writes the same file as `np.savez`, without the whole array in memory: it waits in a file for its shape."""
    with tempfile.TemporaryFile(dir=path.parent) as rows:
        for batch in batches:
            rows.write(np.asarray(batch, "<f4", order="C").tobytes())
        rows.seek(0)
        _write_archive(path, rows, contents)


def _write_archive(path: pathlib.Path, rows: IO[bytes], contents: Contents) -> None:
    arrays = {"paths": np.array(contents.paths), METADATA_KEY: np.array(json.dumps(contents.about))}
    if contents.labels is not None:
        arrays["labels"] = contents.labels
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            shape = (len(contents.paths), contents.dim)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(rows, file, COPIED_BYTES)


def _write_parquet(path: pathlib.Path, batches: Iterable[Float32[np.ndarray, "batch dim"]], contents: Contents) -> None:
    types = {"embedding": pa.list_(pa.float32(), contents.dim), "path": pa.string()}
    if contents.labels is not None:
        types["label"] = pa.from_numpy_dtype(contents.labels.dtype)
    schema = pa.schema(types, metadata={METADATA_KEY: json.dumps(contents.about)})
    start = 0
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:  # numbers hardly repeat
        for rows in _joined(batches, ROW_GROUP):
            here = slice(start, start := start + len(rows))
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), contents.dim)
            columns = {"embedding": embedding, "path": contents.paths[here]}
            if contents.labels is not None:
                columns["label"] = contents.labels[here]
            writer.write_table(pa.table(columns, schema))


def _joined(
    batches: Iterable[Float32[np.ndarray, "batch dim"]], least: int
) -> Iterator[Float32[np.ndarray, "rows dim"]]:
    """Concatenates consecutive batches until they have at least `least` rows."""
    waiting = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= least:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _read_npz(path: pathlib.Path) -> tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]]:
    if not zipfile.is_zipfile(path):  # np.load would try to read it as a pickle
        raise UserError(f"{path} is not a complete .npz file.")
    with np.load(path, allow_pickle=False) as arrays:
        _require(path, "array", ("embeddings", "labels"), arrays.files)
        try:
            return arrays["embeddings"], arrays["labels"]
        except ValueError as error:
            hint = "Save string labels as np.array(labels, str), not as objects."
            raise UserError(f"{path} cannot be read: {error}. {hint}") from error


def _read_parquet(path: pathlib.Path) -> tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]]:
    names = ("embedding", "label")
    with pq.ParquetFile(path) as file:
        _require(path, "column", names, file.schema_arrow.names)
        vectors, labels = (file.read(columns=[name]).column(0) for name in names)
    if vectors.null_count or labels.null_count:
        raise UserError(f"{path} has empty cells in {' or '.join(names)}; each row needs both.")
    classes = labels.to_numpy()
    return _stack(path, vectors), np.array(classes.tolist()) if classes.dtype == object else classes


def _stack(path: pathlib.Path, vectors: pa.ChunkedArray) -> Shaped[np.ndarray, "N D"]:
    if not len(vectors):
        raise UserError(f"{path} has no rows.")
    if not isinstance(vectors.type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        raise UserError(f"the embeddings in {path} are of type {vectors.type}; each must be a list of numbers.")
    # Chunks stay separate, because one Arrow list cannot contain more than 2³¹ numbers.
    lengths = np.concatenate([chunk.value_lengths() for chunk in vectors.chunks])
    if np.any(lengths != lengths[0]):
        row = int(np.argmax(lengths != lengths[0]))
        raise UserError(
            f"the embeddings in {path} differ in length: {lengths[0]} in row 0, {lengths[row]} in row {row}."
        )
    numbers = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in vectors.chunks]
    return np.concatenate(numbers).reshape(len(lengths), int(lengths[0]))

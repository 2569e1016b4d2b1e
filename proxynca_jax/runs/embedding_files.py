"""Embeddings in files, NumPy's .npz and Parquet.

| `.npz`, arrays of length N | Parquet, columns | what |
| --- | --- | --- |
| `embeddings` (N, D) | `embedding`, a list of D | numbers |
| `labels` | `label` | class of each image, integers or strings |
| `paths` | `path` | where each image came from; written, not needed for reading |

Written files tell what made them in JSON under the key `proxynca_jax`, an array of the one and schema metadata of the
other.
"""

import json
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int, Shaped

from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine.atomic_file import replacing
from proxynca_jax.weights import METADATA_KEY

SUFFIXES = (".npz", ".parquet")
ROW_GROUP = 4096  # images; a reader takes such a group at a time, so tiny ones would slow it down


class Contents(NamedTuple):
    """All of a file but the embeddings."""

    paths: Sequence[str]  # N
    labels: Int[np.ndarray, " N"] | None  # N; None where no class is known
    dim: int  # D
    about: Mapping[str, Any]  # what made the file, as JSON can hold it


def check_output(path: pathlib.Path) -> None:
    """Looks before the work whether there is a place for its result.

    Raises:
        UserError: if the suffix is not one of `SUFFIXES`, there is no such folder, or a folder of the file's name.
    """
    _check_suffix(path)
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}. Make it first, or choose another.")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder. Name a file in it.")


def write_embeddings(
    path: pathlib.Path, batches: Iterable[Float32[np.ndarray, "batch dim"]], contents: Contents
) -> None:
    """Writes a file whole or not at all; one of the same name is replaced when the new one is complete.

    Args:
        path: of the file, with one of `SUFFIXES`.
        batches: the embeddings, in any number of pieces, which are written as they come.
        contents: the rest.

    Raises:
        UserError: if the file cannot be written.
    """
    write = _write_npz if _check_suffix(path) == ".npz" else _write_parquet
    with replacing(path) as partial:
        write(partial, batches, contents)


def read_embeddings(
    path: pathlib.Path,
) -> tuple[Float[np.ndarray, "N D"], Shaped[np.ndarray, " N"]]:
    """Reads embeddings and labels that anyone wrote.

    Args:
        path: of the file, with one of `SUFFIXES`.

    Returns:
        The embeddings, in at least single precision, and their labels, integers or strings.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    read = _read_npz if _check_suffix(path) == ".npz" else _read_parquet
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        embeddings, labels = read(path)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a {path.suffix} file: {error}") from error
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not embeddings.size:
        raise UserError(
            f"{path} holds embeddings of shape {embeddings.shape} and labels of shape {labels.shape}; they must be "
            "(N, D) and (N,), a row and a label for each image."
        )
    if embeddings.dtype.kind not in "fiu":
        raise UserError(f"the embeddings in {path} are of type {embeddings.dtype}; they must be real numbers.")
    if labels.dtype.kind not in "iuU":
        raise UserError(f"the labels in {path} are of type {labels.dtype}; they must be integers or strings.")
    if labels.dtype.kind != "U":
        labels = labels.astype(np.int64)  # the labels of two files can be compared, whatever their widths
    return embeddings.astype(np.result_type(embeddings, np.float32), copy=False), labels


def read_about(path: pathlib.Path) -> Mapping[str, Any]:
    """What made a file that `read_embeddings` can read: `Contents.about`, or nothing where another program wrote it."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            text = str(arrays[METADATA_KEY]) if METADATA_KEY in arrays.files else "{}"
    else:
        text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY.encode(), b"{}").decode()
    return json.loads(text)


def _check_suffix(path: pathlib.Path) -> str:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix!r}; embedding files end in {' or '.join(SUFFIXES)}.")
    return path.suffix


def _require(path: pathlib.Path, kind: str, names: Sequence[str], found: Sequence[str]) -> None:
    for name in names:
        if name not in found:
            raise UserError(f"{path} has no {kind} {name!r}, {', '.join(names)} are required. {nearest(name, found)}")


def _write_npz(path: pathlib.Path, batches: Iterable[Float32[np.ndarray, "batch dim"]], contents: Contents) -> None:
    """Writes what `np.savez` would write of the whole array, which is never in memory: its size is known before."""
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
            for batch in batches:
                file.write(np.asarray(batch, "<f4", order="C").tobytes())


def _write_parquet(path: pathlib.Path, batches: Iterable[Float32[np.ndarray, "batch dim"]], contents: Contents) -> None:
    types = {"embedding": pa.list_(pa.float32(), contents.dim), "path": pa.string()}
    if contents.labels is not None:
        types["label"] = pa.from_numpy_dtype(contents.labels.dtype)
    schema = pa.schema(types, metadata={METADATA_KEY: json.dumps(contents.about)})
    start = 0
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:  # no two numbers are alike
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
    """Joins batches that follow each other until they have at least so many rows."""
    waiting = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= least:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _read_npz(path: pathlib.Path) -> tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]]:
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle
        raise UserError(f"{path} is not a .npz file, or not a whole one.")
    with np.load(path, allow_pickle=False) as arrays:
        _require(path, "array", ("embeddings", "labels"), arrays.files)
        try:
            return arrays["embeddings"], arrays["labels"]
        except ValueError as error:
            hint = "Save labels that are strings as np.array(labels, str), not as objects."
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
    # Chunk by chunk: a column of more than 2³¹ numbers cannot be one Arrow list.
    lengths = np.concatenate([chunk.value_lengths() for chunk in vectors.chunks])
    if np.any(lengths != lengths[0]):
        row = int(np.argmax(lengths != lengths[0]))
        raise UserError(
            f"the embeddings in {path} differ in length: {lengths[0]} in row 0, {lengths[row]} in row {row}."
        )
    numbers = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in vectors.chunks]
    return np.concatenate(numbers).reshape(len(lengths), int(lengths[0]))

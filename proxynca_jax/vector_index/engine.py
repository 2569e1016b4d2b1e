"""What an index of images needs from a vector database: rows, and the few calls that each engine has.

A row is an image file. An index holds the rows of one network at a time, because vectors of two networks cannot be
compared. While an index is rebuilt for another network, searches see the old rows until `publish`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from proxynca_jax.errors import UserError

About = Mapping[str, Any]  # what an index was made with, as JSON: `Embedder.about` and more
FILE_COLUMNS = {  # of the file when it was embedded; a file with the same size and time is not read again
    "path": pa.string(),  # absolute; the key
    "label": pa.string(),
    "size": pa.int64(),  # bytes
    "modified_ns": pa.int64(),
    "digest": pa.string(),  # of its content
}
IDENTITY = ("weights", "dimensions", "preprocessing")  # entries of About that must agree for vectors to be comparable


class Match(NamedTuple):
    """An image that a search found."""

    score: float  # cosine similarity to the query, -1 to 1
    path: str
    label: str


@runtime_checkable
class Engine(Protocol):
    """A vector database that holds an index. `open_engine` opens one by its address."""

    address: str

    def describe(self) -> tuple[About, int] | None:
        """Returns what the index was made with and the number of its rows. None: there is no index."""
        ...

    def begin(self, about: About) -> None:
        """Directs all other calls to the rows of this network. There may be some from a rebuild that was stopped."""
        ...

    def publish(self, about: About) -> None:
        """Makes the rows of `begin` those that everyone sees, and deletes rows of other networks."""
        ...

    def add(self, rows: pa.Table) -> None:
        """Adds rows, all or none. They replace rows of the same paths. `schema` describes them."""
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Removes rows."""
        ...

    def search(
        self, vectors: Float32[np.ndarray, "queries dim"], k: int, where: str | None, *, exact: bool = True
    ) -> list[list[Match]]:
        """Finds the k rows of the highest cosine similarity for each vector of length 1.

        Args:
            vectors: of the queries.
            k: how many rows; there are fewer if there are not as many.
            where: a condition in SQL on the columns `path`, `label`, `size`, `modified_ns` and `digest`.
            exact: compare all rows. Otherwise an approximate index is used if there is one.

        Raises:
            UserError: if the condition is no SQL.
        """
        ...

    def approximate(self) -> None:
        """Builds an index of the vectors for searches that are not exact, or brings it up to date."""
        ...

    def is_approximate(self) -> bool:
        """Returns whether there is such an index."""
        ...

    def read(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yields some columns of the rows that a condition holds for, or of all. Memory does not grow with the rows."""
        ...


def columns(engine: Engine, names: Sequence[str], where: str | None = None) -> Iterator[tuple[Any, ...]]:
    """Yields what `Engine.read` reads, row by row."""
    for batch in engine.read(names, where):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def schema(dimensions: int) -> pa.Schema:
    """Returns the columns of a row: `FILE_COLUMNS`, and the vector."""
    return pa.schema({**FILE_COLUMNS, "vector": pa.list_(pa.float32(), dimensions)})


def table_name(about: About) -> str:
    """Returns the name of the table of a network's rows. Networks with other vectors have other names."""
    identity = json.dumps([about[key] for key in IDENTITY], sort_keys=True)
    return f"images_{hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}"


def differences(ours: About, theirs: About) -> list[str]:
    """Lists in words why vectors of two networks cannot be compared. Empty: they can be."""
    return [f"{key} {theirs.get(key)} instead of {ours[key]}" for key in IDENTITY if ours[key] != theirs.get(key)]


def text(value: str) -> str:
    """Writes a string for a condition in SQL."""
    return "'" + value.replace("'", "''") + "'"


def below(folder: str) -> str:
    """Returns the condition of all files in a folder and in folders below it."""
    prefix = folder.rstrip("/") + "/"
    # A prefix as a range, because LIKE would read % and _ in a folder's name as wildcards.
    return f"path >= {text(prefix)} AND path < {text(prefix[:-1] + chr(ord('/') + 1))}"


def check_width(address: str, about: About, vectors: Float32[np.ndarray, "queries dim"]) -> None:
    """Checks that vectors have the width of an index.

    Raises:
        UserError: if they have not.
    """
    if vectors.shape[1] != about["dimensions"]:
        raise UserError(
            f"the query has {vectors.shape[1]} dimensions and {address} has {about['dimensions']}. Embed it with the "
            f"network of the index, {about.get('model')}."
        )


def condition(where: str) -> str:
    """Writes a user's condition in parentheses: otherwise, LanceDB ignores what follows a whole condition.

    The line break ends a comment.
    """
    return f"({where}\n)"


def condition_error(where: str | None, said: str) -> UserError:
    """Returns the error for a condition that a database does not take. `said` is the database's message."""
    first, *_ = said.splitlines()
    if where is None:
        return UserError(f"the index cannot be searched: {first}")
    names = ", ".join(FILE_COLUMNS)
    return UserError(f"the condition {where!r} cannot be used: {first} It is SQL on the columns {names}.")

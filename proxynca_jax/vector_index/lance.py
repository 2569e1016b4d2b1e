"""An index in a folder or in object storage, by LanceDB, which runs inside this process.

Each call that writes makes a new version of the table. A search reads one version, so it never sees half of a call,
and a process that is killed leaves the last version. `images_<network>` is a table of rows, `about` one row of JSON.
"""

import contextlib
import datetime
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

os.environ.setdefault("LANCE_LOG", "error")  # read by the import; its warnings are of no use to a user

import lancedb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from lancedb.index import BTree, IvfFlat

from proxynca_jax.errors import UserError
from proxynca_jax.vector_index.engine import About, Match, condition, condition_error, schema, table_name, text

ABOUT = "about"
# Versions that a search in another process may be reading.
KEPT_VERSIONS = datetime.timedelta(minutes=10)
PATHS_PER_CONDITION = 1000
# Calls of `add` between two compactions. Each leaves a small file, and a search opens all of them. A compaction writes
# the table again, so a large one is compacted after it has grown by an eighth.
ADDS_PER_COMPACTION = 64
ROWS_PER_EXTRA_ADD = 8 * 1024
# From here on, `add` finds rows of the same paths faster by an index than by reading all paths.
ROWS_WITH_INDEX_OF_PATHS = 100_000
# Of the square root of the rows: with 10⁶ rows a tenth of the parts has 0.99 of the nearest ten.
PARTS_SEARCHED = 100
TRAINING_ITERATIONS = 20


class LanceEngine:
    """An `Engine`."""

    def __init__(self, address: str):
        """Args:
        address: a folder, which need not exist, or a URI of object storage such as `s3://bucket/photos.lance`.

        Raises:
            UserError: if the address is a file or cannot be opened.
        """
        self.address = address
        if pathlib.Path(address).is_file():
            raise UserError(f"{address} is a file; an index is a folder, such as photos.lance.")
        self._adds_until_compaction, self._table = ADDS_PER_COMPACTION, cast(Any, None)
        if (about := self._about()) is not None:
            self._table = self._open(table_name(about))

    @functools.cached_property
    def _database(self) -> Any:
        try:
            # Without an interval of 0, an open table does not notice what other processes write.
            return lancedb.connect(self.address, read_consistency_interval=datetime.timedelta(0))
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot open the index {self.address}: {error}") from error

    def _about(self) -> About | None:
        if "://" not in self.address and not pathlib.Path(self.address).exists():
            return None  # connecting would make the folder
        table = self._open(ABOUT)
        try:
            return None if table is None else json.loads(table.to_arrow()["about"][0].as_py())
        except (OSError, RuntimeError, ValueError, LookupError) as error:
            raise self._damaged(error) from error

    def _open(self, name: str) -> Any:
        """Opens a table. None: there is only the folder of one that another process makes, or was killed making."""
        try:
            return self._database.open_table(name)
        except (OSError, RuntimeError, ValueError) as error:
            if str(error) == f"Table '{name}' was not found":
                return None
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.address} is damaged: {error}. Delete it and index the images again.")

    def describe(self) -> tuple[About, int] | None:
        about = self._about()
        return None if about is None else (about, self._open(table_name(about)).count_rows())

    def begin(self, about: About) -> None:
        name = table_name(about)
        self._table = self._open(name)
        if self._table is None:
            # With exist_ok, because another process may have been faster.
            self._table = self._database.create_table(name, schema=schema(about["dimensions"]), exist_ok=True)

    def publish(self, about: About) -> None:
        rows = pa.table({"about": [json.dumps(about)]})
        if (before := self._about()) is None:
            self._database.create_table(ABOUT, rows, exist_ok=True)
        elif before != about:
            self._database.create_table(ABOUT, rows, mode="overwrite")
        for name in self._database.list_tables().tables:
            if name not in (ABOUT, table_name(about)):
                self._database.drop_table(name)
        self._compact()

    def add(self, rows: pa.Table) -> None:
        self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self._adds_until_compaction -= 1
        if self._adds_until_compaction == 0:
            self._compact()

    def _compact(self) -> None:
        rows = self._table.count_rows()
        self._adds_until_compaction = max(ADDS_PER_COMPACTION, rows // ROWS_PER_EXTRA_ADD)
        # Another process that adds rows may be in the way. Then its next compaction does both's.
        with contextlib.suppress(RuntimeError, OSError):
            if rows >= ROWS_WITH_INDEX_OF_PATHS and not self._has_index("path"):
                self._table.create_index("path", config=BTree())
            self._table.optimize(cleanup_older_than=KEPT_VERSIONS)

    def _has_index(self, column: str) -> bool:
        return any(index.columns == [column] for index in self._table.list_indices())

    def remove(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), PATHS_PER_CONDITION):
            some = ", ".join(text(path) for path in paths[start : start + PATHS_PER_CONDITION])
            self._table.delete(f"path IN ({some})")

    def search(
        self, vectors: Float32[np.ndarray, "queries dim"], k: int, where: str | None, *, exact: bool = True
    ) -> list[list[Match]]:
        query = self._table.search(vectors, vector_column_name="vector").distance_type("dot").limit(k)
        query = query.bypass_vector_index() if exact else query.nprobes(PARTS_SEARCHED)
        query = query.where(condition(where), prefilter=True) if where else query
        try:
            found = query.select(["path", "label", "_distance"]).to_arrow()
        except (RuntimeError, ValueError) as error:
            raise condition_error(where, str(error)) from error
        matches: list[list[Match]] = [[] for _ in vectors]
        numbers = found["query_index"].to_pylist() if "query_index" in found.column_names else [0] * len(found)
        columns = (found[name].to_pylist() for name in ("_distance", "path", "label"))
        for number, distance, path, label in zip(numbers, *columns, strict=True):
            matches[number].append(Match(1 - distance, path, label))
        return matches

    def approximate(self) -> None:
        rows = self._table.count_rows()
        parts = max(math.isqrt(rows), 1)
        # All rows train: LanceDB takes minutes to draw some once a few rows have been deleted.
        everything = rows // parts + 1
        config = IvfFlat(
            distance_type="dot", num_partitions=parts, sample_rate=everything, max_iterations=TRAINING_ITERATIONS
        )
        self._table.create_index("vector", config=config, replace=True)

    def is_approximate(self) -> bool:
        return self._has_index("vector")

    def read(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        query = self._table.search().select(list(columns))
        try:
            yield from (query.where(condition(where)) if where else query).to_batches()
        except (RuntimeError, ValueError) as error:
            raise condition_error(where, str(error)) from error

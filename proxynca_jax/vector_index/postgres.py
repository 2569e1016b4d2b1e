"""An index in PostgreSQL with pgvector, for many machines that write and search at the same time.

An index is the tables `proxynca_…` of the first schema on the connection's search path. Each call is one transaction,
so everyone else sees all of it or nothing. `proxynca_images_<network>` is a table of rows, `proxynca_about` one row of
JSON.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, LiteralString, cast

import numpy as np
import psycopg
import pyarrow as pa
from jaxtyping import Float32
from psycopg import Connection, sql

from proxynca_jax.errors import UserError
from proxynca_jax.vector_index.engine import FILE_COLUMNS, About, Match, condition, condition_error, table_name
from proxynca_jax.vector_index.postgres_connection import Database, create_extension, one, reason

ABOUT, IMAGES = "proxynca_about", "proxynca_images"
SQL_TYPES = {pa.string(): sql.SQL("text"), pa.int64(): sql.SQL("bigint")}
SECONDS = 600  # after which a search ends, such as one whose condition never ends
ROWS_READ = 4096
# Vectors of more numbers do not fit into a row's page of 8 KiB, and are kept next to the table.
DIMENSIONS_IN_PAGE = 1800
# What an approximate search compares. The server's default of 40 finds too little, and it takes at most 1,000.
CANDIDATES, MOST_CANDIDATES = 200, 1000
VECTORS = "_vectors"  # the index of the vectors
# Of the server. A larger graph is built ten times as slowly.
BUILD_MEMORY = "2GB"


class PostgresEngine:
    """An `Engine`."""

    def __init__(self, address: str):
        """Args:
        address: `postgresql://user@host/database`, with all that libpq allows in it.

        Raises:
            UserError: if the database cannot be opened.
        """
        self._database = Database(address)
        self.address = self._database.address
        with self._database.transaction() as connection:
            about = self._about(connection)
        self._name = "" if about is None else _name(about)

    @property
    def _table(self) -> sql.Identifier:
        return self._database.table(self._name)

    def _about(self, connection: Connection) -> About | None:
        if not self._exists(connection, ABOUT):
            return None
        row = connection.execute(sql.SQL("SELECT about FROM {}").format(self._database.table(ABOUT))).fetchone()
        return None if row is None else json.loads(row[0])

    def _exists(self, connection: Connection, name: str) -> bool:
        found = connection.execute("SELECT to_regclass(%s)", [self._database.table(name).as_string()])
        return found.fetchone() != (None,)

    def describe(self) -> tuple[About, int] | None:
        with self._database.transaction() as connection:
            if (about := self._about(connection)) is None:
                return None
            table = self._database.table(_name(about))
            return about, one(connection, sql.SQL("SELECT count(*) FROM {}").format(table))

    def begin(self, about: About) -> None:
        self._name = _name(about)
        columns = [sql.SQL(" ").join((sql.Identifier(name), SQL_TYPES[kind])) for name, kind in FILE_COLUMNS.items()]
        create = sql.SQL("CREATE TABLE {} ({}, vector vector({}) NOT NULL)").format(
            self._table, sql.SQL(" NOT NULL, ").join(columns) + sql.SQL(" NOT NULL"), about["dimensions"]
        )
        # Paths are ordered by their bytes, so that a range of paths is a folder.
        key = 'ALTER TABLE {} ALTER COLUMN path TYPE text COLLATE "C", ADD PRIMARY KEY (path)'
        storage = sql.SQL("PLAIN" if about["dimensions"] <= DIMENSIONS_IN_PAGE else "EXTERNAL")
        with self._database.transaction() as connection:
            _only_one(connection)
            create_extension(connection, self.address)
            if self._exists(connection, self._name):
                return
            connection.execute(create)
            connection.execute(sql.SQL(key).format(self._table))
            connection.execute(sql.SQL("ALTER TABLE {} ALTER vector SET STORAGE {}").format(self._table, storage))
            connection.execute(sql.SQL("CREATE INDEX ON {} (digest)").format(self._table))

    def publish(self, about: About) -> None:
        with self._database.transaction() as connection:
            _only_one(connection)
            describe = self._database.table(ABOUT)
            connection.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} (about text NOT NULL)").format(describe))
            connection.execute(sql.SQL("DELETE FROM {}").format(describe))
            connection.execute(sql.SQL("INSERT INTO {} VALUES (%s)").format(describe), [json.dumps(about)])
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename ~ %s"
            ours = [self._database.schema, f"^{IMAGES}_[0-9a-f]{{12}}$"]
            for (name,) in connection.execute(tables, ours).fetchall():
                if name != _name(about):
                    connection.execute(sql.SQL("DROP TABLE {}").format(self._database.table(name)))

    def add(self, rows: pa.Table) -> None:
        names = rows.column_names
        values = [_numpy(rows["vector"]) if name == "vector" else rows[name].to_pylist() for name in names]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        new = sql.SQL(", ").join(sql.SQL("EXCLUDED.{}").format(sql.Identifier(name)) for name in names)
        with self._database.transaction() as connection:
            incoming = "CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS SELECT * FROM {} LIMIT 0"
            connection.execute(sql.SQL(incoming).format(self._table))
            into = sql.SQL("COPY incoming ({}) FROM STDIN (FORMAT BINARY)").format(columns)
            with connection.cursor().copy(into) as copy:
                copy.set_types([*(SQL_TYPES[FILE_COLUMNS[name]].as_string() for name in names[:-1]), "vector"])
                for row in zip(*values, strict=True):
                    copy.write_row(row)
            # In the order of the paths, or two writers of the same rows could wait for each other.
            upsert = (
                "INSERT INTO {} ({}) SELECT {} FROM incoming ORDER BY path ON CONFLICT (path) DO UPDATE SET ({}) = ({})"
            )
            connection.execute(sql.SQL(upsert).format(self._table, columns, columns, columns, new))

    def remove(self, paths: Sequence[str]) -> None:
        delete = (
            "WITH gone AS (SELECT path FROM {0} WHERE path = ANY(%s) ORDER BY path FOR UPDATE) "
            "DELETE FROM {0} AS images USING gone WHERE images.path = gone.path"
        )
        with self._database.transaction() as connection:
            connection.execute(sql.SQL(delete).format(self._table), [list(paths)])

    def search(
        self, vectors: Float32[np.ndarray, "queries dim"], k: int, where: str | None, *, exact: bool = True
    ) -> list[list[Match]]:
        query = sql.SQL(
            "SELECT -(vector <#> %(vector)s), path, label FROM {}{} ORDER BY vector <#> %(vector)s LIMIT %(k)s"
        ).format(self._table, _where(where))
        with self._database.transaction() as connection, _explained(where):
            _only_read(connection)
            if exact:  # an index of vectors has no other scan, one of paths has
                connection.execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_seqscan = on")
            else:
                candidates = min(max(CANDIDATES, 2 * k), MOST_CANDIDATES)
                connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(candidates))
                connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")  # or a condition leaves too few
            with connection.cursor(binary=True) as cursor:
                return [
                    [Match(*row) for row in cursor.execute(query, {"vector": vector, "k": k})] for vector in vectors
                ]

    def approximate(self) -> None:
        # PostgreSQL keeps it up to date by itself.
        create = "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (vector vector_ip_ops)"
        with self._database.transaction() as connection:
            _only_one(connection)
            connection.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(BUILD_MEMORY))
            connection.execute(sql.SQL(create).format(sql.Identifier(self._name + VECTORS), self._table))

    def is_approximate(self) -> bool:
        with self._database.transaction() as connection:
            return self._exists(connection, self._name + VECTORS)

    def read(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        query = sql.SQL("SELECT {} FROM {}{}").format(names, self._table, _where(where))
        # A connection of its own, because callers write while they read.
        with self._database.transaction(own=True) as connection, _explained(where):
            _only_read(connection)
            with connection.cursor("rows", binary=True) as cursor:
                cursor.execute(query, {})
                while rows := cursor.fetchmany(ROWS_READ):
                    yield _batch(columns, rows)


def _name(about: About) -> str:
    return f"proxynca_{table_name(about)}"


def _only_one(connection: Connection) -> None:
    """Waits until no other transaction creates or deletes tables of this index."""
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('proxynca ' || current_schema()))")


def _only_read(connection: Connection) -> None:
    """Lets nothing that a user wrote in a condition write, or run for ever."""
    connection.execute("SET TRANSACTION READ ONLY")
    connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(f"{SECONDS}s"))


def _where(where: str | None) -> sql.SQL:
    # Typed as a constant, which it is not: the search is in a transaction that cannot write. A single % would be read
    # as a parameter.
    text = f" WHERE {condition(where).replace('%', '%%')}" if where else ""
    return sql.SQL(cast(LiteralString, text))


@contextlib.contextmanager
def _explained(where: str | None) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise UserError(f"the search took more than {SECONDS} s; its condition is {where!r}.") from error
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.InternalError, psycopg.NotSupportedError) as error:
        raise condition_error(where, reason(error)) from error


def _numpy(vectors: pa.ChunkedArray) -> Float32[np.ndarray, "rows dim"]:
    return np.stack(vectors.to_numpy(zero_copy_only=False))


def _batch(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    arrays = list[pa.Array]()
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        if name == "vector":
            numbers = np.stack([vector.to_numpy() for vector in values])
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1]))
        else:
            arrays.append(pa.array(values, FILE_COLUMNS[name]))
    return pa.record_batch(arrays, names=list(columns))

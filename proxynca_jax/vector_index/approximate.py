"""An approximate index of the vectors, built only where exact search is slow, and measured against exact search."""

import statistics
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from proxynca_jax.errors import UserError
from proxynca_jax.vector_index.engine import Engine

QUERIES = 100
NEIGHBOURS = 10
SLOW_SECONDS = 0.1  # a person notices a longer search


class Measured(NamedTuple):
    """What an approximate index is worth, on queries drawn from the index."""

    recall: float  # the share of the ten nearest images that it finds; a query itself does not count
    exact_seconds: float  # median of one search
    seconds: float  # the same, approximate
    build_seconds: float


def build_approximate(engine: Engine) -> Measured:
    """Builds the approximate index of an engine, or brings it up to date, and measures it.

    Args:
        engine: with rows, after `begin` or `publish`.

    Raises:
        UserError: if exact search is fast enough.
    """
    paths, vectors = _draw(engine)
    exact, exact_seconds = _search(engine, paths, vectors, exact=True)
    if exact_seconds < SLOW_SECONDS:
        raise UserError(
            f"an approximate index is not built: one exact search takes {1000 * exact_seconds:.1f} ms here, and it "
            f"pays from {1000 * SLOW_SECONDS:.0f} ms on. All images are indexed and exact search finds them; leave "
            "--approximate out."
        )
    start = time.perf_counter()
    engine.approximate()
    build_seconds = time.perf_counter() - start
    found, seconds = _search(engine, paths, vectors, exact=False)
    wanted = sum(map(len, exact))
    recall = sum(len(ours & theirs) for ours, theirs in zip(found, exact, strict=True)) / max(wanted, 1)
    return Measured(recall, exact_seconds, seconds, build_seconds)


def _draw(engine: Engine) -> tuple[list[str], Float32[np.ndarray, "queries dim"]]:
    """Takes rows at equal distances, in whatever order the engine has them."""
    described = engine.describe()
    stride = max((described[1] if described else 0) // QUERIES, 1)
    drawn, seen = list[pa.RecordBatch](), 0
    for batch in engine.read(("path", "vector")):
        drawn.append(batch.take(pa.array(range(-seen % stride, len(batch), stride), pa.int64())))
        seen += len(batch)
    table = pa.Table.from_batches(drawn).slice(0, QUERIES)
    return table["path"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)


def _search(
    engine: Engine, paths: list[str], vectors: Float32[np.ndarray, "queries dim"], *, exact: bool
) -> tuple[list[set[str]], float]:
    """Returns the neighbours of each query without itself, and the median of the seconds of one search."""
    found, seconds = list[set[str]](), list[float]()
    for path, vector in zip(paths, vectors, strict=True):
        start = time.perf_counter()
        [matches] = engine.search(vector[None], NEIGHBOURS + 1, None, exact=exact)
        seconds.append(time.perf_counter() - start)
        found.append(set([match.path for match in matches if match.path != path][:NEIGHBOURS]))
    return found, statistics.median(seconds)

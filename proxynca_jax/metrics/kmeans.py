"""k-means on the device: greedy k-means++ seeding, then Lloyd's iterations.

The algorithm is that of scikit-learn's `KMeans`, except that seeding adds several centres per round. With many
clusters, scikit-learn spends nearly all its time on seeding, because it adds centres one by one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, Scalar

BLOCK_DISTANCES = 2**19  # distances in memory at a time; more would not fit the processor's cache
MOST_ADDED = 32  # most centres that a round of seeding adds
# A round of seeding adds one centre up to this many centres, two centres up to twice as many, and so on. The gains of
# candidates are computed once per round, so a round that adds a larger share of the centres chooses worse. On 2,000
# points and 200 clusters, the sum of D² compared with one centre per round was 5.5 % higher with a value of 8, 1.5 %
# higher with 32 and 1.3 % higher with 64.
CENTRES_PER_ADDED = 32


class Clustering(NamedTuple):
    """A partition of the points."""

    centres: Float32[np.ndarray, "clusters dim"]
    labels: Int32[np.ndarray, " points"]  # row of the nearest centre; the lower row if two are equally near
    inertia: float  # sum of the squared distances to those centres
    iterations: int  # of Lloyd's algorithm


def kmeans(points: Float[np.ndarray, "points dim"], clusters: int, *, restarts: int, seed: int) -> Clustering:
    """Runs k-means several times and returns the partition with the lowest inertia; of equals, the first.

    Args:
        points: finite vectors.
        clusters: from 1 to the number of points. Some clusters stay empty if there are fewer distinct points.
        restarts: number of runs, at least 1.
        seed: of the initial centres, from 0 to 2**32 - 1. The same seed gives the same result.
    """
    keys = jax.random.split(jax.random.key(seed), restarts)
    return min((lloyd(points, initial_centres(points, clusters, key=key)) for key in keys), key=lambda run: run.inertia)


def initial_centres(
    points: Float[np.ndarray, "points dim"], clusters: int, *, key: Key[Scalar, ""]
) -> Float32[np.ndarray, "clusters dim"]:
    """Chooses points as initial centres by greedy k-means++.

    D² is a point's squared distance to the nearest centre. For each centre, 2 + ⌊ln clusters⌋ candidates are sampled
    with probability proportional to D². The candidate that lowers the sum of D² most becomes the centre (Arthur and
    Vassilvitskii, *k-means++: The Advantages of Careful Seeding*, SODA 2007, sections 2.2 and 7).

    A round samples all its candidates before it adds its centres. Rejection sampling corrects for that: a candidate is
    kept with probability (D² now) / (D² at the start of the round). The idea is that of Cohen-Addad et al., *Fast and
    Accurate k-means++ via Rejection Sampling*, NeurIPS 2020.

    Args:
        points: finite vectors.
        clusters: from 1 to the number of points.
        key: of the random draws.

    Returns:
        Rows of `points`. If there are fewer distinct points than clusters, the first chosen row is repeated.
    """
    _, centred = _centre(points)
    rows = _seed(centred, key, clusters=clusters, trials=2 + int(math.log(clusters)))
    return points[np.asarray(rows)].astype(np.float32)


def lloyd(
    points: Float[np.ndarray, "points dim"],
    centres: Float[np.ndarray, "clusters dim"],
    *,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
) -> Clustering:
    """Runs Lloyd's algorithm: assigns points to the nearest centre and moves centres to the means of their points.

    A centre without points moves to the point that is farthest from its own centre, as in scikit-learn.

    Args:
        points: finite vectors.
        centres: initial centres.
        max_iterations: the limit on iterations.
        tolerance: relative to the points' mean variance. The run stops if the squared moves of all centres sum to at
            most tolerance × mean variance, or if no label changes.
    """
    mean, centred = _centre(points)
    variance = float(np.mean(np.var(centred, 0)))
    run = _lloyd(centred, (centres - mean).astype(np.float32), max_iterations, tolerance * variance)
    found, labels = np.asarray(run.centres), np.asarray(run.labels)
    inertia = np.sum(np.square(centred - found[labels]), dtype=np.float64)
    return Clustering((found + mean).astype(np.float32), labels, float(inertia), int(run.iterations))


def _centre(
    points: Float[np.ndarray, "points dim"],
) -> tuple[Float[np.ndarray, " dim"], Float32[np.ndarray, "points dim"]]:
    """Returns the mean and the points minus the mean.

    Without that, distances much smaller than the mean would be lost to rounding.
    """
    mean = points.mean(0, dtype=np.float64)
    return mean, (points - mean).astype(np.float32)


# GPUs add atomically in any order, so sums could differ in their last bit from run to run, and so could the clusters.
_jit = functools.partial(jax.jit, compiler_options={"xla_gpu_deterministic_ops": True})


class _Seeding(NamedTuple):
    """State of the seeding: the points that are centres so far."""

    key: Key[Array, ""]
    chosen: Int32[Array, ""]  # number of centres so far
    rows: Int32[Array, " clusters"]  # rows of the points chosen as centres; the unused rest repeats the first
    nearest: Float32[Array, " padded"]  # D²: squared distance of each point to the nearest centre


class _Pool(NamedTuple):
    """The candidates of a round, sampled by D² at its start."""

    unused: Bool[Array, " candidates"]
    nearest: Float32[Array, " candidates"]  # D² now


@functools.partial(_jit, static_argnames=("clusters", "trials"))
def _seed(
    points: Float32[Array, "points dim"], key: Key[Array, ""], *, clusters: int, trials: int
) -> Int32[Array, " clusters"]:
    most = min(MOST_ADDED, 1 + clusters // CENTRES_PER_ADDED)
    key, first_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, len(points))
    nearest = _squared_distances(points, points[first][None])[:, 0]

    # Padding has a D² of 0. So it is never sampled and adds nothing to the gains.
    block = min(len(points), max(1, BLOCK_DISTANCES // (most * trials)))
    padding = (0, -len(points) % block)
    blocks = jnp.pad(points, (padding, (0, 0))).reshape(-1, block, points.shape[1])
    start = _Seeding(key, jnp.int32(1), jnp.full(clusters, first), jnp.pad(nearest, padding))

    def unfinished(state: _Seeding) -> Bool[Array, ""]:
        return (state.chosen < clusters) & jnp.any(state.nearest > 0)

    add_round = functools.partial(_add_round, blocks, trials=trials, most=most)
    return jax.lax.while_loop(unfinished, add_round, start).rows


def _add_round(blocks: Float32[Array, "blocks rows dim"], state: _Seeding, *, trials: int, most: int) -> _Seeding:
    points, clusters = blocks.reshape(-1, blocks.shape[-1]), len(state.rows)
    key, draw_key, keep_key = jax.random.split(state.key, 3)

    mass = jnp.cumsum(state.nearest)
    drawn = jax.random.uniform(draw_key, (most * trials,), maxval=mass[-1])
    # A draw that rounds up to the total mass would be out of range.
    candidates = jnp.minimum(jnp.searchsorted(mass, drawn, side="right"), len(points) - 1)
    vectors, at_start = points[candidates], state.nearest[candidates]
    gains, between = _gains(blocks, state.nearest, vectors), _squared_distances(vectors, vectors)
    threshold = at_start * jax.random.uniform(keep_key, at_start.shape)

    def choose(pool: _Pool, _: None) -> tuple[_Pool, tuple[Int32[Array, ""], Bool[Array, ""]]]:
        # One random number per candidate is enough: D² only falls, so a rejected candidate stays rejected.
        unused = pool.unused & (pool.nearest > threshold)
        place = jnp.cumsum(unused)
        best = jnp.argmax(jnp.where(unused & (place <= trials), gains, -1))
        enough = place[-1] >= trials
        nearest = jnp.where(enough, jnp.minimum(pool.nearest, between[best]), pool.nearest)
        return _Pool(unused & (place > trials), nearest), (best, enough)

    _, (best, enough) = jax.lax.scan(choose, _Pool(jnp.full(at_start.shape, True), at_start), length=most)
    place = state.chosen + jnp.arange(most)
    added = enough & (place < jnp.minimum(clusters, state.chosen + 1 + state.chosen // CENTRES_PER_ADDED))
    distances = jnp.where(added, _squared_distances(points, vectors[best]), jnp.inf)
    return _Seeding(
        key,
        state.chosen + jnp.sum(added),
        state.rows.at[jnp.where(added, place, clusters)].set(candidates[best], mode="drop"),
        jnp.minimum(state.nearest, jnp.min(distances, 1)),
    )


def _gains(
    blocks: Float32[Array, "blocks rows dim"],
    nearest: Float32[Array, " points"],
    candidates: Float32[Array, "candidates dim"],
) -> Float32[Array, " candidates"]:
    """Computes how much each candidate, if it became a centre, would lower the sum of `nearest`."""

    def gains(block: tuple[Float32[Array, "rows dim"], Float32[Array, " rows"]]) -> Float32[Array, " candidates"]:
        points, nearest = block
        return jnp.sum(jnp.maximum(nearest[:, None] - _squared_distances(points, candidates), 0), 0)

    return jnp.sum(jax.lax.map(gains, (blocks, nearest.reshape(len(blocks), -1))), 0)


def _squared_distances(
    points: Float32[Array, "points dim"], others: Float32[Array, "others dim"]
) -> Float32[Array, "points others"]:
    products = jnp.matmul(points, others.T, precision="highest")
    norms = jnp.sum(jnp.square(points), 1)[:, None] + jnp.sum(jnp.square(others), 1)[None]
    return jnp.maximum(norms - 2 * products, 0)


class _Lloyd(NamedTuple):
    centres: Float32[Array, "clusters dim"]
    labels: Int32[Array, " points"]
    iterations: Int32[Array, ""]
    settled: Bool[Array, ""]


@_jit
def _lloyd(
    points: Float32[Array, "points dim"],
    centres: Float32[Array, "clusters dim"],
    max_iterations: Int32[Array, ""],
    least_move: Float32[Array, ""],
) -> _Lloyd:
    def iterate(run: _Lloyd) -> _Lloyd:
        centres = _means(points, run.centres, run.labels)
        labels = _assign(points, centres)
        moved = jnp.sum(jnp.square(centres - run.centres))
        settled = (moved <= least_move) | jnp.all(labels == run.labels)
        return _Lloyd(centres, labels, run.iterations + 1, settled)

    def unfinished(run: _Lloyd) -> Bool[Array, ""]:
        return ~run.settled & (run.iterations < max_iterations)

    start = _Lloyd(centres, _assign(points, centres), jnp.int32(0), jnp.bool(False))
    return jax.lax.while_loop(unfinished, iterate, start)


def _assign(points: Float32[Array, "points dim"], centres: Float32[Array, "clusters dim"]) -> Int32[Array, " points"]:
    half_norms = jnp.sum(jnp.square(centres), 1) / 2

    def nearest(point: Float32[Array, " dim"]) -> Int32[Array, ""]:
        # x·c − ‖c‖²/2 orders the centres as −‖x − c‖² does.
        closeness = jnp.matmul(centres, point, precision="highest") - half_norms
        # Two plain reductions. With XLA's argmax, products and reductions together take twice as long on a CPU.
        return jnp.min(jnp.where(closeness == jnp.max(closeness), jnp.arange(len(centres)), len(centres)))

    return jax.lax.map(nearest, points, batch_size=max(1, BLOCK_DISTANCES // len(centres)))


def _means(
    points: Float32[Array, "points dim"], centres: Float32[Array, "clusters dim"], labels: Int32[Array, " points"]
) -> Float32[Array, "clusters dim"]:
    """Computes the mean of each cluster's points, after moving one point to each empty cluster."""
    sums = jnp.zeros_like(centres).at[labels].add(points)
    counts = jnp.zeros(len(centres)).at[labels].add(1)

    def relocate() -> tuple[Float32[Array, "clusters dim"], Float32[Array, " clusters"]]:
        distances = jnp.sum(jnp.square(points - centres[labels]), 1)
        empty = counts == 0
        taken = jnp.argsort(-distances)[jnp.cumsum(empty) - 1]
        given = (empty & (distances[taken] > 0)).astype(jnp.float32)
        vectors = given[:, None] * points[taken]
        giver = labels[taken]
        return sums.at[giver].add(-vectors) + vectors, counts.at[giver].add(-given) + given

    sums, counts = jax.lax.cond(jnp.any(counts == 0), relocate, lambda: (sums, counts))
    # A centre keeps its position if its only point was moved away, or if there was no point to move to it.
    return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

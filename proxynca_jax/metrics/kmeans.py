"""k-means on the device: greedy k-means++ centres, then Lloyd's iterations.

What it computes is what scikit-learn's `KMeans` computes. Seeding, which takes that nearly all its time where clusters
are many, adds centres by the round instead of one by one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, Scalar

BLOCK_DISTANCES = 2**19  # held at a time; more leave the processor's cache
MOST_ADDED = 32  # centres that a round of seeding adds at most
# Up to this many centres a round of seeding adds one, up to twice as many two, and so on. What a candidate gains is
# reckoned before the round, so rounds that add a larger share choose worse. On 2,000 points and 200 clusters the sum of
# D² was 5.5 % above that of rounds of one at 8, 1.5 % at 32 and 1.3 % at 64.
CENTRES_PER_ADDED = 32


class Clustering(NamedTuple):
    """A partition of the points."""

    centres: Float32[np.ndarray, "clusters dim"]
    labels: Int32[np.ndarray, " points"]  # row of the nearest centre; the lower row at the same distance
    inertia: float  # sum of the squared distances to those centres
    iterations: int  # moves of the centres


def kmeans(points: Float[np.ndarray, "points dim"], clusters: int, *, restarts: int, seed: int) -> Clustering:
    """Runs k-means several times and keeps the partition of lowest inertia, the first of equals.

    Args:
        points: finite vectors.
        clusters: from 1 to the number of points. Fewer are filled where fewer points are distinct.
        restarts: number of runs, at least 1.
        seed: of the initial centres, from 0 to 2**32 - 1. Decides the result.
    """
    keys = jax.random.split(jax.random.key(seed), restarts)
    return min((lloyd(points, initial_centres(points, clusters, key=key)) for key in keys), key=lambda run: run.inertia)


def initial_centres(
    points: Float[np.ndarray, "points dim"], clusters: int, *, key: Key[Scalar, ""]
) -> Float32[np.ndarray, "clusters dim"]:
    """Chooses points as centres by greedy k-means++.

    Each centre is the best of 2 + ⌊ln clusters⌋ candidates, drawn with probability in proportion to D², the squared
    distance to the nearest centre, by how much it lowers the sum of D² (Arthur and Vassilvitskii, *k-means++: The
    Advantages of Careful Seeding*, SODA 2007, sections 2.2 and 7). The candidates of a round are drawn before any of
    its centres is added; keeping each with probability D² now / D² then makes them draws by D² now (the idea of
    Cohen-Addad et al., *Fast and Accurate k-means++ via Rejection Sampling*, NeurIPS 2020).

    Args:
        points: finite vectors.
        clusters: from 1 to the number of points.
        key: decides the draw.

    Returns:
        Rows of `points`; the first that was chosen fills the places that are left when every point is a centre.
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
    """Moves centres to the means of their points until nothing changes.

    A centre without points moves to the point that is farthest from its own centre, as in scikit-learn.

    Args:
        points: finite vectors.
        centres: where to start.
        max_iterations: stop after so many.
        tolerance: stop once the squared moves of all centres sum to at most this share of the points' mean variance.
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
    """The mean, and the points around it: distances that are small beside it would drown in its rounding."""
    mean = points.mean(0, dtype=np.float64)
    return mean, (points - mean).astype(np.float32)


# A sum whose terms race for their turn differs from run to run in its last bit, and so might the clusters.
_jit = functools.partial(jax.jit, compiler_options={"xla_gpu_deterministic_ops": True})


class _Seeding(NamedTuple):
    """Which points are centres so far."""

    key: Key[Array, ""]
    chosen: Int32[Array, ""]
    rows: Int32[Array, " clusters"]  # of the points, `chosen` of them; the rest repeat the first
    nearest: Float32[Array, " padded"]  # D², squared distance of each point to the nearest of them


class _Pool(NamedTuple):
    """The candidates of a round: draws by the D² of its start."""

    left: Bool[Array, " candidates"]  # not used yet
    nearest: Float32[Array, " candidates"]  # D² now


@functools.partial(_jit, static_argnames=("clusters", "trials"))
def _seed(
    points: Float32[Array, "points dim"], key: Key[Array, ""], *, clusters: int, trials: int
) -> Int32[Array, " clusters"]:
    most = min(MOST_ADDED, 1 + clusters // CENTRES_PER_ADDED)
    key, first_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, len(points))
    nearest = _squared_distances(points, points[first][None])[:, 0]

    # Rows of padding have a D² of 0: none is drawn, and nothing is gained on them.
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
    # A draw that rounds up to the whole mass would be past the end.
    candidates = jnp.minimum(jnp.searchsorted(mass, drawn, side="right"), len(points) - 1)
    vectors, then = points[candidates], state.nearest[candidates]
    gains, between = _gains(blocks, state.nearest, vectors), _squared_distances(vectors, vectors)
    threshold = then * jax.random.uniform(keep_key, then.shape)

    def choose(pool: _Pool, _: None) -> tuple[_Pool, tuple[Int32[Array, ""], Bool[Array, ""]]]:
        # One draw decides for good: D² only falls, and so does the probability of having been kept.
        left = pool.left & (pool.nearest > threshold)
        place = jnp.cumsum(left)
        best = jnp.argmax(jnp.where(left & (place <= trials), gains, -1))
        enough = place[-1] >= trials
        nearest = jnp.where(enough, jnp.minimum(pool.nearest, between[best]), pool.nearest)
        return _Pool(left & (place > trials), nearest), (best, enough)

    _, (best, enough) = jax.lax.scan(choose, _Pool(jnp.full(then.shape, True), then), length=most)
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
    """By how much each candidate, as a centre, would lower the sum of `nearest`."""

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
        # Two plain reductions: with XLA's argmax, a CPU takes twice as long for the whole, products included.
        return jnp.min(jnp.where(closeness == jnp.max(closeness), jnp.arange(len(centres)), len(centres)))

    return jax.lax.map(nearest, points, batch_size=max(1, BLOCK_DISTANCES // len(centres)))


def _means(
    points: Float32[Array, "points dim"], centres: Float32[Array, "clusters dim"], labels: Int32[Array, " points"]
) -> Float32[Array, "clusters dim"]:
    """Means of the clusters' points, after each cluster without points has been given one."""
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
    # A cluster whose only point was taken, or that found none to take, stays where it is.
    return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

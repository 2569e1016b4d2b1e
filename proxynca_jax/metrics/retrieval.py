"""Recall@K, MAP@R and R-precision by exact nearest-neighbour search, sharded over all devices.

Memory grows linearly with the number of images. The gallery is a set of its own, or the queries themselves, each
without itself. Similarities are float32 products of full precision. So two neighbours may swap ranks if their
similarities differ by no more than rounding.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from proxynca_jax.metrics.vectors import DISTANCES as DISTANCES
from proxynca_jax.metrics.vectors import Images, LabelledVectors, prepare

NO_MATCH = -1  # rank of a query whose class has no other image in the gallery


class _Blocks(NamedTuple):
    """Images sorted by class and cut into blocks. NaN pads the last block, because no comparison with NaN is true."""

    vectors: Float32[np.ndarray | Array, "blocks block dim"]
    classes: Int32[np.ndarray | Array, "blocks block"]


class _Found(NamedTuple):
    """The results so far of all queries or, without the leading axis, the results of a tile for a block of them."""

    best: Float32[Array, "*blocks block"]  # similarity of the nearest positive, an image of the query's class
    closer: Int32[Array, "*blocks block"]  # number of negatives, images of other classes, that are as close


class _Queries(NamedTuple):
    """All queries or, without the leading axis, one query."""

    vectors: Float32[np.ndarray | Array, "*queries dim"]
    classes: Int32[np.ndarray | Array, "*queries"]
    matches: Int32[np.ndarray | Array, "*queries"]  # R: number of other images of its class in the gallery
    itself: Int32[np.ndarray | Array, "*queries"]  # its row in the gallery; out of range if it is not there


def ranks(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: LabelledVectors | None = None,
    distance: str = "cosine",
    block_size: int = 1024,
    mesh: Mesh | None = None,
) -> Int32[np.ndarray, " queries"]:
    """Computes each query's rank: the number of images of other classes as close as the nearest of its own class.

    Ties go against the query: an image of another class at exactly that distance counts as closer. So a network that
    gives all images the same embedding has the worst ranks, and scores never depend on the order of the images.

    Args:
        embeddings: one finite vector per query. With `cosine` its length does not matter, and a zero vector is
            orthogonal to all others.
        labels: class of each query, any integers.
        gallery: vectors and labels of the images to search. None: the queries. Each query is then excluded from its own
            search by its row, so its duplicates can be found.
        distance: one of DISTANCES.
        block_size: queries and gallery images per matrix product; takes about 12 · block_size² bytes on each device.
        mesh: the devices that share the work. Their number does not change the result. None: all local devices.

    Returns:
        From 0, the nearest image is of the query's class, to the number of images of other classes. NO_MATCH if the
        gallery has no image of the class.

    Raises:
        UserError: no query has a match, there are more or fewer labels than vectors, an embedding is not finite, or the
            distance is unknown.
    """
    queries, others, matches = prepare(embeddings, labels, gallery, distance)
    closer = _count_closer(queries, others, gallery is None, block_size, mesh or _local_devices())
    return np.where(matches > 0, closer, np.int32(NO_MATCH))


def recall_at_k(ranks: Int[np.ndarray, " queries"], ks: Iterable[int]) -> dict[int, float]:
    """Computes Recall@K: the share of queries with an image of their class among the K nearest.

    Args:
        ranks: from `ranks`. Queries of rank NO_MATCH are left out.
        ks: values of K, at least 1. A K larger than the gallery gives 1.

    Returns:
        For each K a share from 0 to 1.
    """
    matched = ranks[ranks != NO_MATCH]
    return {k: float(np.mean(matched < k)) for k in ks}


def precisions_at_r(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: LabelledVectors | None = None,
    distance: str = "cosine",
    block_size: int = 256,
    mesh: Mesh | None = None,
) -> tuple[Float32[np.ndarray, " queries"], Float32[np.ndarray, " queries"]]:
    """Computes average precision at R and R-precision of each query.

    R is the number of other images of the query's class in the gallery. Both scores are defined in section 3.2 of *A
    Metric Learning Reality Check* (Musgrave et al., arXiv 2003.08505). Ties go against the query, as in `ranks`.

    Args:
        embeddings: as for `ranks`.
        labels: as for `ranks`.
        gallery: as for `ranks`.
        distance: as for `ranks`.
        block_size: queries per matrix product; takes about 8 · block_size · gallery bytes on each device, and several
            times that if a class is a large share of the gallery.
        mesh: the devices that share the queries. Their number does not change the result. None: all local devices.

    Returns:
        Average precision, 1/R · Σ precision at i over the ranks i ≤ R with an image of the query's class. R-precision,
        the share of the class among the R nearest. Both are from 0 to 1, and NaN if the gallery has no image of the
        class.

    Raises:
        UserError: as for `ranks`.
    """
    images, others, matches = prepare(embeddings, labels, gallery, distance)
    itself = np.arange(len(labels)) if gallery is None else np.full(len(labels), len(others.vectors))
    queries = _Queries(*images, matches, itself.astype(np.int32))
    mesh = mesh or _local_devices()
    # All products have the same shape, so a query's result does not depend on its position or the number of devices.
    padding = -len(labels) % (block_size * mesh.size)
    queries = _Queries(*(np.pad(field, [(0, padding)] + [(0, 0)] * (field.ndim - 1)) for field in queries))
    average, share = _precisions(queries, others, largest_r=int(matches.max()), block_size=block_size, mesh=mesh)
    return np.asarray(average)[: len(labels)], np.asarray(share)[: len(labels)]


def mean_precisions(
    average_precision: Float32[np.ndarray, " queries"], r_precision: Float32[np.ndarray, " queries"]
) -> dict[str, float]:
    """Averages the scores of `precisions_at_r` over the queries that have a match.

    Returns:
        `map_at_r` and `r_precision`, from 0 to 1.
    """
    scores = {"map_at_r": average_precision, "r_precision": r_precision}
    return {name: float(np.nanmean(values, dtype=np.float64)) for name, values in scores.items()}


def _local_devices() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("devices",))


def _count_closer(
    queries: Images, gallery: Images, symmetric: bool, block_size: int, mesh: Mesh
) -> Int32[np.ndarray, " queries"]:
    """Computes the ranks. They are arbitrary if there is no match. `symmetric`: the gallery is the queries."""
    order, rows = _in_blocks(queries, block_size)
    columns = rows if gallery is queries else _in_blocks(gallery, block_size)[1]
    tiles, near = _tiles(rows, columns, symmetric)
    places = rows.classes.shape
    found = _Found(jnp.full(places, -jnp.inf, jnp.float32), jnp.zeros(places, jnp.int32))
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows, tiles, found = jax.device_put((rows, tiles, found), everywhere)
    columns = rows if gallery is queries else jax.device_put(columns, everywhere)
    # First find the nearest positives, then count what is as close. One compiled program does both. In the product of
    # another program the last bit may differ, and a tie would not be one.
    for counting, start, stop in ((False, 0, near), (True, near, len(tiles))):
        span = np.array([start, stop], np.int32)
        found = _visit(rows, columns, tiles, span, counting, found, symmetric=symmetric, mesh=mesh)
    closer = np.empty(len(order), np.int32)
    closer[order] = np.ravel(found.closer)[: len(order)]
    return closer


def _in_blocks(images: Images, block_size: int) -> tuple[Int[np.ndarray, " rows"], _Blocks]:
    """Sorts images by class into blocks. Returns the order, image by image, and the blocks."""
    order = np.argsort(images.classes, kind="stable")
    padding = -len(order) % block_size
    vectors = np.pad(images.vectors[order], ((0, padding), (0, 0)), constant_values=np.nan)
    classes = np.pad(images.classes[order], (0, padding), constant_values=-1)
    return order, _Blocks(vectors.reshape(-1, block_size, vectors.shape[1]), classes.reshape(-1, block_size))


def _tiles(rows: _Blocks, columns: _Blocks, symmetric: bool) -> tuple[Int32[np.ndarray, "tiles 2"], int]:
    """Returns the pairs of blocks to multiply, first those that share a class and then all, and how many share one."""
    (first, last), (first_column, last_column) = ((x.classes[:, 0], x.classes.max(1)) for x in (rows, columns))
    near = np.less_equal.outer(first, last_column) & np.greater_equal.outer(last, first_column)
    # A similarity counts for both of its images, so half of the pairs are enough.
    needed = np.triu(np.ones_like(near)) if symmetric else np.ones_like(near)
    nearest, every = np.argwhere(near & needed), np.argwhere(needed)
    return np.concatenate([nearest, every]).astype(np.int32), len(nearest)


@functools.partial(jax.jit, static_argnames=("symmetric", "mesh"))
def _visit(
    rows: _Blocks,
    columns: _Blocks,
    tiles: Int32[Array, "tiles 2"],
    span: Int32[np.ndarray | Array, "2"],
    counting: bool | Bool[Array, ""],
    found: _Found,
    *,
    symmetric: bool,
    mesh: Mesh,
) -> _Found:
    """Finds the nearest positives or, if `counting`, counts closer images, in tiles[span[0] : span[1]]."""

    def on_one_device(rows, columns, tiles, span, counting, found):
        start = span[0] + jax.lax.axis_index(mesh.axis_names)
        steps = (span[1] - start + mesh.size - 1) // mesh.size

        def visit(step, found: _Found) -> _Found:
            row, column = tiles[start + step * mesh.size]
            return _visit_tile(rows, columns, row, column, counting, found, symmetric)

        best, closer = jax.lax.fori_loop(0, steps, visit, found)
        return _Found(jax.lax.pmax(best, mesh.axis_names), jax.lax.psum(closer, mesh.axis_names))

    replicated = PartitionSpec()
    # The check requires initial values of the loop that vary between devices.
    program = jax.shard_map(on_one_device, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False)
    return program(rows, columns, tiles, span, counting, found)


def _visit_tile(
    rows: _Blocks,
    columns: _Blocks,
    row: Int32[Array, ""],
    column: Int32[Array, ""],
    counting: Bool[Array, ""],
    found: _Found,
    symmetric: bool,
) -> _Found:
    similarity = jnp.matmul(rows.vectors[row], columns.vectors[column].T, precision="highest")
    place = jnp.arange(len(similarity))
    sides = [(row, 1)]  # a block of queries, and the axis of the tile to reduce for it
    if symmetric:
        on_diagonal = row == column
        similarity = similarity.at[place, jnp.where(on_diagonal, place, len(place))].set(-jnp.inf, mode="drop")
        # A diagonal tile has the same similarities in its columns as in its rows. An index out of range drops them.
        sides.append((jnp.where(on_diagonal, len(found.best), column), 0))

    same_class = rows.classes[row][:, None] == columns.classes[column][None]

    def count() -> list[_Found]:
        above = [(similarity >= jnp.expand_dims(found.best[block], axis)) & ~same_class for block, axis in sides]
        # Floats are exact up to 2²⁴, and XLA adds them faster than integers on CPUs.
        sums = [jnp.sum(is_above, axis, dtype=jnp.float32) for is_above, (_, axis) in zip(above, sides, strict=True)]
        return [_Found(jnp.full_like(closer, -jnp.inf), closer.astype(jnp.int32)) for closer in sums]

    def find_best() -> list[_Found]:
        own = jnp.where(same_class, similarity, -jnp.inf)
        return [_Found(jnp.max(own, axis), jnp.zeros_like(place)) for _, axis in sides]

    # Both branches return the tile's results only. If they returned all of `found`, each tile would copy it.
    for (block, _), (best, closer) in zip(sides, jax.lax.cond(counting, count, find_best), strict=True):
        found = _Found(found.best.at[block].max(best, mode="drop"), found.closer.at[block].add(closer, mode="drop"))
    return found


@functools.partial(jax.jit, static_argnames=("largest_r", "block_size", "mesh"))
def _precisions(
    queries: _Queries, gallery: Images, *, largest_r: int, block_size: int, mesh: Mesh
) -> tuple[Float32[Array, " queries"], Float32[Array, " queries"]]:
    place = jnp.arange(1, largest_r + 1)

    def of_all(queries: _Queries, gallery: Images) -> tuple[Float32[Array, " queries"], Float32[Array, " queries"]]:
        def of_one(query: _Queries) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
            similarity = jnp.matmul(query.vectors, gallery.vectors.T, precision="highest")
            similarity = similarity.at[query.itself].set(-jnp.inf, mode="drop")
            # One float lower, positives come after negatives of the same similarity. Below 0 the next float is one that
            # devices may take for 0.
            same_class = gallery.classes == query.classes
            lower = jnp.where(similarity == 0, -jnp.finfo(jnp.float32).tiny, jnp.nextafter(similarity, -jnp.inf))
            similarity = jnp.where(same_class, lower, similarity)
            _, nearest = jax.lax.top_k(similarity, largest_r)
            hit: Bool[Array, " places"] = (same_class[nearest]) & (place <= query.matches)
            hits = jnp.cumsum(hit)
            # Without a match both are 0 / 0 = NaN.
            return jnp.sum(jnp.where(hit, hits / place, 0)) / query.matches, hits[-1] / query.matches

        return jax.lax.map(of_one, queries, batch_size=block_size)

    sharded = PartitionSpec(mesh.axis_names)
    return jax.shard_map(of_all, mesh=mesh, in_specs=(sharded, PartitionSpec()), out_specs=sharded)(queries, gallery)

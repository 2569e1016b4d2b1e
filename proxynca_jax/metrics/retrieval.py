"""Recall@K, MAP@R and R-precision from exact neighbours, a block of queries at a time.

The gallery is the queries themselves, each without itself, or a set of its own. Similarities are float32 products of
full precision, so neighbours that differ by no more than their rounding may change places.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from proxynca_jax.errors import UserError, nearest

DISTANCES = ("cosine", "squared_euclidean")
NO_MATCH = -1  # rank of a query that has no image of its class to find
LabelledVectors = tuple[Float[np.ndarray, "gallery dim"], Int[np.ndarray, " gallery"]]


class _Queries(NamedTuple):
    """The queries or, without the leading axis, one of them."""

    vectors: Float32[np.ndarray | Array, "*queries dim"]
    itself: Int32[np.ndarray | Array, "*queries"]  # its index in the gallery; past the end if it is not there
    class_start: Int32[np.ndarray | Array, "*queries"]  # where its class begins in `_Gallery.by_class`
    class_size: Int32[np.ndarray | Array, "*queries"]  # images of its class in the gallery, itself included
    matches: Int32[np.ndarray | Array, "*queries"]  # R, the same without itself


class _Gallery(NamedTuple):
    vectors: Float32[np.ndarray | Array, "gallery dim"]
    class_start: Int32[np.ndarray | Array, " gallery"]  # stands for the label, which may not fit into 32 bits
    by_class: Int32[np.ndarray | Array, " gallery"]  # indices of the images, those of a class next to each other


def ranks(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: LabelledVectors | None = None,
    distance: str = "cosine",
    block_size: int = 256,
) -> Int32[np.ndarray, " queries"]:
    """Counts, for each query, the images of other classes that are nearer than the nearest of its own.

    An image of another class at the very distance of that nearest one does not count: ties go to the query's class.

    Args:
        embeddings: one finite vector a query. With `cosine` its length does not matter, and a zero vector is at right
            angles to all others.
        labels: class of each query, any integers.
        gallery: vectors and labels of the images to find. None: the queries, where each is left out of its own search
            by its row, so that a duplicate of it can be found.
        distance: one of DISTANCES.
        block_size: queries per matrix product; takes about 8 · block_size · gallery bytes.

    Returns:
        From 0, the nearest image is of the query's class, to the number of images of other classes; NO_MATCH where the
        gallery has no image of the class.

    Raises:
        UserError: no query has a match, an embedding is not finite, or the distance is unknown.
    """
    queries, others = _prepare(embeddings, labels, gallery, distance)
    found = _ranks(queries, others, largest_class=int(queries.class_size.max()), block_size=block_size)
    return np.where(queries.matches > 0, np.asarray(found), np.int32(NO_MATCH))


def recall_at_k(ranks: Int[np.ndarray, " queries"], ks: Iterable[int]) -> dict[str, float]:
    """The share of queries with an image of their class among the K nearest, for every K.

    Args:
        ranks: from `ranks`. Queries of rank NO_MATCH are left out.
        ks: values of K, at least 1; one beyond the size of the gallery gives 1.

    Returns:
        `recall_at_<K>`, from 0 to 1.
    """
    matched = ranks[ranks != NO_MATCH]
    return {f"recall_at_{k}": float(np.mean(matched < k)) for k in ks}


def precisions_at_r(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: LabelledVectors | None = None,
    distance: str = "cosine",
    block_size: int = 256,
) -> tuple[Float32[np.ndarray, " queries"], Float32[np.ndarray, " queries"]]:
    """Scores the R nearest images of each query, where R is the number of images of its class that it could find.

    Section 3.2 of *A Metric Learning Reality Check* (Musgrave et al., arXiv 2003.08505). Of images at the same distance
    the one of lower row comes first.

    Args:
        embeddings: as for `ranks`.
        labels: as for `ranks`.
        gallery: as for `ranks`.
        distance: as for `ranks`.
        block_size: as for `ranks`; a class that is a large share of the gallery takes several times the memory.

    Returns:
        Average precision, 1/R · Σ over the ranks i ≤ R that hold an image of the class of the precision at i, whose
        mean over the queries is MAP@R; and R-precision, the share of the class among the R nearest. Both from 0 to 1,
        NaN where the gallery has no image of the class.

    Raises:
        UserError: as for `ranks`.
    """
    queries, others = _prepare(embeddings, labels, gallery, distance)
    average, r_precision = _precisions(queries, others, largest_r=int(queries.matches.max()), block_size=block_size)
    return np.asarray(average), np.asarray(r_precision)


@functools.partial(jax.jit, static_argnames=("largest_class", "block_size"))
def _ranks(queries: _Queries, gallery: _Gallery, *, largest_class: int, block_size: int) -> Int32[Array, " queries"]:
    member = jnp.arange(largest_class)

    def rank(query: _Queries) -> Int32[Array, ""]:
        similarity = _similarity(query, gallery)
        # Taken from the product that it is compared with: the last bit of another could make it its own rival.
        own = similarity[gallery.by_class[query.class_start + member]]
        best = jnp.max(jnp.where(member < query.class_size, own, -jnp.inf))
        # Nothing of the query's own class is above its best, so all that is belongs to other classes.
        return jnp.sum(similarity > best)

    return jax.lax.map(rank, queries, batch_size=block_size)


@functools.partial(jax.jit, static_argnames=("largest_r", "block_size"))
def _precisions(
    queries: _Queries, gallery: _Gallery, *, largest_r: int, block_size: int
) -> tuple[Float32[Array, " queries"], Float32[Array, " queries"]]:
    place = jnp.arange(1, largest_r + 1)

    def precisions(query: _Queries) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
        _, found = jax.lax.top_k(_similarity(query, gallery), largest_r)
        hit: Bool[Array, " places"] = (gallery.class_start[found] == query.class_start) & (place <= query.matches)
        hits = jnp.cumsum(hit)
        # Without a match both are 0 / 0, NaN.
        return jnp.sum(jnp.where(hit, hits / place, 0)) / query.matches, hits[-1] / query.matches

    return jax.lax.map(precisions, queries, batch_size=block_size)


def _similarity(query: _Queries, gallery: _Gallery) -> Float32[Array, " gallery"]:
    similarity = jnp.matmul(query.vectors, gallery.vectors.T, precision="highest")
    return similarity.at[query.itself].set(-jnp.inf, mode="drop")


def _prepare(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    gallery: LabelledVectors | None,
    distance: str,
) -> tuple[_Queries, _Gallery]:
    """Checks what the user gave and sorts the gallery by class."""
    others, other_labels = (embeddings, labels) if gallery is None else gallery
    _check_finite(embeddings, "query")
    _check_finite(others, "gallery")
    by_class = np.argsort(other_labels, kind="stable")
    start = np.searchsorted(other_labels, labels, "left", by_class)
    size = np.searchsorted(other_labels, labels, "right", by_class) - start
    if gallery is None:
        matches, itself = size - 1, np.arange(len(labels))
    else:
        matches, itself = size, np.full(len(labels), len(others))
    if not np.any(matches > 0):
        raise UserError(
            f"None of the {len(labels)} queries has another image of its class among the {len(others)} of the gallery, "
            "so there is nothing to find. Evaluate on classes of at least two images."
        )
    vectors, other_vectors = _to_inner_products(embeddings, others, distance)
    other_start = np.searchsorted(other_labels, other_labels, "left", by_class)
    queries = _Queries(vectors, *(array.astype(np.int32) for array in (itself, start, size, matches)))
    return queries, _Gallery(other_vectors, other_start.astype(np.int32), by_class.astype(np.int32))


def _check_finite(embeddings: Float[np.ndarray, "rows dim"], role: str):
    finite = np.isfinite(embeddings).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(
            f"Row {row} of the {len(embeddings)} {role} embeddings is not finite: {embeddings[row]}. Neighbours need "
            "finite numbers. If training has diverged, lower its learning rate and start from an earlier checkpoint."
        )


def _to_inner_products(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"], distance: str
) -> tuple[Float32[np.ndarray, "queries dim_out"], Float32[np.ndarray, "gallery dim_out"]]:
    """Vectors whose inner products order the gallery as the distances do, largest first."""
    # A power of two changes no digit, and keeps squares of the largest floats from overflowing.
    _, exponent = np.frexp(max(np.abs(queries).max(), np.abs(gallery).max()))
    queries, gallery = (np.ldexp(vectors.astype(np.float64), -exponent) for vectors in (queries, gallery))
    if distance == "cosine":
        queries, gallery = _unit_vectors(queries), _unit_vectors(gallery)
    elif distance == "squared_euclidean":
        # −‖q − g‖² / 2 = q·g − ‖g‖² / 2 − ‖q‖² / 2, whose last term is the same for the whole gallery.
        queries = np.pad(queries, ((0, 0), (0, 1)), constant_values=1)
        gallery = np.column_stack([gallery, -np.sum(np.square(gallery), 1) / 2])
    else:
        raise UserError(f"Unknown distance {distance!r}: {nearest(distance, DISTANCES)}")
    return queries.astype(np.float32), gallery.astype(np.float32)


def _unit_vectors(vectors: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)

"""Recall@K, MAP@R and R-precision from exact neighbours, a block of queries at a time.

Each image in turn is the query and all others are the gallery, or the gallery is a set of its own. Similarities are
float32 products of full precision: neighbours whose similarities differ by less than their rounding may change places.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from proxynca_jax.errors import UserError, nearest

DISTANCES = ("cosine", "squared_euclidean")
NO_MATCH = -1  # the rank of a query whose class has no image in the gallery but itself
Gallery = tuple[Float[np.ndarray, "gallery dim"], Int[np.ndarray, " gallery"]]


class _Query(NamedTuple):
    """A query, or a leading axis of them. Its class fills a range of `_Gallery.by_class`."""

    vector: Float[Array, "*queries dim"]
    itself: Int32[Array, "*queries"]  # its index in the gallery; past the end if it is not there
    class_start: Int32[Array, "*queries"]
    class_size: Int32[Array, "*queries"]  # itself included


class _Gallery(NamedTuple):
    vectors: Float[Array, "gallery dim"]
    by_class: Int32[Array, " gallery"]  # indices of the images, sorted by class
    class_start: Int32[Array, " gallery"]  # of each image, in the gallery's order: names its class


def ranks(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: Gallery | None = None,
    distance: str = "cosine",
    block_size: int = 1024,
) -> Int32[np.ndarray, " queries"]:
    """Counts the images of other classes that are nearer to each query than the nearest of its own class.

    Only strictly nearer ones count: a tie goes to the query's class.

    Args:
        embeddings: one finite vector a query; its length does not matter to `cosine`.
        labels: class of each query, any integers.
        gallery: vectors and labels to search; if None the queries themselves, each without itself. Duplicates of a
            query are others: only its own row is left out.
        distance: one of DISTANCES.
        block_size: queries per matrix product; a block takes 4 · block_size · gallery bytes.

    Returns:
        0 if the nearest image is of the query's class, at most the images of other classes; NO_MATCH if the gallery
        has no image of the class.

    Raises:
        UserError: an embedding is not finite, the distance is unknown, or no query has a match.
    """
    queries, others, matches = _prepare(embeddings, labels, gallery, distance)
    largest_class = int(queries.class_size.max())
    found = _ranks(queries, others, largest_class=largest_class, block_size=min(block_size, len(labels)))
    return np.where(matches > 0, np.asarray(found), np.int32(NO_MATCH))


def recall_at_k(ranks: Int[np.ndarray, " queries"], ks: Iterable[int]) -> dict[str, float]:
    """The share of queries with an image of their class among the K nearest; those without a match are left out.

    Args:
        ranks: from `ranks`.
        ks: every K, at least 1.

    Returns:
        `recall_at_<K>` from 0 to 1.
    """
    matched = ranks[ranks != NO_MATCH]
    return {f"recall_at_{k}": float(np.mean(matched < k)) for k in ks}


@functools.partial(jax.jit, static_argnames=("largest_class", "block_size"))
def _ranks(queries: _Query, gallery: _Gallery, *, largest_class: int, block_size: int) -> Int32[Array, " queries"]:
    member = jnp.arange(largest_class)

    def rank(query: _Query) -> Int32[Array, ""]:
        similarity = _similarity(query, gallery)
        # Read from the same product that it is compared with: of another, a last bit could place it behind itself.
        own = similarity[gallery.by_class[query.class_start + member]]
        best = jnp.max(jnp.where(member < query.class_size, own, -jnp.inf))
        return jnp.sum(similarity > best)

    return jax.lax.map(rank, queries, batch_size=block_size)


def _similarity(query: _Query, gallery: _Gallery) -> Float[Array, " gallery"]:
    similarity = jnp.matmul(query.vector, gallery.vectors.T, precision="highest")
    return similarity.at[query.itself].set(-jnp.inf, mode="drop")


def _prepare(embeddings, labels, gallery, distance):
    vectors, gallery_labels = (embeddings, labels) if gallery is None else gallery
    by_class = np.argsort(gallery_labels, kind="stable")
    s = gallery_labels[by_class]
    st = np.searchsorted(s, labels).astype(np.int32)
    size = (np.searchsorted(s, labels, "right") - st).astype(np.int32)
    n = len(vectors)
    itself = np.arange(n, dtype=np.int32) if gallery is None else np.full(len(labels), n, np.int32)
    gst = np.searchsorted(s, gallery_labels).astype(np.int32)
    return _Query(embeddings, itself, st, size), _Gallery(vectors, by_class.astype(np.int32), gst), size - (gallery is None)

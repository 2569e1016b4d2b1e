"""Each query's nearest images by exact cosine distance, to look at. `retrieval` computes the scores."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int64

from proxynca_jax.metrics.vectors import LabelledVectors, to_inner_products

BLOCK_BYTES = 64_000_000  # of similarities at a time


class Neighbours(NamedTuple):
    """The nearest images of each query, the nearest first."""

    found: Int64[np.ndarray, "queries count"]  # rows of the gallery
    distances: Float32[np.ndarray, "queries count"]  # cosine, 0 to 2


def nearest(
    embeddings: Float32[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    count: int,
    gallery: LabelledVectors | None = None,
) -> Neighbours:
    """Finds the nearest images of every query. Of images at the same distance, those of other classes come first.

    Args:
        embeddings: one vector of length 1 per query.
        labels: class of each query.
        count: how many, at least 1; there are fewer if the gallery is smaller.
        gallery: vectors of length 1 and labels of the images to search. None: the other queries.
    """
    others, other_labels = (embeddings, labels) if gallery is None else gallery
    ours, theirs = to_inner_products(embeddings, others, "cosine")
    count = min(count, len(others) - (gallery is None))
    found = np.empty((len(embeddings), count), np.int64)
    distances = np.empty((len(embeddings), count), np.float32)
    rows = max(BLOCK_BYTES // (4 * len(others)), 1)
    for start in range(0, len(embeddings), rows):
        similarity = ours[start : start + rows] @ theirs.T
        block = slice(start, start + len(similarity))
        if gallery is None:
            np.fill_diagonal(similarity[:, start:], -np.inf)  # an image is no neighbour of itself
        own = np.nonzero(labels[block, None] == other_labels)
        similarity[own] = np.nextafter(similarity[own], np.float32(-np.inf))
        chosen = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        # Of near images 1 − cosine would lose its digits.
        between = np.square(embeddings[block, None] - others[chosen]).sum(-1) / 2
        order = np.lexsort((labels[block, None] == other_labels[chosen], between), axis=1)
        found[block] = np.take_along_axis(chosen, order, 1)
        distances[block] = np.take_along_axis(between, order, 1)
    return Neighbours(found, distances)

"""Input of a neighbour search: checks embeddings and labels, and turns distances into inner products."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

from proxynca_jax.errors import UserError, nearest

DISTANCES = ("cosine", "squared_euclidean")
CHUNK_ROWS = 4096  # rows converted at a time, so float64 takes little memory
# The two axes have different names because different lengths are a user's error, not a caller's type error.
LabelledVectors = tuple[Float[np.ndarray, "gallery dim"], Int[np.ndarray, " gallery_labels"]]
Chunk = Float64[np.ndarray, "chunk dim"]


class Images(NamedTuple):
    """The queries or the gallery. A query's and a gallery image's inner product grows as they get closer."""

    vectors: Float32[np.ndarray, "rows dim"]
    classes: Int32[np.ndarray, " rows"]  # numbers from 0, the same on both sides; labels may not fit into 32 bits


def prepare(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    gallery: LabelledVectors | None,
    distance: str,
) -> tuple[Images, Images, Int32[np.ndarray, " queries"]]:
    """Checks queries and gallery and prepares them for a search by inner products.

    Args:
        embeddings: one vector per query.
        labels: class of each query.
        gallery: vectors and labels of the images to search. None: the queries, each without itself.
        distance: one of DISTANCES.

    Returns:
        The queries. The gallery; it is the same object if its vectors are the same. For each query R, the number of
        other images of its class in the gallery.

    Raises:
        UserError: no query has a match, there are more or fewer labels than vectors, an embedding is not finite, or the
            distance is unknown.
    """
    others, other_labels = (embeddings, labels) if gallery is None else gallery
    _check(embeddings, labels, "query")
    _check(others, other_labels, "gallery")
    names, classes = np.unique(np.concatenate([labels, other_labels]), return_inverse=True)
    classes, other_classes = np.split(classes.astype(np.int32), [len(labels)])
    matches = np.bincount(other_classes, minlength=len(names))[classes].astype(np.int32) - (gallery is None)
    if not np.any(matches > 0):
        raise UserError(
            f"None of the {len(labels)} queries has another image of its class in the gallery of {len(others)} images, "
            "so no score is defined. Evaluate on classes of at least two images."
        )
    vectors, other_vectors = _to_inner_products(embeddings, others, distance)
    queries = Images(vectors, classes)
    return queries, queries if other_vectors is vectors else Images(other_vectors, other_classes), matches


def _check(embeddings: Float[np.ndarray, "rows dim"], labels: Int[np.ndarray, " labels"], role: str):
    if len(embeddings) != len(labels):
        raise UserError(
            f"There are {len(embeddings)} {role} embeddings and {len(labels)} labels. Each embedding needs one label."
        )
    finite = np.isfinite(embeddings).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(
            f"Row {row} of the {len(embeddings)} {role} embeddings is not finite: {embeddings[row]}. Distances need "
            "finite numbers. If training has diverged, lower its learning rate and start from an earlier checkpoint."
        )


def _to_inner_products(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"], distance: str
) -> tuple[Float32[np.ndarray, "queries dim_out"], Float32[np.ndarray, "gallery dim_out"]]:
    """Converts both sides to float32 vectors. A pair's inner product is the same if its images swap sides."""
    # Scaling by a power of two is exact, and keeps squares of the largest floats from overflowing.
    _, exponent = math.frexp(max(bound for side in (queries, gallery) for bound in (side.max(), -side.min())))
    if distance == "cosine":
        vectors = _convert(queries, _unit_vectors, exponent)
        return vectors, vectors if gallery is queries else _convert(gallery, _unit_vectors, exponent)
    if distance == "squared_euclidean":
        # −‖q − g‖² / 2 = q·g − ‖q‖² / 2 − ‖g‖² / 2
        return (
            _convert(queries, lambda x: np.column_stack([x, _half_square(x), np.ones(len(x))]), exponent),
            _convert(gallery, lambda x: np.column_stack([x, np.ones(len(x)), _half_square(x)]), exponent),
        )
    raise UserError(f"Unknown distance {distance!r}: {nearest(distance, DISTANCES)}")


def _convert(
    rows: Float[np.ndarray, "rows dim"], convert: Callable[[Chunk], Float64[np.ndarray, "chunk dim_out"]], exponent: int
) -> Float32[np.ndarray, "rows dim_out"]:
    chunks = (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
    return np.concatenate(
        [convert(np.ldexp(chunk.astype(np.float64), -exponent)).astype(np.float32) for chunk in chunks]
    )


def _unit_vectors(rows: Chunk) -> Chunk:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _half_square(rows: Chunk) -> Float64[np.ndarray, " chunk"]:
    return -np.sum(np.square(rows), 1) / 2

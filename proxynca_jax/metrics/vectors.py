"""Input of a neighbour search: checks embeddings and labels, and turns distances into inner products."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

from proxynca_jax.errors import UserError, nearest

DISTANCES = ("cosine", "squared_euclidean")
COINCIDING = 0.01  # spread below which unit vectors are searched by their differences
CENTRE_BITS = 4  # of the centre, relative to the vectors' distance from it
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
    classes, other_classes = _number_classes(embeddings, labels, others, other_labels)
    matches = np.bincount(other_classes, minlength=classes.max(initial=-1) + 1)[classes].astype(np.int32) - (
        gallery is None
    )
    if not np.any(matches > 0):
        raise UserError(
            f"None of the {len(labels)} queries has another image of its class in the gallery of {len(others)} images, "
            "so no score is defined. Evaluate on classes of at least two images."
        )
    vectors, other_vectors = to_inner_products(embeddings, others, distance)
    queries = Images(vectors, classes)
    return queries, queries if other_vectors is vectors else Images(other_vectors, other_classes), matches


def unit_images(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    gallery: LabelledVectors | None,
) -> tuple[Images, Images]:
    """Checks queries and gallery and converts them to unit vectors, whose inner products are cosines.

    Args:
        embeddings: as for `prepare`. A zero vector stays one.
        labels: as for `prepare`.
        gallery: as for `prepare`.

    Returns:
        The queries, and the gallery. They are the same object if there is no gallery.

    Raises:
        UserError: there are no images, there are more or fewer labels than vectors, or an embedding is not finite.
    """
    others, other_labels = (embeddings, labels) if gallery is None else gallery
    classes, other_classes = _number_classes(embeddings, labels, others, other_labels)
    if not (len(classes) and len(other_classes)):
        raise UserError(f"There are {len(classes)} queries and {len(other_classes)} gallery images; pairs need both.")
    sides = [embeddings] if gallery is None else [embeddings, others]
    _, exponent = _largest(sides, lambda rows: rows)
    vectors = [_convert(side, functools.partial(_unit_vectors, exponent=exponent)) for side in sides]
    queries = Images(vectors[0], classes)
    return queries, queries if gallery is None else Images(vectors[1], other_classes)


def _number_classes(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries_labels"],
    others: Float[np.ndarray, "gallery dim"],
    other_labels: Int[np.ndarray, " gallery_labels"],
) -> tuple[Int32[np.ndarray, " queries_labels"], Int32[np.ndarray, " gallery_labels"]]:
    """Checks queries and gallery, and numbers their classes from 0."""
    _check(embeddings, labels, "query")
    _check(others, other_labels, "gallery")
    _, classes = np.unique(np.concatenate([labels, other_labels]), return_inverse=True)
    classes, other_classes = np.split(classes.astype(np.int32), [len(labels)])
    return classes, other_classes


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


def spread(embeddings: Float[np.ndarray, "rows dim"]) -> float:
    """Computes the mean squared distance of the unit vectors to their mean.

    Returns:
        From 0, all images have the same embedding, to 1, they point in all directions.
    """
    _, exponent = _largest([embeddings], lambda rows: rows)
    convert = functools.partial(_unit_vectors, exponent=exponent)
    centre = _mean([embeddings], convert)
    return sum(float(np.square(convert(rows) - centre).sum()) for rows in _chunks(embeddings)) / len(embeddings)


def to_inner_products(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"], distance: str
) -> tuple[Float32[np.ndarray, "queries dim_out"], Float32[np.ndarray, "gallery dim_out"]]:
    """Converts both sides to float32 vectors whose inner products grow as two images get closer.

    A pair's inner product is the same if its images swap sides.

    Args:
        queries: finite vectors.
        gallery: likewise; the same object: the queries.
        distance: one of DISTANCES.

    Raises:
        UserError: the distance is unknown.
    """
    if distance not in DISTANCES:
        raise UserError(f"Unknown distance {distance!r}: {nearest(distance, DISTANCES)}")
    sides = [queries] if gallery is queries else [queries, gallery]
    _, exponent = _largest(sides, lambda rows: rows)
    convert = functools.partial(_unit_vectors if distance == "cosine" else _scaled, exponent=exponent)
    centre = _mean(sides, convert)
    if distance == "cosine" and 1 - centre @ centre > COINCIDING:
        vectors = [_convert(side, convert) for side in sides]
        return vectors[0], vectors[-1]
    # −‖q − g‖² / 2 = q·g − ‖q‖² / 2 − ‖g‖² / 2, which for unit vectors is q·g − 1. Without their mean, vectors that are
    # far from the origin or nearly coincide keep their differences in float32.
    # A centre of few digits keeps the distances exact of numbers of few digits.
    _, exponent = _largest(sides, functools.partial(_centred, convert=convert, centre=centre))
    digit = math.ldexp(1.0, exponent - CENTRE_BITS)
    centred = functools.partial(_centred, convert=convert, centre=digit * np.round(centre / digit))
    _, exponent = _largest(sides, centred)
    with_ones = [
        lambda rows: np.column_stack([rows, _half_square(rows), np.ones(len(rows))]),
        lambda rows: np.column_stack([rows, np.ones(len(rows)), _half_square(rows)]),
    ]
    first, last = (
        _convert(side, lambda rows, columns=columns: columns(_scaled(centred(rows), exponent=exponent)))
        for side, columns in zip((queries, gallery), with_ones, strict=True)
    )
    return first, last


Convert = Callable[[Chunk], Chunk]


def _chunks(rows: Float[np.ndarray, "rows dim"]) -> Iterator[Chunk]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS].astype(np.float64)


def _largest(sides: list[Float[np.ndarray, "_ dim"]], convert: Convert) -> tuple[float, int]:
    """Returns the largest magnitude of a number, as mantissa and exponent of two."""
    return math.frexp(max(float(np.abs(convert(chunk)).max()) for side in sides for chunk in _chunks(side)))


def _mean(sides: list[Float[np.ndarray, "_ dim"]], convert: Convert) -> Float64[np.ndarray, " dim"]:
    sums = [convert(chunk).sum(0) for side in sides for chunk in _chunks(side)]
    return np.sum(sums, 0) / sum(map(len, sides))


def _convert(rows: Float[np.ndarray, "rows dim"], convert: Convert) -> Float32[np.ndarray, "rows dim_out"]:
    return np.concatenate([convert(chunk).astype(np.float32) for chunk in _chunks(rows)])


def _scaled(rows: Chunk, *, exponent: int) -> Chunk:
    """Divides by a power of two. That is exact, and keeps squares of the largest floats from overflowing."""
    return np.ldexp(rows, -exponent)


def _unit_vectors(rows: Chunk, *, exponent: int) -> Chunk:
    rows = _scaled(rows, exponent=exponent)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _centred(rows: Chunk, *, convert: Convert, centre: Float64[np.ndarray, " dim"]) -> Chunk:
    return convert(rows) - centre


def _half_square(rows: Chunk) -> Float64[np.ndarray, " chunk"]:
    return -np.sum(np.square(rows), 1) / 2

"""Open-set identification: is the class of an image enrolled, and if so, which is it?

Half of the classes are enrolled in a gallery. A probe is identified as the class of its nearest enrolled image if their
cosine similarity is at least a threshold, and is unknown otherwise. Detection-and-identification rate (DIR): the share
of the probes of enrolled classes that are identified as their class. False-alarm rate: the share of the probes of other
classes that are identified as anything. Source: Phillips, Grother and Micheals, *Evaluation Methods in Face
Recognition* (Handbook of Face Recognition, 2011), section 21.2. NIST's FRVT calls 1 − DIR the false negative
identification rate (FNIR) at rank 1, and the false-alarm rate FPIR (NISTIR 8271).
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32
from threadpoolctl import threadpool_limits

from proxynca_jax.errors import UserError
from proxynca_jax.metrics.pairs import BLOCK, STEPS, block_similarities, in_block
from proxynca_jax.metrics.vectors import Images, LabelledVectors, unit_images

FALSE_ALARM_RATES = (1e-1, 1e-2, 1e-3)
LEAST_FALSE_ALARMS = 10  # expected at a rate; with fewer its threshold hangs on single probes


class IdentificationPoint(NamedTuple):
    """A threshold, and the rates at it. All rates are from 0 to 1."""

    false_alarm_rate: float  # that was asked for; that of the probes is not above it
    threshold: float  # lowest cosine similarity that is not unknown, a multiple of 2⁻²⁴
    dir: float
    false_alarms: int


class Identification(NamedTuple):
    """What `identify` computes."""

    points: list[IdentificationPoint]
    too_few: dict[float, int]  # rates without a point: the number of probes of other classes that they need
    rank_1: float  # DIR if nothing is unknown
    enrolled_images: int
    enrolled_classes: int
    known_probes: int  # of enrolled classes
    unknown_probes: int  # of other classes


class Protocol(NamedTuple):
    """Which images are enrolled, and which are probes."""

    enrolled: Int[np.ndarray, " enrolled"]  # rows of the gallery
    probes: Int[np.ndarray, " probes"]  # rows of the queries
    known: Bool[np.ndarray, " probes"]  # whether the probe's class is enrolled


def identify(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: LabelledVectors | None = None,
    seed: int = 0,
) -> Identification:
    """Measures open-set identification. Memory grows with the number of images.

    Args:
        embeddings: one finite vector per query. Its length does not matter; a zero vector is orthogonal to all others.
        labels: class of each query, any integers.
        gallery: vectors and labels of images to enrol, and all queries are probes. None: half of the images of each
            enrolled class are enrolled, and its other images are probes.
        seed: draws the enrolled classes and images.

    Returns:
        Rates at the thresholds of false-alarm rates. A rate is left out if fewer than LEAST_FALSE_ALARMS probes would
        be false alarms. If images of other classes are as near as the nearest of a probe's own, it is not identified.

    Raises:
        UserError: fewer than two classes have images to enrol and probes, there are more or fewer labels than vectors,
            or an embedding is not finite.
    """
    queries, others = unit_images(embeddings, labels, gallery)
    enrolled, rows, known = draw_protocol(queries.classes, None if gallery is None else others.classes, seed)
    probes = Images(queries.vectors[rows], queries.classes[rows])
    own, other = _nearest(probes, Images(others.vectors[enrolled], others.classes[enrolled]))
    right, nearest = (own > other)[known], np.maximum(own, other)
    alarms = np.sort(nearest[~known])[::-1]
    points, too_few = [], {}
    for rate in FALSE_ALARM_RATES:
        exactly = Fraction(str(rate))
        if len(alarms) * exactly < LEAST_FALSE_ALARMS:
            too_few[rate] = math.ceil(LEAST_FALSE_ALARMS / exactly)
            continue
        step = int(alarms[math.floor(len(alarms) * exactly)]) + 1
        found = float(np.mean(right & (nearest[known] >= step)))
        points.append(IdentificationPoint(rate, step / STEPS, found, int(np.sum(alarms >= step))))
    sizes = (len(enrolled), len(np.unique(others.classes[enrolled])), int(known.sum()), int((~known).sum()))
    return Identification(points, too_few, float(np.mean(right)), *sizes)


def draw_protocol(
    classes: Int32[np.ndarray, " queries"], gallery_classes: Int32[np.ndarray, " gallery"] | None, seed: int
) -> Protocol:
    """Draws half of the classes to enrol, and images of them.

    Args:
        classes: of the queries.
        gallery_classes: of the images to enrol. None: the queries.
        seed: of the draws.

    Raises:
        UserError: fewer than two classes have images to enrol and probes.
    """
    rng = np.random.default_rng(seed)
    if gallery_classes is None:
        names, counts = np.unique(classes, return_counts=True)
        candidates = names[counts >= 2]
    else:
        names = np.unique(classes)
        candidates = np.intersect1d(classes, gallery_classes)
    if len(names) < 2 or not len(candidates):
        raise UserError(
            f"Of {len(names):,} classes, {len(candidates):,} have an image to enrol and another to probe with. "
            "Identification needs two classes, and one of them with two images."
        )
    chosen = rng.permutation(candidates)[: max(1, len(candidates) // 2)]
    known = np.isin(classes, chosen)
    if gallery_classes is not None:
        return Protocol(np.flatnonzero(np.isin(gallery_classes, chosen)), np.arange(len(classes)), known)
    # In a random order, the first half of each class is enrolled.
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
    first_half = order[place < np.bincount(classes)[classes[order]] // 2]
    enrolled = np.sort(first_half[known[first_half]])
    probes = np.setdiff1d(np.arange(len(classes)), enrolled)
    return Protocol(enrolled, probes, known[probes])


def _nearest(probes: Images, enrolled: Images) -> tuple[Int32[np.ndarray, " probes"], Int32[np.ndarray, " probes"]]:
    """The similarity of the nearest enrolled image of each probe's class, and that of other classes, in steps."""
    nowhere = np.int32(-2 * STEPS)
    own, other = (np.full(len(probes.classes), nowhere) for _ in range(2))
    with threadpool_limits(1, "blas"):
        for row in range(0, len(probes.classes), BLOCK):
            rows = slice(row, row + BLOCK)
            vectors, classes = in_block(probes.vectors, row), probes.classes[rows]
            for column in range(0, len(enrolled.classes), BLOCK):
                theirs = enrolled.classes[column : column + BLOCK]
                similarities = block_similarities(vectors, in_block(enrolled.vectors, column))
                similarities = similarities[: len(classes), : len(theirs)]
                same = np.equal.outer(classes, theirs)
                for best, masked in ((own, ~same), (other, same)):
                    best[rows] = np.maximum(best[rows], np.where(masked, nowhere, similarities).max(axis=1))
    return own, other

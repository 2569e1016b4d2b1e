"""Verification: is a pair of images of one class? Error rates and thresholds from all pairs, exact, in bounded memory.

A pair is accepted if its cosine similarity is at least a threshold. The true accept rate (TAR) is the share of the
pairs of one class that are accepted, the false accept rate (FAR) that of the pairs of two classes. Three passes over
the pairs: a histogram; the steps of 2⁻²⁴ in those of its bins that contain a threshold; and, at the thresholds, counts
by class for the bootstrap.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64

from proxynca_jax.errors import UserError
from proxynca_jax.metrics.pairs import STEPS, Block, Pairs, add_up, pair
from proxynca_jax.metrics.vectors import LabelledVectors, unit_images

RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
LEAST_FALSE_ACCEPTS = 10  # expected at a rate; with fewer its threshold hangs on single pairs
DRAWS = 500  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
CURVE_POINTS = 41
BIN_BITS = 9  # steps in a bin: a bin is 2⁻¹⁵ wide
BIN_STEPS = 1 << BIN_BITS
FIRST = -(STEPS // BIN_STEPS) - 1  # number of the lowest bin: rounding may make a cosine a little less than −1
BINS = -2 * FIRST
RESOLVED_FOR_AUC = 96  # bins


class OperatingPoint(NamedTuple):
    """A threshold, and the rates at it. All rates are from 0 to 1."""

    far: float  # the false accept rate that was asked for; that of the pairs is not above it
    threshold: float  # lowest cosine similarity that is accepted, a multiple of 2⁻²⁴
    tar: float
    tar_low: float | None  # 95 % interval. None: the classes are too few to be drawn
    tar_high: float | None
    false_accepts: int
    far_low: float | None  # 95 % interval of the false accept rate at this threshold
    far_high: float | None


class Curve(NamedTuple):
    """The ROC curve at some thresholds, from the highest rate to the lowest."""

    far: Float64[np.ndarray, " points"]
    tar: Float64[np.ndarray, " points"]
    tar_low: Float64[np.ndarray, " points"]
    tar_high: Float64[np.ndarray, " points"]


class Verification(NamedTuple):
    """What `verify` computes. All rates are from 0 to 1."""

    eer: float  # equal error rate: the mean of FAR and 1 − TAR where they are nearest
    eer_threshold: float
    eer_low: float | None  # 95 % interval of the mean of both rates at that threshold
    eer_high: float | None
    auc: float  # the share of (pair of one class, pair of two) with the first more similar; half if they tie
    auc_error: float  # bound of its error
    operating_points: list[OperatingPoint]
    too_few: dict[float, int]  # rates without an operating point: the number of pairs of two classes that they need
    genuine_pairs: int
    impostor_pairs: int
    classes: int
    curve: Curve


class Counts(NamedTuple):
    """Pairs by similarity: [0] are of one class, [1] of two."""

    bins: Int64[np.ndarray, "2 bins"]
    at_least: Int64[np.ndarray, "2 bins_and_end"]  # in this bin or a higher one
    steps: dict[int, Int64[np.ndarray, "2 steps"]]  # by bin, where it is resolved

    def from_step(self, number: int) -> Int64[np.ndarray, "2 steps_and_end"]:
        """The pairs at or above each step of a bin, and above the bin."""
        above = self.at_least[:, number + 1 : number + 2]
        return above + np.pad(np.cumsum(self.steps[number][:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))


def verify(
    embeddings: Float[np.ndarray, "queries dim"],
    labels: Int[np.ndarray, " queries"],
    *,
    gallery: LabelledVectors | None = None,
    seed: int = 0,
) -> Verification:
    """Computes thresholds, error rates and their 95 % intervals from all pairs.

    The intervals are those of a bootstrap by class, because pairs of the same images are not independent: the vertex
    bootstrap (Snijders and Borgatti, *Connections* 22, 1999; for verification: Fogliato et al., arXiv 2306.01198). A
    class that is drawn twice counts its pairs with itself twice, and its pairs with other classes twice. The two copies
    are not paired with each other: they are the same images. Thresholds stay those of all pairs.

    Args:
        embeddings: one finite vector per query. Its length does not matter; a zero vector is orthogonal to all others.
        labels: class of each query, any integers.
        gallery: vectors and labels of images to pair the queries with. None: the queries, each two of them once.
        seed: of the bootstrap.

    Returns:
        A rate is left out if fewer than LEAST_FALSE_ACCEPTS pairs would be falsely accepted.

    Raises:
        UserError: there are no pairs of one class or of two, there are more or fewer labels than vectors, or an
            embedding is not finite.
    """
    pairs = pair(*unit_images(embeddings, labels, gallery))
    genuine_pairs, impostor_pairs = pairs.totals()
    needed = {rate: math.ceil(LEAST_FALSE_ACCEPTS / Fraction(str(rate))) for rate in RATES}
    too_few = {rate: number for rate, number in needed.items() if number > impostor_pairs}
    allowed = {rate: math.floor(Fraction(str(rate)) * impostor_pairs) for rate in RATES if rate not in too_few}

    counts = _count(pairs, list(allowed.values()))
    thresholds = {rate: _threshold(counts, most) for rate, most in allowed.items()}
    eer_step, eer = _equal_error(counts)
    auc, auc_error = _auc(counts)
    curve_bins = _curve_bins(counts, impostor_pairs)

    steps = np.unique([*thresholds.values(), eer_step, *_step(curve_bins)])
    weights = _draw_classes(pairs.classes, seed)
    tars, drawn_tars = _true_accepts(pairs, steps, weights)
    far_steps = np.unique([*thresholds.values(), eer_step])
    drawn_fars = _false_accepts(pairs, far_steps, weights)
    tar_of, far_of = ({int(step): place for place, step in enumerate(found)} for found in (steps, far_steps))

    points = []
    for rate, step in thresholds.items():
        place = tar_of[step]
        tar_interval, far_interval = _interval(drawn_tars[place]), _interval(drawn_fars[far_of[step]])
        accepted = _at_least(counts, step)
        points.append(
            OperatingPoint(rate, step / STEPS, float(tars[place]), *tar_interval, int(accepted[1]), *far_interval)
        )
    eer_interval = _interval((drawn_fars[far_of[eer_step]] + 1 - drawn_tars[tar_of[eer_step]]) / 2)
    places = [tar_of[int(step)] for step in _step(curve_bins)]
    lows, highs = zip(*(_interval(drawn_tars[place]) for place in places), strict=True)
    curve = Curve(
        counts.at_least[1, curve_bins] / impostor_pairs,
        tars[places],
        *(np.array(ends, np.float64) for ends in (lows, highs)),
    )
    totals = (genuine_pairs, impostor_pairs, len(np.union1d(pairs.rows.classes, pairs.columns.classes)))
    return Verification(eer, eer_step / STEPS, *eer_interval, auc, auc_error, points, too_few, *totals, curve)


def threshold_at(record: Mapping[str, Any], far: float) -> float:
    """Returns the threshold of a false accept rate, a cosine similarity.

    Args:
        record: of a verification, such as `verification.json`: `operating_points` has a `far` and a `threshold` each.
        far: one of these rates.

    Raises:
        UserError: if it was not measured.
    """
    points = record["operating_points"]
    for point in points:
        if math.isclose(point["far"], far):
            return point["threshold"]
    measured = ", ".join(f"{point['far']:g}" for point in points) or "none"
    raise UserError(f"no threshold was measured for a false accept rate of {far:g}; measured: {measured}.")


def _count(pairs: Pairs, allowed: Sequence[int]) -> Counts:
    """Counts the pairs by similarity, and by step in the bins that contain a threshold and those that blur the AUC."""
    bins = add_up(pairs, _count_bins)
    at_least = np.pad(np.cumsum(bins[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    far, frr = at_least[1] / at_least[1, 0], 1 - at_least[0] / at_least[0, 0]
    first_bins = [int(np.argmax(at_least[1] <= most)) for most in allowed] + [int(np.argmax(far <= frr))]
    blur = np.prod(bins.astype(np.float64), axis=0)
    blurred = np.argsort(-blur, kind="stable")[:RESOLVED_FOR_AUC]
    resolved = np.unique([first - 1 for first in first_bins] + blurred[blur[blurred] > 0].tolist()).astype(np.int64)
    slots = np.full(BINS, -1, np.int32)
    slots[resolved] = np.arange(len(resolved))
    steps = add_up(pairs, lambda block: _count_steps(block, slots, len(resolved)))
    return Counts(bins, at_least, {int(number): steps[:, slot] for slot, number in enumerate(resolved)})


def _bin(similarities: Int32[np.ndarray, " pairs"]) -> Int32[np.ndarray, " pairs"]:
    return (similarities >> BIN_BITS) - np.int32(FIRST)


def _step(bins: int | Int[np.ndarray, " points"]) -> Any:
    """The lowest step of each bin."""
    return (bins + FIRST) * BIN_STEPS


def _count_bins(block: Block) -> Int64[np.ndarray, "2 bins"]:
    sides = (block.of_one_class(), block.of_two_classes())
    return np.stack([np.bincount(_bin(side), minlength=BINS) for side in sides])


def _count_steps(block: Block, slots: Int32[np.ndarray, " bins"], count: int) -> Int64[np.ndarray, "2 slots steps"]:
    def steps(similarities: Int32[np.ndarray, " pairs"]) -> Int64[np.ndarray, " slots_steps"]:
        slot = slots.take(_bin(similarities))
        wanted = np.flatnonzero(slot >= 0)
        places = slot[wanted] * BIN_STEPS + (similarities[wanted] & (BIN_STEPS - 1))
        return np.bincount(places, minlength=count * BIN_STEPS)

    return np.stack([steps(block.of_one_class()), steps(block.of_two_classes())]).reshape(2, count, BIN_STEPS)


def _at_least(counts: Counts, step: int) -> Int64[np.ndarray, "2"]:
    """The pairs at or above a step of a resolved bin, or at the end of one."""
    number, place = divmod(step - 1 - FIRST * BIN_STEPS, BIN_STEPS)
    return counts.from_step(number)[:, place + 1]


def _threshold(counts: Counts, most: int) -> int:
    """The lowest step that at most this many pairs of two classes reach."""
    number = int(np.argmax(counts.at_least[1] <= most)) - 1
    return _step(number) + int(np.argmax(counts.from_step(number)[1] <= most))


def _equal_error(counts: Counts) -> tuple[int, float]:
    """The step at which FAR and 1 − TAR are nearest, and their mean there."""
    genuine, impostor = counts.at_least[:, 0]
    number = int(np.argmax(counts.at_least[1] / impostor <= 1 - counts.at_least[0] / genuine)) - 1
    accepted = counts.from_step(number)
    far, frr = accepted[1] / impostor, 1 - accepted[0] / genuine
    after = int(np.argmax(far <= frr))
    place = min((after, after - 1), key=lambda step: abs(far[step] - frr[step]))
    return _step(number) + place, float(far[place] + frr[place]) / 2


def _auc(counts: Counts) -> tuple[float, float]:
    """The area under the ROC curve (Mann and Whitney's U, over all pairs of pairs), and a bound of its error."""
    everything = float(counts.at_least[0, 0]) * float(counts.at_least[1, 0])
    genuine, impostor = counts.bins.astype(np.float64)
    wins = np.dot(genuine, counts.at_least[1, 0] - counts.at_least[1, :-1])
    halves = genuine * impostor / 2
    for number, (ours, theirs) in counts.steps.items():
        wins += np.dot(ours, np.cumsum(theirs) - theirs / 2)
        halves[number] = 0
    return float(wins + halves.sum()) / everything, float(halves.sum()) / everything


def _curve_bins(counts: Counts, impostor_pairs: int) -> Int[np.ndarray, " points"]:
    """The bins whose lower ends are the thresholds of the curve: the first for each of its rates, without repeats."""
    rates = np.logspace(0, math.log10(LEAST_FALSE_ACCEPTS / impostor_pairs), CURVE_POINTS)
    first = [int(np.argmax(counts.at_least[1] <= rate * impostor_pairs)) for rate in rates]
    return np.unique(np.clip(first, 0, BINS - 1))


def _draw_classes(classes: int, seed: int) -> Float32[np.ndarray, "draws classes"]:
    """How often each class is drawn."""
    return np.random.default_rng(seed).multinomial(classes, np.full(classes, 1 / classes), DRAWS).astype(np.float32)


def _interval(drawn: Float64[np.ndarray, " draws"]) -> tuple[float | None, float | None]:
    """The 95 % interval. Draws of one class only have no rate, which is NaN."""
    if np.isnan(drawn).all():
        return None, None
    low, high = np.nanpercentile(drawn, INTERVAL)
    return float(low), float(high)


def _ratio(part: np.ndarray, whole: Float64[np.ndarray, " draws"]) -> Float64[np.ndarray, "steps draws"]:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _true_accepts(
    pairs: Pairs, steps: Int64[np.ndarray, " steps"], weights: Float32[np.ndarray, "draws classes"]
) -> tuple[Float64[np.ndarray, " steps"], Float64[np.ndarray, "steps draws"]]:
    """The TAR at each step of all classes, and of those of each draw."""
    levels = len(steps) + 1

    def of_block(block: Block) -> Int64[np.ndarray, "classes levels"]:
        of_pairs = np.broadcast_to(block.row_classes[:, None], block.similarities.shape)[block.genuine]
        level = np.searchsorted(steps, block.of_one_class(), side="right")
        return np.bincount(of_pairs.astype(np.int64) * levels + level, minlength=pairs.classes * levels).reshape(
            -1, levels
        )

    found = add_up(pairs, of_block, of_one_class=True)
    accepted = np.cumsum(found[:, ::-1], axis=1)[:, -2::-1].astype(np.float64)  # (classes, steps), in order again
    of_class = pairs.genuine_by_class().astype(np.float64)
    drawn = weights.astype(np.float64)
    return accepted.sum(0) / of_class.sum(), _ratio((drawn @ accepted).T, drawn @ of_class)


def _false_accepts(
    pairs: Pairs, steps: Int64[np.ndarray, " steps"], weights: Float32[np.ndarray, "draws classes"]
) -> Float64[np.ndarray, "steps draws"]:
    """The FAR at each step of the classes of each draw.

    It is Σ w_c w_d a_cd / Σ w_c w_d n_cd over pairs of classes c ≠ d with n pairs of which a are accepted.
    """

    def of_block(block: Block) -> Float64[np.ndarray, "steps draws"]:
        (rows, row_of), (columns, column_of) = (
            np.unique(classes, return_inverse=True) for classes in (block.row_classes, block.column_classes)
        )
        accepted = block.similarities >= steps[0]
        if block.impostor is not None:
            accepted &= block.impostor
        found = np.flatnonzero(accepted)
        if not len(found):
            return np.zeros((len(steps), len(weights)))
        similarities = block.similarities.ravel()[found]
        level = sum((similarities >= step).astype(np.int64) for step in steps[1:]) if len(steps) > 1 else 0
        cells = (row_of[:, None] * len(columns) + column_of).ravel()[found]
        shape = (len(steps), len(rows), len(columns))
        by_level = np.bincount(cells + level * (len(rows) * len(columns)), minlength=math.prod(shape)).reshape(shape)
        by_step = np.cumsum(by_level[::-1], axis=0)[::-1].astype(np.float32)
        ours, theirs = weights[:, rows], weights[:, columns]
        return np.stack([np.sum((ours @ table) * theirs, axis=1, dtype=np.float64) for table in by_step])

    accepted = add_up(pairs, of_block)
    drawn = weights.astype(np.float64)
    ours, theirs = pairs.images_by_class()
    whole = (drawn @ ours) * (drawn @ theirs) - np.square(drawn) @ (ours * theirs)
    return _ratio(accepted, whole / 2 if pairs.symmetric else whole)

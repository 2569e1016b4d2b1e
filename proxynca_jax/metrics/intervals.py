"""Intervals of a mean over images, by a bootstrap over classes."""

import numpy as np
from jaxtyping import Float, Int

DRAWS = 1000


def interval_over_classes(
    values: Float[np.ndarray, " images"], labels: Int[np.ndarray, " images"], *, seed: int
) -> tuple[float, float]:
    """Computes a 95 % percentile interval of the mean of `values`.

    Classes are drawn with replacement, each with all of its images, because images of a class are not independent. So
    the interval says how far the mean would move with other classes of the same kind. It does not include training
    again.

    Args:
        values: one per image.
        labels: class of each image.
        seed: of the draws.

    Returns:
        The lower and the upper end.
    """
    _, numbers = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(numbers, values), np.bincount(numbers)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), DRAWS)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), (0.025, 0.975))
    return float(low), float(high)

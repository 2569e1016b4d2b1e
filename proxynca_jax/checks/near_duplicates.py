"""Finds evaluation images that look like training images: a network can recognise what it has seen."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from proxynca_jax.checks import OK, WARNING, Finding, listed
from proxynca_jax.data.split import Split

ROWS = 1024  # evaluation images compared at a time


def check_near_duplicates(
    train: Split,
    trained: Float[np.ndarray, "train dim"],
    evaluation: Split,
    evaluated: Float[np.ndarray, "evaluation dim"],
    *,
    least: float,
) -> Iterator[Finding]:
    """Compares each evaluation image with all training images.

    Args:
        train: The training images.
        trained: Their vectors, of length 1.
        evaluation: The evaluation images.
        evaluated: Their vectors, of length 1.
        least: Cosine similarity from which two images are reported.
    """
    pairs = []
    for start in range(0, len(evaluated), ROWS):
        similarities = evaluated[start : start + ROWS] @ trained.T
        nearest = similarities.argmax(1)
        scores = similarities[np.arange(len(nearest)), nearest]
        pairs += [(scores[row], start + row, nearest[row]) for row in np.flatnonzero(scores >= least)]
    if not pairs:
        yield Finding(OK, f"no evaluation image looks like a training image (similarity of {least} or more)")
        return
    names = (
        f"{evaluation.names[row]} ~ {train.names[other]} ({score:.4f})" for score, row, other in sorted(pairs)[::-1]
    )
    yield Finding(
        WARNING,
        f"{len(pairs):,} evaluation images look like training images (similarity of {least} or more): {listed(names)}. "
        "Look at them; remove one of each two that show the same.",
    )

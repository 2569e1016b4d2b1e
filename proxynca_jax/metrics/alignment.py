"""Alignment and uniformity of embeddings on the unit sphere.

Source: Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere*, ICML 2020 (arXiv 2005.10242), section 4.1, with α = 2 and t = 2.
"""

import numpy as np
from jaxtyping import Float, Int

MOST_IMAGES = 4096  # whose pairs are compared for uniformity; more are sampled evenly


def alignment(embeddings: Float[np.ndarray, "images dim"], labels: Int[np.ndarray, " images"]) -> float:
    """Computes the mean squared distance of two images of one class, over all such pairs.

    Args:
        embeddings: vectors of length 1.
        labels: class of each image, from 0.

    Returns:
        From 0, each class is a point, to 4. About 2 for random directions. NaN if no class has two images.
    """
    counts = np.bincount(labels)
    sums = np.zeros((len(counts), embeddings.shape[1]))
    np.add.at(sums, labels, embeddings)
    # Over the pairs of a class of n images, Σ ‖x − y‖² = n Σ ‖x‖² − ‖Σ x‖².
    squares = np.bincount(labels, np.square(embeddings, dtype=np.float64).sum(1))
    distances = counts * squares - np.square(sums).sum(1)
    pairs = float((counts * (counts - 1)).sum()) / 2
    return max(float(distances.sum()), 0.0) / pairs if pairs else float("nan")


def uniformity(embeddings: Float[np.ndarray, "images dim"]) -> float:
    """Computes the logarithm of the mean Gaussian potential exp(−2 ‖x − y‖²) of two images.

    Args:
        embeddings: vectors of length 1, at least two. Of more than MOST_IMAGES, evenly spaced ones count.

    Returns:
        From −8 to 0; 0 is a collapse, and random directions of many dimensions have about −4.
    """
    places = np.linspace(0, len(embeddings) - 1, min(MOST_IMAGES, len(embeddings))).astype(int)
    chosen = embeddings[places]
    similarity = (chosen @ chosen.T)[np.triu_indices(len(chosen), 1)]
    return float(np.log(np.mean(np.exp(4 * np.minimum(similarity, 1).astype(np.float64) - 4))))

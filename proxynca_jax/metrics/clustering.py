"""Clustering quality: k-means, then normalised mutual information. Both are scikit-learn's, the field's yardstick."""

import warnings

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score


def nmi(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    *,
    restarts: int,
    average: str,
    seed: int,
) -> float:
    """Clusters the embeddings into as many clusters as there are classes and compares the two partitions.

    Args:
        embeddings: finite vectors.
        labels: class of each image, any integers.
        restarts: k-means runs, of which the one of lowest inertia counts.
        average: one of `config.NMI_AVERAGES`, the mean of the two entropies that the mutual information is divided by.
        seed: of the initial centres.

    Returns:
        From 0, clusters say nothing of the classes, to 1, the same partition.
    """
    clusters = len(np.unique(labels))
    # Untyped, scikit-learn has the types of its defaults, here "auto".
    kmeans = KMeans(clusters, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        # Embeddings that coincide, as an untrained network's may, fill fewer clusters: that is a result, not a fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        assigned = kmeans.fit_predict(embeddings)
    return float(normalized_mutual_info_score(labels, assigned, average_method=average))

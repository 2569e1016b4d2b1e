"""Clustering quality: k-means, then scikit-learn's normalised mutual information."""

import warnings

import numpy as np
from jaxtyping import Float, Int, Int32

from proxynca_jax.errors import UserError, nearest
from proxynca_jax.metrics.kmeans import kmeans


def nmi(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    *,
    restarts: int,
    average: str,
    seed: int,
    implementation: str = "device",
) -> float:
    """Clusters the embeddings into as many clusters as there are classes and compares the two partitions.

    Args:
        embeddings: finite vectors.
        labels: class of each image, any integers.
        restarts: k-means runs, of which the one of lowest inertia counts.
        average: one of `config.NMI_AVERAGES`, the mean of the two entropies that the mutual information is divided by.
        seed: of the initial centres.
        implementation: one of IMPLEMENTATIONS, whose k-means. `scikit-learn`'s is the field's yardstick.

    Returns:
        From 0, clusters say nothing of the classes, to 1, the same partition.

    Raises:
        UserError: the implementation is unknown.
    """
    from sklearn.metrics import normalized_mutual_info_score  # here, since it takes a second

    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"Unknown k-means {implementation!r}: {nearest(implementation, IMPLEMENTATIONS)}")
    assigned = IMPLEMENTATIONS[implementation](embeddings, len(np.unique(labels)), restarts, seed)
    return float(normalized_mutual_info_score(labels, assigned, average_method=average))


def _device(
    embeddings: Float[np.ndarray, "images dim"], clusters: int, restarts: int, seed: int
) -> Int32[np.ndarray, " images"]:
    return kmeans(embeddings, clusters, restarts=restarts, seed=seed).labels


def _scikit_learn(
    embeddings: Float[np.ndarray, "images dim"], clusters: int, restarts: int, seed: int
) -> Int32[np.ndarray, " images"]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Untyped, scikit-learn has the types of its defaults, here "auto".
    model = KMeans(clusters, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        # Embeddings that coincide, as an untrained network's may, fill fewer clusters: that is a result, not a fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(embeddings)


IMPLEMENTATIONS = {"device": _device, "scikit-learn": _scikit_learn}

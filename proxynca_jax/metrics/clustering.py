"""NMI: normalised mutual information between k-means clusters and classes."""

import math
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
    """Computes the NMI of the classes and k-means clusters, as many clusters as there are classes.

    Args:
        embeddings: finite vectors.
        labels: class of each image, any integers.
        restarts: number of k-means runs; the one with the lowest inertia counts.
        average: one of `config.NMI_AVERAGES`: which mean of the two entropies divides the mutual information.
        seed: of the initial centres.
        implementation: of k-means, one of IMPLEMENTATIONS. `scikit-learn` is the field's baseline.

    Returns:
        From 0, the clusters carry no information about the classes, to 1, clusters and classes are the same partition.

    Raises:
        UserError: the implementation is unknown.
    """
    from sklearn.metrics import normalized_mutual_info_score  # imported here because it takes a second

    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"Unknown k-means {implementation!r}: {nearest(implementation, IMPLEMENTATIONS)}")
    # Scaling by a power of two is exact, and keeps the squares of very small and very large numbers in float32.
    _, exponent = math.frexp(float(np.abs(embeddings).max()))
    embeddings = np.ldexp(embeddings, -exponent)
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

    # scikit-learn is untyped, so pyright infers types from its defaults, here "auto".
    model = KMeans(clusters, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
    with warnings.catch_warnings():
        # If embeddings coincide, as an untrained network's may, some clusters stay empty. That is no error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit_predict(embeddings)


IMPLEMENTATIONS = {"device": _device, "scikit-learn": _scikit_learn}

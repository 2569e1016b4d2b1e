"""Embeddings as points of a plane."""

import numpy as np
from jaxtyping import Float32

from proxynca_jax.machine.extras import require_extra

PCA, UMAP = METHODS = ("pca", "umap")


def project(
    embeddings: Float32[np.ndarray, "images dim"], method: str, *, seed: int
) -> tuple[Float32[np.ndarray, "images 2"], str]:
    """Projects embeddings onto a plane.

    Args:
        embeddings: at least three.
        method: one of METHODS.
        seed: of UMAP.

    Returns:
        The points, and what the plane shows.

    Raises:
        UserError: if UMAP is not installed.
    """
    if method == UMAP:
        require_extra("umap", "umap")
        import umap

        near = min(15, len(embeddings) - 1)  # UMAP's default, and all that there are
        mapper = umap.UMAP(n_neighbors=near, metric="cosine", random_state=seed, n_jobs=1)
        points = np.asarray(mapper.fit_transform(embeddings), np.float32)
        return points, "UMAP: near images are near here; distances between groups mean little."
    centred = embeddings - embeddings.mean(0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.pad(axes, ((0, max(2 - len(axes), 0)), (0, 0)))[:2]
    share = np.square(lengths[:2]).sum() / max(np.square(lengths).sum(), 1e-30)
    text = f"the two principal components, which hold {share:.0%} of the variance: images that are near here need not "
    return (centred @ axes.T).astype(np.float32), f"{text}be near in all {embeddings.shape[1]} dimensions."

"""ProxyNCA (Movshovitz-Attias et al., *No Fuss Distance Metric Learning using Proxies*, arXiv 1703.07464)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from proxynca_jax.config import LossConfig
from proxynca_jax.models.network import unit_vectors


def negative_squared_distances(
    embeddings: Float[Array, "batch dim"],
    proxies: Float[Array, "classes dim"],
    *,
    embedding_scale: float,
    proxy_scale: float,
) -> Float[Array, "batch classes"]:
    """Computes the logits of ProxyNCA, −‖s_x·x/‖x‖ − s_p·p/‖p‖‖².

    Args:
        embeddings: one vector per image, of any length.
        proxies: one vector per class, of any length.
        embedding_scale: s_x, the length to which embeddings are scaled.
        proxy_scale: s_p, the length to which proxies are scaled.

    Returns:
        Values from −(s_x + s_p)² to −(s_x − s_p)².
    """
    x = embedding_scale * unit_vectors(embeddings)
    p = proxy_scale * unit_vectors(proxies)
    squared_lengths = jnp.sum(jnp.square(x), -1)[:, None] + jnp.sum(jnp.square(p), -1)[None, :]
    # Full precision: TF32, the default on GPUs, would cost three digits of the loss, and this product is small.
    return 2 * jnp.matmul(x, p.T, precision="highest") - squared_lengths


def proxy_nca(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], *, label_smoothing: float
) -> Float[Array, " batch"]:
    """Computes the reference's loss: cross-entropy over all proxies with smoothed labels.

    The paper's equation 4 differs in two ways: its denominator excludes the positive proxy, and it does not smooth.

    Args:
        logits: from `negative_squared_distances`.
        labels: class of each image, 0 to C−1.
        label_smoothing: probability mass that the C−1 other classes share evenly, 0 to 1.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0]
    others = (jnp.sum(log_probabilities, 1) - own) / max(logits.shape[1] - 1, 1)
    return -(1 - label_smoothing) * own - label_smoothing * others


def proxy_nca_without_positive(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Computes the paper's loss (equation 4): the denominator excludes the positive proxy. It can be negative.

    Args:
        logits: from `negative_squared_distances`.
        labels: class of each image, 0 to C−1.
    """
    is_own = labels[:, None] == jnp.arange(logits.shape[1])[None, :]
    own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), 1) - own


def reference_loss(
    embeddings: Float[Array, "batch dim"],
    proxies: Float[Array, "classes dim"],
    labels: Int[Array, " batch"],
    config: LossConfig,
) -> Float[Array, ""]:
    """Computes the mean of `proxy_nca` over a batch."""
    logits = _logits(embeddings, proxies, config)
    return jnp.mean(proxy_nca(logits, labels, label_smoothing=config.label_smoothing))


def paper_loss(
    embeddings: Float[Array, "batch dim"],
    proxies: Float[Array, "classes dim"],
    labels: Int[Array, " batch"],
    config: LossConfig,
) -> Float[Array, ""]:
    """Computes the mean of `proxy_nca_without_positive` over a batch."""
    return jnp.mean(proxy_nca_without_positive(_logits(embeddings, proxies, config), labels))


def initial_proxies(rng: np.random.Generator, classes: int, dim: int) -> Float32[np.ndarray, "classes dim"]:
    """Draws proxies as the reference does: normal, with a standard deviation of 1/8."""
    return rng.standard_normal((classes, dim), np.float32) / 8


def _logits(
    embeddings: Float[Array, "batch dim"], proxies: Float[Array, "classes dim"], config: LossConfig
) -> Float[Array, "batch classes"]:
    return negative_squared_distances(
        embeddings, proxies, embedding_scale=config.embedding_scale, proxy_scale=config.proxy_scale
    )

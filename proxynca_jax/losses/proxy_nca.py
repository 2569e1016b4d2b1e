"""ProxyNCA (Movshovitz-Attias et al., *No Fuss Distance Metric Learning using Proxies*, arXiv 1703.07464)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from proxynca_jax.models.network import unit_vectors


def negative_squared_distances(
    embeddings: Float[Array, "batch dim"],
    proxies: Float[Array, "classes dim"],
    *,
    embedding_scale: float,
    proxy_scale: float,
) -> Float[Array, "batch classes"]:
    """The logits of ProxyNCA, −‖s_x·x/‖x‖ − s_p·p/‖p‖‖².

    Args:
        embeddings: one vector an image, of any length.
        proxies: one vector a class, of any length.
        embedding_scale: s_x, length given to the embeddings.
        proxy_scale: s_p, length given to the proxies.

    Returns:
        Values from −(s_x + s_p)² to −(s_x − s_p)².
    """
    x = embedding_scale * unit_vectors(embeddings)
    p = proxy_scale * unit_vectors(proxies)
    squared_lengths = jnp.sum(jnp.square(x), -1)[:, None] + jnp.sum(jnp.square(p), -1)[None, :]
    # Full precision: a GPU's default TF32 would cost three digits of the loss, and this product is small.
    return 2 * jnp.matmul(x, p.T, precision="highest") - squared_lengths


def proxy_nca(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], *, label_smoothing: float
) -> Float[Array, " batch"]:
    """The reference's loss: cross-entropy over all proxies, the image's own included, with smoothed labels.

    Departs from the paper's equation 4, whose denominator leaves the own proxy out and which does not smooth.

    Args:
        logits: from `negative_squared_distances`.
        labels: class of each image, 0 to C−1.
        label_smoothing: probability mass spread evenly over the C−1 other classes, 0 to 1.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0]
    others = (jnp.sum(log_probabilities, 1) - own) / max(logits.shape[1] - 1, 1)
    return -(1 - label_smoothing) * own - label_smoothing * others


def proxy_nca_without_positive(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """The paper's loss (equation 4): the denominator sums over the other classes' proxies only. May be negative.

    Args:
        logits: from `negative_squared_distances`.
        labels: class of each image, 0 to C−1.
    """
    is_own = labels[:, None] == jnp.arange(logits.shape[1])[None, :]
    own = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), 1) - own

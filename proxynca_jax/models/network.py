"""Pixels to unit vectors: normalisation on the device, the backbone, the embedding layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx
from jaxtyping import Array, Float, UInt8

from proxynca_jax.machine.precision import PRECISIONS, activation_dtype
from proxynca_jax.models.bn_inception import FEATURES, BNInception


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What the weights expect of their pixels; travels with them into every saved file."""

    channel_order: str = "BGR"
    mean: tuple[float, float, float] = (104.0, 117.0, 128.0)  # subtracted, in channel order, from the range 0-255
    image_size: int = 227  # pixels, side of the square


BN_INCEPTION = Preprocessing()


def normalise(images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """RGB bytes to what BN-Inception's weights expect: BGR, 0-255, minus the mean."""
    return jnp.asarray(images[..., ::-1], jnp.float32) - jnp.asarray(BN_INCEPTION.mean)[None, None, None]


def unit_vectors(x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
    """Divides each row by its Euclidean length, or by 1e-12 if it is shorter (PyTorch's `F.normalize`)."""
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    # The root is taken of a positive number only: at a zero row its gradient would be infinite.
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class Linear(nnx.Module):
    """Affine map that starts as the reference's embedding layer does."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator):
        """Args:
        inputs: dimensions in.
        outputs: dimensions out.
        rng: source of the initial kernel (normal of σ 0.001, truncated at 2σ) and bias (uniform ±1/√inputs).
        """
        below, above = scipy.special.ndtr([-2.0, 2.0])
        kernel = 0.001 * scipy.special.ndtri(rng.uniform(below, above, (inputs, outputs)))
        bias = rng.uniform(-(inputs**-0.5), inputs**-0.5, outputs)
        self.kernel = nnx.Param(jnp.array(kernel, jnp.float32))
        self.bias = nnx.Param(jnp.array(bias, jnp.float32))

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        # In float32 everywhere, as PyTorch multiplies matrices on GPUs too.
        return jnp.matmul(x, self.kernel[...], precision="highest") + self.bias[...][None]


class Embedder(nnx.Module):
    """Images to unit vectors of `embedding_dim`."""

    def __init__(self, embedding_dim: int, *, batch_norm_momentum: float, compute_dtype: str, rng: np.random.Generator):
        """Args:
        embedding_dim: D, width of an embedding.
        batch_norm_momentum: share of the old running statistics kept at each training step, 0 to 1.
        compute_dtype: the arithmetic of the convolutions, one of `precision.PRECISIONS`. Parameters, statistics,
            features and embeddings are float32.
        rng: source of the initial weights; the embedding layer's are those of the reference.
        """
        precision = PRECISIONS[compute_dtype]
        self.backbone = BNInception(batch_norm_momentum=batch_norm_momentum, rng=rng, precision=precision)
        self.embedding_layer = Linear(FEATURES, embedding_dim, rng=rng)
        self.activation_dtype = activation_dtype(compute_dtype)

    def fold(self) -> None:
        """As `BNInception.fold`."""
        self.backbone.fold()

    def __call__(self, images: UInt8[Array, "batch size size 3"], *, train: bool) -> Float[Array, "batch dim"]:
        """Embeds images.

        Args:
            images: RGB bytes.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            Vectors of length 1.
        """
        pixels = normalise(images).astype(self.activation_dtype)  # whole numbers below 256: exact in bfloat16 as well
        return unit_vectors(self.embedding_layer(self.backbone(pixels, train=train)))

"""From pixels to unit vectors: normalisation on the device, a backbone, and the embedding layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import nnx
from jaxtyping import Array, Float, UInt8

from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import look_up
from proxynca_jax.machine.precision import PRECISIONS, activation_dtype
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.backbone import Backbone, normalise
from proxynca_jax.models.convolution import on_device

TRAINING_PASSES = 3  # FLOP of a training step in forward passes: one forward, one per gradient (weights, inputs)
Tree = dict[str, Any]  # nested dicts of arrays


class Variables(NamedTuple):
    """The arrays of a network, by layer and name."""

    params: Tree
    batch_stats: Tree  # BatchNorm's running statistics


def unit_vectors(x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
    """X / max(‖x‖, 1e-12), row by row, as PyTorch's `F.normalize`."""
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    # The maximum is inside of the root, whose gradient is infinite at 0.
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class Linear(nnx.Module):
    """Affine map that starts as the reference's embedding layer does."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator | None):
        """Args:
        inputs: dimensions in.
        outputs: dimensions out.
        rng: source of the initial kernel (normal with σ = 0.001, truncated at 2σ) and bias (uniform between
            ±1/√inputs); None starts from zeros.
        """
        kernel, bias = np.zeros((inputs, outputs)), np.zeros(outputs)
        if rng is not None:
            below, above = scipy.special.ndtr([-2.0, 2.0])
            kernel = 0.001 * scipy.special.ndtri(rng.uniform(below, above, (inputs, outputs)))
            bias = rng.uniform(-(inputs**-0.5), inputs**-0.5, outputs)
        self.kernel = nnx.Param(on_device(kernel.astype(np.float32)))
        self.bias = nnx.Param(on_device(bias.astype(np.float32)))

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        # Always in float32, as PyTorch multiplies matrices on GPUs too.
        return jnp.matmul(x, self.kernel[...], precision="highest") + self.bias[...][None]


class Network(nnx.Module):
    """Images to unit vectors: the embedding layer's or, without one, the backbone's features."""

    def __init__(
        self,
        backbone: Backbone,
        embedding_dim: int,
        *,
        batch_norm_momentum: float,
        compute_dtype: str,
        rng: np.random.Generator | None,
    ):
        """Args:
        backbone: a row of `BACKBONES`.
        embedding_dim: D, width of an embedding; 0 for no embedding layer.
        batch_norm_momentum: share of the old running statistics kept at each training step, 0 to 1.
        compute_dtype: the arithmetic of the convolutions, one of `precision.PRECISIONS`. Parameters, statistics,
            features and embeddings are float32.
        rng: source of the initial weights; None starts from zeros.
        """
        precision = PRECISIONS[compute_dtype]
        self.backbone = backbone.build(batch_norm_momentum=batch_norm_momentum, rng=rng, precision=precision)
        self.embedding_layer = Linear(backbone.features, embedding_dim, rng=rng) if embedding_dim else None
        self.preprocessing = backbone.preprocessing
        self.activation_dtype = activation_dtype(compute_dtype)

    def fold(self) -> None:
        """Moves BatchNorm's running statistics into the convolutions. The network cannot be trained afterwards."""
        self.backbone.fold()

    def __call__(self, images: UInt8[Array, "batch size size 3"], *, train: bool) -> Float[Array, "batch dim"]:
        """Embeds images.

        Args:
            images: RGB bytes.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            Vectors of length 1.
        """
        # BN-Inception's pixels are whole numbers below 256, which bfloat16 represents exactly.
        pixels = normalise(images, self.preprocessing).astype(self.activation_dtype)
        features = self.backbone(pixels, train=train)
        return unit_vectors(self.embedding_layer(features) if self.embedding_layer else features)


def init_network(config: ModelConfig, rng: np.random.Generator | None) -> tuple[nnx.GraphDef, Variables]:
    """Builds a network.

    Args:
        config: which network.
        rng: source of the initial weights; None starts from zeros.

    Raises:
        UserError: if there is no such backbone.
    """
    network = Network(
        look_up(BACKBONES, config.backbone, "model.backbone"),
        config.embedding_dim,
        batch_norm_momentum=config.batch_norm_momentum,
        compute_dtype=config.compute_dtype,
        rng=rng,
    )
    graph, params, batch_stats = nnx.split(network, nnx.Param, nnx.BatchStat)
    return graph, Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats))


def abstract_network(config: ModelConfig) -> tuple[nnx.GraphDef, Variables]:
    """As `init_network`, with a `jax.ShapeDtypeStruct` in place of each array; no number is drawn."""
    return jax.eval_shape(functools.partial(init_network, config, None))


def forward_flops(config: ModelConfig, image_size: int) -> int:
    """Model FLOP of embedding one image.

    A multiplication and an addition are two. Convolutions and the embedding layer count. BatchNorm, ReLU, pools, loss
    and optimiser do not: memory bounds them, not arithmetic.

    Args:
        config: which network.
        image_size: pixels, a size that fits the backbone.
    """
    backbone = BACKBONES[config.backbone]
    return backbone.forward_flops(image_size) + 2 * backbone.features * config.embedding_dim

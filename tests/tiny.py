"""A backbone of two layers that compiles in a second, for tests of the code around the network."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxynca_jax.models.backbone import Backbone, Preprocessing
from proxynca_jax.models.batch_norm import BatchNorm, batch_norm_act

FEATURES = 16


class Tiny(nnx.Module):
    """BatchNorm and ReLU of the pixels, their mean, and a linear map."""

    def __init__(self, *, batch_norm_momentum: float, rng: np.random.Generator | None, precision: jax.lax.Precision):
        self.norm = BatchNorm(3, momentum=batch_norm_momentum)
        shape = (3, FEATURES)
        self.kernel = nnx.Param(jnp.array(np.zeros(shape) if rng is None else rng.standard_normal(shape), jnp.float32))

    def stages(self, pixels: jax.Array, *, train: bool):
        colours = batch_norm_act(pixels, jnp.zeros(3), [self.norm], train=train).mean((1, 2))
        yield "features", 10 * colours @ self.kernel[...]  # the embedding layer's kernel starts small

    def __call__(self, pixels: jax.Array, *, train: bool) -> jax.Array:
        ((_, features),) = self.stages(pixels, train=train)
        return features

    def fold(self) -> None:
        """Keeps the norm."""


TINY = Backbone(
    title="the tiny network",
    build=Tiny,
    features=FEATURES,
    preprocessing=Preprocessing(
        channel_order="RGB",
        scale=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        image_size=32,
        resize_size=32,
    ),
    fits=lambda size: size % 2 == 0,
    size_rule="the size must be even",
    forward_flops=lambda size: 2 * 3 * FEATURES,
)

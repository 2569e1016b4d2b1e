"""A network of one layer, in place of the real one where the loop around it is looked at."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxynca_jax.models.layers import BatchNorm, batch_norm_relu
from proxynca_jax.models.network import normalise, unit_vectors


class TinyEmbedder(nnx.Module):
    """Compiles in a second."""

    def __init__(self, embedding_dim: int, *, batch_norm_momentum: float, compute_dtype: str, rng: np.random.Generator):
        self.norm = BatchNorm(3, momentum=batch_norm_momentum)
        self.kernel = nnx.Param(jnp.array(rng.standard_normal((3, embedding_dim), np.float32)))

    def fold(self) -> None:
        """Leaves the norm as it is."""

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        colours = batch_norm_relu(normalise(images), jnp.zeros(3), [self.norm], train=train).mean((1, 2))
        return unit_vectors(colours @ self.kernel[...])

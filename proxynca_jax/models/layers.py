"""The layers of BN-Inception. What they compute is PyTorch's; how, what each platform does fastest. Images are NHWC."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

BATCH_NORM_EPSILON = 1e-5
SMALL_MAP = 16  # pixels, side of the largest map that is convolved by way of its windows on a CPU


class BatchNorm(nnx.Module):
    """Batch normalisation with PyTorch's running statistics.

    The batch is normalised with its biased variance, while the running variance takes the unbiased one, which
    `flax.nnx.BatchNorm` does not.
    """

    def __init__(self, features: int, *, momentum: float):
        """Args:
        features: channels.
        momentum: share of the old running statistics kept at each step, 0 to 1. PyTorch's is 1 minus this.
        """
        ones, zeros = np.ones(features, np.float32), np.zeros(features, np.float32)
        self.scale, self.bias = nnx.Param(jnp.array(ones)), nnx.Param(jnp.array(zeros))
        self.mean, self.var = nnx.BatchStat(jnp.array(zeros)), nnx.BatchStat(jnp.array(ones))
        self.momentum = momentum

    def __call__(self, x: Float[Array, "batch height width channels"], *, train: bool) -> Float[Array, "..."]:
        """Normalises `x`; with `train`, by its own statistics, which then enter the running ones."""
        if train:
            mean = jnp.mean(x, (0, 1, 2))
            var = jnp.mean(jnp.square(x - mean[None, None, None]), (0, 1, 2))
            count = x.size // x.shape[-1]
            self._update(mean, var * (count / max(count - 1, 1)))
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return x * factor[None, None, None] + (self.bias[...] - mean * factor)[None, None, None]

    def _update(self, mean: Float[Array, " channels"], var: Float[Array, " channels"]) -> None:
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * jax.lax.stop_gradient(mean)
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * jax.lax.stop_gradient(var)


class Conv(nnx.Module):
    """Convolution with bias, odd square kernel, padded so that stride 1 keeps the size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, rng: np.random.Generator):
        """Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel, odd.
        stride: step in both directions.
        rng: source of the initial kernel, He normal. NumPy, since compiling JAX's generators for some fifty shapes
            takes ten seconds and more, and these are the same numbers on every device.
        """
        deviation = np.float32(np.sqrt(2 / (kernel * kernel * inputs)))
        draw = rng.standard_normal((kernel, kernel, inputs, outputs), np.float32)
        self.kernel = nnx.Param(jnp.array(deviation * draw))
        self.bias = nnx.Param(jnp.array(np.zeros(outputs, np.float32)))
        self.stride = stride

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "..."]:
        return convolve(x, self.kernel[...], self.stride) + self.bias[...][None, None, None]


def convolve(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "side side inputs outputs"], stride: int
) -> Float[Array, "..."]:
    """Convolution with an odd square kernel, padded so that stride 1 keeps the size."""
    side, height = kernel.shape[0], x.shape[1]
    if side == 1:
        return _contract(x[:, ::stride, ::stride], kernel[0, 0])
    if height > SMALL_MAP:
        return _convolve(x, kernel, stride)
    # On small maps XLA's convolutions for CPUs, above all their gradients, are several times slower than one matrix
    # product with every window laid out as a row.
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _contract(_windows(x, side, stride), kernel.reshape(-1, kernel.shape[3])),
        default=lambda x, kernel: _convolve(x, kernel, stride),
    )


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    pads = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (pads, pads), dimension_numbers=numbers)


def _windows(x: Array, side: int, stride: int) -> Array:
    """Every window's pixels, one after the other along the last axis."""
    pad = side // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (stride * ((size - 1) // stride) + 1 for size in x.shape[1:3])
    return jnp.concatenate(
        [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(side) for j in range(side)], -1
    )


def _contract(x: Array, matrix: Array) -> Array:
    return jax.lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def max_pool(x: Float[Array, "batch height width channels"], *, stride: int) -> Float[Array, "..."]:
    """3x3 maximum. Stride 2 rounds sizes up without padding on the left (ceil mode); stride 1 keeps them."""
    pad = (1, 1) if stride == 1 else (0, 1)
    pads = [(0, 0), pad, pad, (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pads)


def average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "..."]:
    """3x3 mean of stride 1 over zero-padded borders, which count: the divisor is 9 everywhere."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads) / 9

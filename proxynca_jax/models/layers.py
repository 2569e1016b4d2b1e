"""The layers of BN-Inception. What they compute is PyTorch's; how, what each platform does fastest. Images are NHWC."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

BATCH_NORM_EPSILON = 1e-5
SMALL_MAP = 8  # pixels; on a CPU, maps of this side and less are convolved by way of their windows
LARGE_MAP = 32  # pixels; on a CPU, kernel gradients on maps of more than this side are sums of products


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

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        bias: Float[Array, " channels"] | float = 0.0,
        *,
        train: bool,
    ) -> Float[Array, "..."]:
        """Normalises `x + bias`; with `train`, by its own statistics, which then enter the running ones.

        The mean takes the bias of the convolution before away again: it need not be added to every pixel, and where
        the batch normalises itself its gradient is 0.
        """
        if train:
            mean = jnp.mean(x, (0, 1, 2))
            var = jnp.mean(jnp.square(x - mean[None, None, None]), (0, 1, 2))
            count = x.size // x.shape[-1]
            self._update(mean + bias, var * (count / max(count - 1, 1)))
        else:
            mean, var = self.mean[...] - bias, self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return x * factor[None, None, None] + (self.bias[...] - mean * factor)[None, None, None]

    def _update(self, mean: Float[Array, " channels"], var: Float[Array, " channels"]) -> None:
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * jax.lax.stop_gradient(mean)
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * jax.lax.stop_gradient(var)


class Conv(nnx.Module):
    """Convolution with an odd square kernel, padded so that stride 1 keeps the size. Its bias is BatchNorm's to add."""

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
        return convolve(x, self.kernel[...], self.stride)


def convolve(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "side side inputs outputs"], stride: int
) -> Float[Array, "..."]:
    """Convolution with an odd square kernel, padded so that stride 1 keeps the size."""
    if kernel.shape[0] == 1:
        return _contract(x[:, ::stride, ::stride], kernel[0, 0])
    on_cpu = functools.partial(_convolve_on_cpu, stride=stride)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=functools.partial(_convolve, stride=stride))


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    pads = (kernel.shape[0] // 2, kernel.shape[0] // 2)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (pads, pads), dimension_numbers=numbers)


def _convolve_on_cpu(x: Array, kernel: Array, stride: int) -> Array:
    """The same, around what XLA does slowly on CPUs: any convolution of small maps, kernel gradients of large ones."""
    if x.shape[1] <= SMALL_MAP:
        return _contract(jnp.concatenate(_taps(x, len(kernel), stride), -1), kernel.reshape(-1, kernel.shape[3]))
    return _convolve_large(x, kernel, stride) if x.shape[1] > LARGE_MAP else _convolve(x, kernel, stride)


_convolve_large = jax.custom_vjp(_convolve, nondiff_argnums=(2,))


def _convolve_large_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_large_backward(stride: int, inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    _, pull = jax.vjp(lambda x: _convolve(x, kernel, stride), x)
    places = gradient.reshape(-1, gradient.shape[-1])
    taps, side = _taps(x, len(kernel), stride), len(kernel)
    # A row of the kernel at a time: all at once are slower, and so is each alone where its channels are few.
    rows = [jnp.concatenate(taps[start : start + side], -1) for start in range(0, side * side, side)]
    products = [jnp.matmul(row.reshape(len(places), -1).T, places) for row in rows]
    return pull(gradient)[0], jnp.stack(products).reshape(kernel.shape)


_convolve_large.defvjp(_convolve_large_forward, _convolve_large_backward)


def _taps(x: Array, side: int, stride: int) -> list[Array]:
    """For each of the kernel's places, row by row, the pixels that it meets."""
    pad = side // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (stride * ((size - 1) // stride) + 1 for size in x.shape[1:3])
    return [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(side) for j in range(side)]


def _contract(x: Array, matrix: Array) -> Array:
    return jax.lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def max_pool(x: Float[Array, "batch height width channels"], *, stride: int) -> Float[Array, "..."]:
    """3x3 maximum. Stride 2 rounds sizes up without padding on the left (ceil mode); stride 1 keeps them.

    Of equal pixels the first, row by row, takes the gradient, as in PyTorch.
    """
    return _max_pool(x, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, stride: int) -> Array:
    pad = (1, 1) if stride == 1 else (0, 1)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), [(0, 0), pad, pad, (0, 0)]
    )


def _max_pool_forward(x: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    maximum = _max_pool(x, stride)
    return maximum, (x, maximum)


def _max_pool_backward(stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    """Gathers each pixel's gradient from the windows it is in; XLA's own scatters, with one thread on CPUs."""
    x, maximum = saved
    batch, height, width, channels = x.shape
    rows, columns = maximum.shape[1:3]
    pad, reach = (1 if stride == 1 else 0), 2 // stride  # how many windows further on a pixel can be
    edges = [(pad, stride * (side - 1) + 3 - size - pad) for side, size in ((rows, height), (columns, width))]
    padded = jnp.pad(x, ((0, 0), *edges, (0, 0)), constant_values=-jnp.inf)

    taken, shares = jnp.zeros(maximum.shape, bool), {}
    for i, j in itertools.product(range(3), range(3)):
        stop = i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1
        is_maximum = padded[:, i : stop[0] : stride, j : stop[1] : stride] == maximum
        share = jnp.where(is_maximum & ~taken, gradient, 0)
        taken |= is_maximum
        shift = [(k // stride, reach - k // stride) for k in (i, j)]
        shares[i, j] = jnp.pad(share, ((0, 0), *shift, (0, 0)))

    # Pixels whose coordinates leave the same remainders when divided by the stride have the same places in windows.
    remainders = range(stride)
    sums = [
        [sum(shares[i, j] for i in range(p, 3, stride) for j in range(q, 3, stride)) for q in remainders]
        for p in remainders
    ]
    interleaved = jnp.stack([jnp.stack(row, 3) for row in sums], 2)
    whole = interleaved.reshape(batch, stride * (rows + reach), stride * (columns + reach), channels)
    return (whole[:, pad : pad + height, pad : pad + width],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "..."]:
    """3x3 mean of stride 1 over zero-padded borders, which count: the divisor is 9 everywhere."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads) / 9

"""The layers of BN-Inception. What they compute is PyTorch's; how, what each platform does fastest. Images are NHWC."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

BATCH_NORM_EPSILON = 1e-5
SMALL_MAP = 8  # pixels; on a CPU, maps of this side and less are convolved by way of their windows
FEW_CHANNELS = 8  # on a GPU, fewer are convolved by blocks of pixels if the stride is more than 1
LARGE_MAP = 32  # pixels; on a CPU, kernel gradients on maps of more than this side are sums of products


class BatchNorm(nnx.Module):
    """The parameters and running statistics of a batch normalisation, which `batch_norm_relu` applies.

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

    def update(self, mean: Float[Array, " channels"], var: Float[Array, " channels"]) -> None:
        """Lets a batch's mean and unbiased variance enter the running ones."""
        # Not `self.mean[...] =`, for which Flax asks for shardings: a fifth of the time that tracing a step takes.
        self.mean.set_value(self.momentum * self.mean[...] + (1 - self.momentum) * mean)
        self.var.set_value(self.momentum * self.var[...] + (1 - self.momentum) * var)


def batch_norm_relu(
    x: Float[Array, "batch height width channels"],
    shift: Float[Array, " channels"],
    norms: Sequence[BatchNorm],
    *,
    train: bool,
) -> Float[Array, "batch height width channels"]:
    """Normalises `x + shift` and sets what is negative to 0.

    Args:
        x: a convolution without its bias; float32 or bfloat16, as is the result. All else is float32.
        shift: the bias. A batch's own mean takes it away again, so that in training it enters the running mean only.
        norms: whose channels follow each other in `x`.
        train: normalise by the batch's statistics, which then enter the running ones.
    """
    scale, bias, running_mean, var = (
        jnp.concatenate([getattr(norm, leaf)[...] for norm in norms]) for leaf in ("scale", "bias", "mean", "var")
    )
    if not train:
        factor = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        offset = bias + (shift - running_mean) * factor
        return jnp.maximum(_affine(x, factor, offset), 0).astype(x.dtype)
    y, mean, var = _normalise_batch(x, shift, scale, bias, running_mean)
    count = x.size // x.shape[-1]
    ends = np.cumsum([norm.mean.shape[0] for norm in norms])[:-1]
    statistics = (jnp.split(values, ends) for values in (mean + shift, var * (count / max(count - 1, 1))))
    for norm, *own in zip(norms, *statistics, strict=True):
        norm.update(*own)
    return y


@jax.custom_vjp
def _normalise_batch(x: Array, shift: Array, scale: Array, bias: Array, guess: Array) -> tuple[Array, Array, Array]:
    """Normalises `x` by its own statistics and rectifies: also its mean and biased variance, which have no gradient.

    Written out with its gradient, as differentiation finds neither: one pass over `x` takes the statistics and one
    normalises; backward, one over `x` and the gradient takes both sums and one applies them. `x` is all that is kept.

    Args:
        x: float32 or bfloat16.
        shift: one a channel, without gradient.
        scale: one a channel.
        bias: one a channel.
        guess: about the mean of `x + shift`, without gradient. From the squares of the distances to it the variance is
            found in the same pass as the mean, without the cancellation that squares of large values would bring.
    """
    return _normalise_forward(x, shift, scale, bias, guess)[0]


def _normalise_forward(
    x: Array, shift: Array, scale: Array, bias: Array, guess: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    # Not minus the difference of the two, for which a GPU would launch a kernel of its own.
    distances = x.astype(jnp.float32) + shift[None, None, None] - guess[None, None, None]
    off, squared = (sums / (x.size // x.shape[-1]) for sums in _sums(distances, jnp.square(distances)))
    var = jnp.maximum(squared - jnp.square(off), 0)
    mean, inverse = guess - shift + off, jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    factor = scale * inverse
    offset = bias - mean * factor
    y = jnp.maximum(_affine(x, factor, offset), 0).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, factor, offset)


def _normalise_backward(kept: tuple[Array, ...], gradients: tuple[Array, ...]) -> tuple[Array | None, ...]:
    x, mean, inverse, factor, offset = kept
    distances = x.astype(jnp.float32) - mean[None, None, None]
    gradient = jnp.where(_affine(x, factor, offset) > 0, gradients[0].astype(jnp.float32), 0)
    of_bias, of_distances = _sums(gradient, gradient * distances)
    of_scale = of_distances * inverse
    count = x.size // x.shape[-1]
    slope = of_scale * inverse / count
    centred = gradient - (of_bias / count)[None, None, None] - distances * slope[None, None, None]
    return (centred * factor[None, None, None]).astype(x.dtype), None, of_scale, of_bias, None


_normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def _sums(first: Array, second: Array) -> list[Array]:
    """Sums of both over images and pixels."""

    def together(*maps: Array) -> list[Array]:
        zeros = jnp.float32(0), jnp.float32(0)
        return list(jax.lax.reduce(maps, zeros, lambda x, y: (x[0] + y[0], x[1] + y[1]), (0, 1, 2)))

    def apart(*maps: Array) -> list[Array]:
        return [jnp.sum(values, (0, 1, 2)) for values in maps]

    # On a GPU one reduction of both is one pass over what they are made from.
    return jax.lax.platform_dependent(first, second, cpu=apart, default=together)


def _affine(x: Array, factor: Array, offset: Array) -> Array:
    return x * factor[None, None, None] + offset[None, None, None]


class Conv(nnx.Module):
    """The kernel and bias of a convolution, which `convolve` and `batch_norm_relu` apply.

    The kernel's output channels come first, not last as in Flax: so cuDNN gives its gradient, which XLA would otherwise
    have to transpose for the optimiser.
    """

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
        self.kernel = nnx.Param(jnp.array(deviation * draw.transpose(3, 0, 1, 2)))
        self.bias = nnx.Param(jnp.array(np.zeros(outputs, np.float32)))
        self.stride = stride


def fold_batch_norm(convolution: Conv, norm: BatchNorm) -> None:
    """Gives a convolution the kernel and the bias with which it does what `norm` does after it in inference."""
    factor = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + BATCH_NORM_EPSILON)
    convolution.bias[...] = norm.bias[...] + (convolution.bias[...] - norm.mean[...]) * factor
    convolution.kernel[...] = convolution.kernel[...] * factor[:, None, None, None]


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "outputs side side inputs"],
    stride: int,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "..."]:
    """Convolution with an odd square kernel, padded so that stride 1 keeps the size.

    `precision` counts for the gradients too. A CPU computes float32 in float32 whatever it says.
    """
    on_cpu = functools.partial(_convolve_on_cpu, stride=stride)
    convolve = _convolve_blocks if kernel.shape[3] < FEW_CHANNELS and stride > 1 else _convolve
    default = functools.partial(convolve, stride=stride, precision=precision)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


def _convolve(
    x: Array, kernel: Array, stride: int, order: str = "OHWI", precision: jax.lax.Precision | None = None
) -> Array:
    pads = (kernel.shape[1] // 2, kernel.shape[1] // 2)
    numbers, strides = ("NHWC", order, "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, (pads, pads), dimension_numbers=numbers, precision=precision
    )


def _convolve_blocks(x: Array, kernel: Array, stride: int, precision: jax.lax.Precision) -> Array:
    """The same by blocks of pixels: what lies within a block of the stride's side becomes channels, of stride 1.

    The units for matrix products take channels in eights, so that three pixels' colours would leave most of them idle.
    """
    side = kernel.shape[1]
    taps = -(-side // stride)  # blocks that a kernel meets in a row
    wanted = [stride * ((size - 1) // stride + taps) for size in x.shape[1:3]]
    margins = [(side // 2, whole - size - side // 2) for whole, size in zip(wanted, x.shape[1:3], strict=True)]
    grown = (0, taps * stride - side)
    blocks = _gather_blocks(jnp.pad(x, ((0, 0), *margins, (0, 0))), stride)
    kernels = _gather_blocks(jnp.pad(kernel, ((0, 0), grown, grown, (0, 0))), stride)
    numbers = ("NHWC", "OHWI", "NHWC")
    return jax.lax.conv_general_dilated(
        blocks, kernels, (1, 1), "VALID", dimension_numbers=numbers, precision=precision
    )


def _gather_blocks(x: Array, side: int) -> Array:
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height // side, width // side, side * side * channels)


_convolve_hwio = functools.partial(_convolve, order="HWIO")


def _convolve_on_cpu(x: Array, kernel: Array, stride: int) -> Array:
    """The same, around what XLA does slowly on CPUs: any convolution of small maps, kernel gradients of large ones."""
    kernel = kernel.transpose(1, 2, 3, 0)  # HWIO, in which XLA moves less there
    if len(kernel) == 1:
        return _contract(x[:, ::stride, ::stride], kernel[0, 0])
    if x.shape[1] <= SMALL_MAP:
        return _contract(jnp.concatenate(_taps(x, len(kernel), stride), -1), kernel.reshape(-1, kernel.shape[3]))
    return _convolve_large(x, kernel, stride) if x.shape[1] > LARGE_MAP else _convolve_hwio(x, kernel, stride)


_convolve_large = jax.custom_vjp(_convolve_hwio, nondiff_argnums=(2,))


def _convolve_large_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_hwio(x, kernel, stride), (x, kernel)


def _convolve_large_backward(stride: int, inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    if stride == 1 and kernel.shape[2] < kernel.shape[3]:  # fewer products of pixels to sum than pixels to gather
        of_x = _image_gradients(kernel, gradient)
    else:
        (of_x,) = jax.linear_transpose(lambda x: _convolve_hwio(x, kernel, stride), x)(gradient)
    return of_x, _kernel_gradient(x, gradient, len(kernel), stride)


def _kernel_gradient(x: Array, gradient: Array, side: int, stride: int) -> Array:
    """A product for each image: all pixels that a place of the kernel meets times the gradients there."""

    def product(image: Array, gradient: Array) -> Array:
        taps = jnp.concatenate(_taps(image.transpose(2, 0, 1), side, stride))
        places = gradient.reshape(-1, gradient.shape[-1])
        return _product(taps.reshape(-1, len(places)), places)

    def add(totals: Array, images: tuple[Array, Array]) -> tuple[Array, None]:
        return totals + jax.vmap(product)(*images), None

    turns = _take_turns(x), _take_turns(gradient)
    zeros = jnp.zeros((turns[0].shape[1], side * side * x.shape[3], gradient.shape[3]), jnp.float32)
    totals, _ = jax.lax.scan(add, zeros, turns)
    return jnp.sum(totals, 0).astype(x.dtype).reshape(side, side, x.shape[3], gradient.shape[3])


def _image_gradients(kernel: Array, gradient: Array) -> Array:
    """Every pixel's gradient times every place of the kernel, a product for each image, then summed where they meet."""
    side, _, inputs, outputs = kernel.shape
    matrix = kernel.transpose(3, 0, 1, 2).reshape(outputs, -1)

    def one(gradient: Array) -> Array:
        pad = side // 2
        padded = jnp.pad(gradient, ((pad, pad), (pad, pad), (0, 0)))
        products = _product(padded, matrix).reshape(*padded.shape[:2], side, side, inputs)
        height, width, _ = gradient.shape
        met = [
            products[i : i + height, j : j + width, side - 1 - i, side - 1 - j]
            for i, j in itertools.product(range(side), range(side))
        ]
        return sum(met[1:], met[0]).astype(gradient.dtype)

    _, turns = jax.lax.scan(lambda _, images: (None, jax.vmap(one)(images)), None, _take_turns(gradient))
    return turns.swapaxes(0, 1).reshape(*gradient.shape[:3], inputs)


def _take_turns(x: Array) -> Array:
    """Lets every device work on one image of its own share of the batch at a time: turns first, then devices."""
    devices = math.gcd(len(x), jax.device_count())
    return x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


_convolve_large.defvjp(_convolve_large_forward, _convolve_large_backward)


def _taps(x: Array, side: int, stride: int) -> list[Array]:
    """For each of the kernel's places, row by row, the pixels it meets: axes 1 and 2 of `x` are rows and columns."""
    pad = side // 2
    padded = jnp.pad(x, [(0, 0), (pad, pad), (pad, pad), *[(0, 0)] * (x.ndim - 3)])
    rows, columns = (stride * ((size - 1) // stride) + 1 for size in x.shape[1:3])
    return [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(side) for j in range(side)]


@jax.custom_vjp
def _contract(x: Array, matrix: Array) -> Array:
    return jax.lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _contract_forward(x: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return _contract(x, matrix), (x, matrix)


def _contract_backward(inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Differentiation would have the matrix's gradient transposed, for which XLA then transposes `gradient` first."""
    x, matrix = inputs
    rows, places = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return jnp.matmul(gradient, matrix.T), jnp.matmul(rows.T, places)


_contract.defvjp(_contract_forward, _contract_backward)


def max_pool(x: Float[Array, "batch height width channels"], *, stride: int) -> Float[Array, "..."]:
    """3x3 maximum. Stride 2 rounds sizes up without padding on the left (ceil mode); stride 1 keeps them.

    Of equal pixels the first, row by row, takes the gradient, as in PyTorch.
    """
    on_cpu = functools.partial(_max_pool_on_cpu, stride=stride)
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=functools.partial(_max_pool, stride=stride))


def _largest(x: Array, stride: int) -> Array:
    pads = [(0, 0), _pool_pad(stride), _pool_pad(stride), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pads)


def _pool_pad(stride: int) -> tuple[int, int]:
    return (1, 1) if stride == 1 else (0, 1)


_max_pool_on_cpu = jax.custom_vjp(_largest, nondiff_argnums=(1,))
_max_pool = jax.custom_vjp(_largest, nondiff_argnums=(1,))


def _max_pool_on_cpu_forward(x: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    maximum = _largest(x, stride)
    return maximum, (x, maximum)


def _max_pool_on_cpu_backward(stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    """Gathers each pixel's gradient from the windows it is in; XLA's own scatters, with one thread."""
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


_max_pool_on_cpu.defvjp(_max_pool_on_cpu_forward, _max_pool_on_cpu_backward)


def _max_pool_forward(x: Array, stride: int) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    """The maxima, and where in its window each lies, 4 times the row plus the column: no scatter finds its way back."""
    pad = _pool_pad(stride)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((size - 3) // stride * stride + 1 for size in padded.shape[1:3])
    corner, *others = (padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3))
    maxima, places = corner, jnp.zeros(corner.shape, jnp.uint8)
    for place, values in enumerate(others, start=1):
        row, column = divmod(place, 3)
        places = jnp.where(values > maxima, jnp.uint8(4 * row + column), places)
        maxima = jnp.maximum(maxima, values)
    return maxima, (places, x.shape)


def _max_pool_backward(stride: int, kept: tuple[Array, tuple[int, ...]], gradient: Array) -> tuple[Array]:
    """Each pixel asks the windows that it is in, 4 of stride 2 or 9 of stride 1, whether it is their maximum.

    Pixels are taken in blocks of the stride's side, with a window that begins at each block.
    """
    places, shape = kept
    before, _ = _pool_pad(stride)
    reach = 2 // stride  # how many blocks back a window that a pixel is in can begin
    blocks = [-(-(size + before) // stride) for size in shape[1:3]]
    margins = [(reach, count - size) for count, size in zip(blocks, places.shape[1:3], strict=True)]
    around = ((0, 0), *margins, (0, 0))
    places = jnp.pad(places, around, constant_values=255)  # the place of no pixel
    gradient = jnp.pad(gradient, around)
    side = np.arange(stride, dtype=np.uint8)
    # A pixel's place in the window that begins at its block; the axes are images, blocks and pixels in turns, channels.
    own = np.add.outer(4 * side, side).reshape(1, 1, stride, 1, stride, 1)
    total: Any = 0.0
    for i, j in itertools.product(range(reach + 1), range(reach + 1)):
        window = (slice(None), *(slice(reach - k, reach - k + count) for k, count in zip((i, j), blocks, strict=True)))
        met = places[window][:, :, None, :, None] == own + np.uint8(stride * (4 * i + j))
        total += jnp.where(met, gradient[window][:, :, None, :, None].astype(jnp.float32), 0)
    pixels = total.reshape(shape[0], stride * blocks[0], stride * blocks[1], shape[3])
    height, width = shape[1:3]
    return (pixels[:, before : before + height, before : before + width].astype(gradient.dtype),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "..."]:
    """3x3 mean of stride 1 over zero-padded borders, which count: the divisor is 9 everywhere."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    sums = jax.lax.reduce_window(x.astype(jnp.float32), 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads)
    return (sums / 9).astype(x.dtype)

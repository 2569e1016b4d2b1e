"""Depthwise convolution, one kernel per channel: the definition, and a faster algorithm for CPUs. Images are NHWC.

XLA computes these convolutions on a CPU one number at a time. Sums of shifted products are 20 times as fast: XLA turns
them into loops over channels, which processors compute in vectors. oneDNN, if it is there, is faster still.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt32

from proxynca_jax.models.activation import IDENTITY, Activation
from proxynca_jax.models.convolution import on_device, same_padding, then_activate
from proxynca_jax.onednn import operations
from proxynca_jax.onednn.way import uses_onednn

LARGE_MAP = 16  # pixels: above this height, a few images at a time fit the cache
IMAGES_AT_A_TIME = 4  # of large maps
SUMMANDS = 8  # products that one loop adds up: more make it faster and compile more slowly


class DepthwiseConv(nnx.Module):
    """The kernel of a depthwise convolution with `same_padding`, HWIO with one input per output channel."""

    def __init__(self, channels: int, kernel: int, *, stride: int, rng: np.random.Generator | None):
        """Args:
        channels: in and out.
        kernel: side of the kernel in pixels, odd.
        stride: pixels between two windows, in both directions.
        rng: source of the initial kernel, He normal; None starts from zeros.
        """
        shape = (kernel, kernel, 1, channels)
        deviation = np.float32(math.sqrt(2) / kernel)
        draw = np.zeros(shape, np.float32) if rng is None else deviation * rng.standard_normal(shape, np.float32)
        self.kernel = nnx.Param(on_device(draw))
        self.bias: nnx.Param[Array] | None = nnx.data(None)  # until BatchNorm is folded
        self.fingerprint: nnx.Variable[Array] | None = nnx.data(None)  # until BatchNorm is folded
        self.stride = stride

    def multiply_outputs(self, factor: Float[Array, " channels"]) -> None:
        """Multiplies the kernel of each channel by its factor."""
        self.kernel[...] = self.kernel[...] * factor[None, None, None]


def depthwise_convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side 1 channels"],
    stride: int,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    bias: Float[Array, " channels"] | None = None,
    activation: Activation = IDENTITY,
    fingerprint: UInt32[Array, "4"] | None = None,
) -> Float[Array, "batch rows columns channels"]:
    """Depthwise convolution with `same_padding` and an odd, square kernel, and what a folded network does after it.

    Args:
        x: activations; float32 or bfloat16, as is the result.
        kernel: of the type of `x`.
        stride: pixels between two windows, in both directions: 1 or 2.
        precision: of the products, in the gradients too. CPUs compute float32 in float32 whatever it is.
        bias: added to the result, float32.
        activation: applied last.
        fingerprint: as for `convolve`.
    """
    definition = functools.partial(plain_depthwise_convolution, stride=stride, precision=precision)
    if uses_onednn():
        padding = same_padding(x.shape[1:3], len(kernel), stride)
        window = operations.Window(stride, padding, activation, depthwise=True)

        def on_cpu(x: Array, kernel: Array, bias: Array | None) -> Array:
            return operations.convolution(x, kernel, bias, window, fingerprint=fingerprint)

    else:
        on_cpu = then_activate(lambda x, kernel: depthwise_on_cpu(x, kernel, stride), activation)
    return jax.lax.platform_dependent(x, kernel, bias, cpu=on_cpu, default=then_activate(definition, activation))


def plain_depthwise_convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "side side 1 channels"],
    stride: int,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> Float[Array, "batch rows columns channels"]:
    """y[b, i, j, c] = Σ_uv x[b, stride·i + u − top, stride·j + v − left, c] · kernel[u, v, 0, c].

    Pixels outside of the image are 0. `same_padding` gives top and left.

    Args:
        x: as for `depthwise_convolve`.
        kernel: as for `depthwise_convolve`.
        stride: as for `depthwise_convolve`.
        precision: as for `depthwise_convolve`.
    """
    numbers, channels = ("NHWC", "HWIO", "NHWC"), x.shape[3]
    padding = same_padding(x.shape[1:3], len(kernel), stride)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=numbers,
        feature_group_count=channels,
        precision=precision,
    )


# On a CPU: sums of shifted products.


def _sum_of_shifted_products(x: Array, kernel: Array, stride: int) -> Array:
    places = np.ndindex(kernel.shape[:2])
    products = (
        tap * kernel[*place, 0][None, None, None]
        for tap, place in zip(_taps(x, len(kernel), stride), places, strict=True)
    )
    return _add(products).astype(x.dtype)


depthwise_on_cpu = jax.custom_vjp(_sum_of_shifted_products, nondiff_argnums=(2,))


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _sum_of_shifted_products(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return _image_gradient(x.shape, kernel, gradient, stride), _kernel_gradient(x, kernel, gradient, stride)


depthwise_on_cpu.defvjp(_forward, _backward)


def _add(summands: Iterable[Array]) -> Array:
    """Sums in float32, one after the other: XLA computes all of them in one loop."""
    return functools.reduce(lambda total, summand: total + summand, (each.astype(jnp.float32) for each in summands))


def _taps(x: Array, side: int, stride: int) -> list[Array]:
    """Slices of the padded `x`, one per place of the kernel, row by row: the pixels that the place is multiplied with.

    With stride 2, a slice takes every second pixel, which are not adjacent in memory. So pixels are first sorted by
    parity, which makes all slices dense.
    """
    padding = same_padding(x.shape[1:3], side, stride)
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    reach = (side - 1) // stride  # windows further on that contain a pixel too
    wanted = [stride * (count + reach) for count in (rows, columns)]
    margins = [
        (before, whole - before - size, 0)
        for (before, _), whole, size in zip(padding, wanted, x.shape[1:3], strict=True)
    ]
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    batch, height, width, channels = padded.shape
    blocks = padded.reshape(batch, height // stride, stride, width // stride, stride, channels)
    parities = jax.lax.optimization_barrier(blocks.transpose(2, 4, 0, 1, 3, 5))
    return [
        parities[i % stride, j % stride, :, i // stride : i // stride + rows, j // stride : j // stride + columns]
        for i, j in itertools.product(range(side), range(side))
    ]


def _image_gradient(shape: Sequence[int], kernel: Array, gradient: Array, stride: int) -> Array:
    """Gradient with respect to the images: pixels of equal parity have the same places in their windows."""
    side = len(kernel)
    (top, _), (left, _) = same_padding(shape[1:3], side, stride)
    reach = (side - 1) // stride
    rows, columns = gradient.shape[1:3]
    padded = jnp.pad(gradient, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

    def pixels(p: int, q: int) -> Array:
        """Gradients of the pixels `stride`·(a, b) + (p, q) of the padded image."""
        return _add(
            padded[:, reach - i : 2 * reach + rows - i, reach - j : 2 * reach + columns - j]
            * kernel[p + stride * i, q + stride * j, 0][None, None, None]
            for i in range((side - p - 1) // stride + 1)
            for j in range((side - q - 1) // stride + 1)
        ).astype(gradient.dtype)

    parities = range(stride)
    whole = jnp.stack([jnp.stack([pixels(p, q) for q in parities], 3) for p in parities], 2)
    batch, height, width, channels = shape
    whole = whole.reshape(batch, stride * (rows + reach), stride * (columns + reach), channels)
    return whole[:, top : top + height, left : left + width]


def _kernel_gradient(x: Array, kernel: Array, gradient: Array, stride: int) -> Array:
    """Gradient with respect to the kernel: for each place, the products of its taps with the gradient, summed.

    XLA sums over pixels one number at a time. So loops first add up `SUMMANDS` images or groups of rows, and XLA sums
    what is left.
    """
    side = len(kernel)

    def of_images(x: Array, gradient: Array) -> Array:
        groups = _groups(gradient)
        sums = [_add(a * b for a, b in zip(_groups(tap), groups, strict=True)) for tap in _taps(x, side, stride)]
        # The barrier keeps XLA from moving the products into this sum.
        return jnp.sum(jax.lax.optimization_barrier(jnp.stack(sums)), (1, 2, 3))

    if gradient.shape[1] <= LARGE_MAP // stride or len(x) % IMAGES_AT_A_TIME:
        total = of_images(x, gradient)
    else:
        turns = [each.reshape(-1, IMAGES_AT_A_TIME, *each.shape[1:]) for each in (x, gradient)]
        zeros = jnp.zeros((side * side, x.shape[3]), jnp.float32)
        total, _ = jax.lax.scan(lambda total, turn: (total + of_images(*turn), None), zeros, turns)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _groups(x: Array) -> list[Array]:
    """Splits images, or rows of few large images, into `SUMMANDS` groups, or as many as divide them evenly."""
    if len(x) <= IMAGES_AT_A_TIME:
        x = x.reshape(1, -1, *x.shape[2:])
        return jnp.split(x, math.gcd(x.shape[1], SUMMANDS), 1)
    count = math.gcd(len(x), SUMMANDS)
    return [x[start::count] for start in range(count)]

"""Convolution: the definition, and faster algorithms for GPUs and for CPUs. Images are NHWC.

`convolve` runs the fastest algorithm of the platform. On a CPU that is oneDNN's if it is there. All of them return what
`plain_convolution` returns, up to the order in which floating-point sums are taken.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt32

from proxynca_jax.models.activation import IDENTITY, Activation, activate
from proxynca_jax.onednn import operations
from proxynca_jax.onednn.way import uses_onednn

FEW_CHANNELS = 8  # GPU: with fewer input channels and stride 2, pixels are gathered into blocks
SMALL_MAP = 8  # CPU, pixels: activations up to this height are convolved as one matrix product
LARGE_MAP = 32  # CPU, pixels: above this height, the images' gradient is computed image by image
PIXELS_A_TURN = 2048  # CPU: of a kernel's gradient for stride 1. Copies of so many pixels fit the cache

Padding = tuple[tuple[int, int], tuple[int, int]]  # pixels added above and below, left and right


def centred_padding(side: int) -> Padding:
    """PyTorch's usual padding of a convolution: half of the kernel on each side.

    Args:
        side: of the kernel, odd.
    """
    return (side // 2, side // 2), (side // 2, side // 2)


def same_padding(size: Sequence[int], side: int, stride: int) -> Padding:
    """TensorFlow's padding `SAME`: as little as gives ⌈size / stride⌉ windows. An odd pixel is added after the image.

    Args:
        size: height and width, pixels.
        side: of the kernel.
        stride: pixels between two windows.
    """
    needed = [max((-(-pixels // stride) - 1) * stride + side - pixels, 0) for pixels in size]
    rows, columns = ((total // 2, total - total // 2) for total in needed)
    return rows, columns


def on_device(array: np.ndarray) -> Array:
    """Puts initial values on the device, into memory of their own: a training step overwrites it.

    `jnp.array` would compile a program for each shape.
    """
    return jax.device_put(array, may_alias=False)


class Conv(nnx.Module):
    """The kernel and the bias of a convolution. `convolve` applies the kernel, `batch_norm_act` the bias.

    The kernel is OHWI (output channels first), not HWIO as in Flax. cuDNN returns the gradient in this order, so XLA
    need not transpose it for the optimiser.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, rng: np.random.Generator | None, bias: bool = True
    ):
        """Args:
        inputs: channels in.
        outputs: channels out.
        kernel: side of the kernel in pixels, odd.
        stride: pixels between two windows, in both directions.
        rng: source of the initial kernel, He normal; None starts from zeros. NumPy draws the numbers: compiling JAX's
            generators for some fifty shapes takes more than ten seconds, and NumPy's are the same on every device.
        bias: whether it has a bias. A fold of BatchNorm adds one.
        """
        shape = (kernel, kernel, inputs, outputs)
        deviation = np.float32(np.sqrt(2 / (kernel * kernel * inputs)))
        draw = np.zeros(shape, np.float32) if rng is None else deviation * rng.standard_normal(shape, np.float32)
        self.kernel = nnx.Param(on_device(draw.transpose(3, 0, 1, 2)))
        self.bias: nnx.Param[Array] | None = nnx.data(
            nnx.Param(on_device(np.zeros(outputs, np.float32))) if bias else None
        )
        self.fingerprint: nnx.Variable[Array] | None = nnx.data(None)  # until BatchNorm is folded
        self.stride = stride

    def multiply_outputs(self, factor: Float[Array, " outputs"]) -> None:
        """Multiplies the kernel of each output channel by its factor."""
        self.kernel[...] = self.kernel[...] * factor[:, None, None, None]


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "outputs side side inputs"],
    stride: int,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    padding: Padding | None = None,
    bias: Float[Array, " outputs"] | None = None,
    activation: Activation = IDENTITY,
    addend: Float[Array, "batch rows columns outputs"] | None = None,
    fingerprint: UInt32[Array, "4"] | None = None,
) -> Float[Array, "batch rows columns outputs"]:
    """Convolution with an odd, square kernel, and what a folded network does after it. Stride 1 keeps the size.

    Args:
        x: images or activations; float32 or bfloat16, as is the result.
        kernel: of the type of `x`.
        stride: pixels between two windows, in both directions.
        precision: of the products, in the gradients too. CPUs compute float32 in float32 whatever it is.
        padding: of the images, with zeros. None is `centred_padding`.
        bias: added to the result, float32.
        activation: applied last.
        addend: added to the result before the activation; of the type of `x`.
        fingerprint: of the folded kernel, by which oneDNN keeps a copy of it.
    """
    padding = padding or centred_padding(kernel.shape[1])
    if x.shape[1:3] == (1, 1) and kernel.shape[1] > 1 and all(sum(pads) + 1 == kernel.shape[1] for pads in padding):
        kernel, padding, fingerprint = _middle(kernel, padding), ((0, 0), (0, 0)), None
    blocks = kernel.shape[3] < FEW_CHANNELS and stride == 2
    definition = functools.partial(plain_convolution, stride=stride, precision=precision, padding=padding)
    on_gpu = functools.partial(convolution_of_blocks_on_gpu, **definition.keywords) if blocks else definition
    on_gpu, default, on_cpu = (
        then_activate(each, activation)
        for each in (on_gpu, definition, functools.partial(convolution_on_cpu, stride=stride, padding=padding))
    )
    if uses_onednn():
        window = operations.Window(stride, padding, activation)

        def on_cpu(x: Array, kernel: Array, bias: Array | None, addend: Array | None) -> Array:
            return operations.convolution(x, kernel, bias, window, addend, fingerprint)

    # The default is the definition, which exported ONNX graphs contain.
    return jax.lax.platform_dependent(x, kernel, bias, addend, cpu=on_cpu, cuda=on_gpu, rocm=on_gpu, default=default)


def make_fingerprint(kernel: Float[Array, "..."]) -> nnx.Variable[Array] | None:
    """Returns a digest of a kernel's content if oneDNN computes the convolution: it keeps a copy of the kernel."""
    if not uses_onednn():
        return None
    unread = jnp.zeros(4, jnp.uint32)  # of a program that is compiled for another platform
    return nnx.Variable(
        jax.lax.platform_dependent(kernel, cpu=operations.fingerprint_of, default=lambda kernel: unread)
    )


def read_fingerprint(layer: Any) -> UInt32[Array, "4"] | None:
    """Returns the fingerprint that a fold gave to a layer, a `Conv` or a `DepthwiseConv`."""
    return None if layer.fingerprint is None else layer.fingerprint[...]


def _middle(kernel: Array, padding: Padding) -> Array:
    """The place of the kernel that meets the only pixel of an image. All other places meet zeros."""
    (top, _), (left, _) = padding
    return kernel[:, top : top + 1, left : left + 1]


def then_activate(convolution: Callable[[Array, Array], Array], activation: Activation) -> Callable[..., Array]:
    """Returns a function of images, kernel, bias and addend that convolves, adds both and applies the activation."""

    def all_of_it(x: Array, kernel: Array, bias: Array | None, addend: Array | None = None) -> Array:
        y = convolution(x, kernel)
        y = y if bias is None else y + bias[None, None, None]
        return activate(y if addend is None else y + addend, activation).astype(x.dtype)

    return all_of_it


def activates_at_once() -> bool:
    """Returns whether `convolve` adds the bias and applies the activation without another pass over memory."""
    return uses_onednn()


def plain_convolution(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "outputs side side inputs"],
    stride: int,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    padding: Padding | None = None,
) -> Float[Array, "batch rows columns outputs"]:
    """y[b, i, j, o] = Σ_uvc x[b, stride·i + u − top, stride·j + v − left, c] · kernel[o, u, v, c].

    Pixels outside of the image are 0.

    Args:
        x: as for `convolve`.
        kernel: as for `convolve`.
        stride: as for `convolve`.
        precision: as for `convolve`.
        padding: as for `convolve`. Its first numbers are top and left.
    """
    padding = padding or centred_padding(kernel.shape[1])
    numbers, strides = ("NHWC", "OHWI", "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, precision=precision)


# On a GPU: few channels become many.


def convolution_of_blocks_on_gpu(
    x: Array, kernel: Array, stride: int, precision: jax.lax.Precision, padding: Padding
) -> Array:
    """Gathers each block of 2×2 pixels into the channels of one, and convolves those with stride 1.

    Tensor cores take channels in groups of eight, so the three colours of an image would leave most of them idle.

    Args:
        x: as for `convolve`.
        kernel: as for `convolve`.
        stride: side of a block, 2.
        precision: as for `convolve`.
        padding: as for `convolve`.
    """
    side = kernel.shape[1]
    taps = -(-side // stride)  # blocks that one row of the kernel covers
    margins = []
    for size, pads in zip(x.shape[1:3], padding, strict=True):
        wanted = stride * ((size + sum(pads) - side) // stride + taps)
        margins.append((pads[0], wanted - size - pads[0]))
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


# On a CPU: matrix products instead of what XLA is slow at, small activations and the gradients of large ones.


def convolution_on_cpu(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """Chooses an algorithm by the size of the kernel and of the activations."""
    kernel = kernel.transpose(1, 2, 3, 0)  # HWIO: XLA copies less for it on CPUs
    if len(kernel) == 1:
        return _contract(x[:, ::stride, ::stride], kernel[0, 0])
    if x.shape[1] <= SMALL_MAP:
        taps = _taps(x, len(kernel), stride, padding)
        return _contract(jnp.concatenate(taps, -1), kernel.reshape(-1, kernel.shape[3]))
    return _convolve_with_products(x, kernel, stride, padding)


def _taps(x: Array, side: int, stride: int, padding: Padding) -> list[Array]:
    """Slices of `x`, one per place of the kernel, row by row: the pixels that the place is multiplied with.

    Args:
        x: its axes 1 and 2 are rows and columns.
        side: of the kernel.
        stride: pixels between two windows.
        padding: of the rows and columns.
    """
    padded = jnp.pad(x, [(0, 0), *padding, *[(0, 0)] * (x.ndim - 3)])
    rows, columns = (stride * ((size - side) // stride) + 1 for size in padded.shape[1:3])
    return [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(side) for j in range(side)]


@jax.custom_vjp
def _contract(x: Array, matrix: Array) -> Array:
    """The product of the last axis of `x` with a matrix."""
    return jax.lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _contract_forward(x: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return _contract(x, matrix), (x, matrix)


def _contract_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Avoids a transpose: JAX's own rule returns the matrix's gradient transposed, and XLA transposes `gradient`."""
    x, matrix = residuals
    rows, places = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return jnp.matmul(gradient, matrix.T), jnp.matmul(rows.T, places)


_contract.defvjp(_contract_forward, _contract_backward)


def _convolve_hwio(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """`plain_convolution`, with a kernel whose output channels are last."""
    numbers, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


_convolve_with_products = jax.custom_vjp(_convolve_hwio, nondiff_argnums=(2, 3))


def _convolve_forward(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_hwio(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(
    stride: int, padding: Padding, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    large = x.shape[1] > LARGE_MAP
    if large and stride == 1 and kernel.shape[2] < kernel.shape[3]:  # the sums have fewer channels than `gradient`
        of_x = _image_gradients(kernel, gradient)
    else:
        (of_x,) = jax.linear_transpose(lambda x: _convolve_hwio(x, kernel, stride, padding), x)(gradient)
    if stride == 1:
        return of_x, _kernel_gradient_by_shifts(x, gradient, len(kernel), padding)
    return of_x, _kernel_gradient_by_taps(x, gradient, len(kernel), stride, padding)


_convolve_with_products.defvjp(_convolve_forward, _convolve_backward)


def _kernel_gradient_by_shifts(x: Array, gradient: Array, side: int, padding: Padding) -> Array:
    """Gradient with respect to the kernel, for stride 1: shifted columns of images meet shifted rows of `gradient`.

    That needs 2·side copies of a few images at a time instead of the side² of `_kernel_gradient_by_taps`.
    """
    (rows, columns), margin = padding, side - 1

    def product(x: Array, gradient: Array) -> Array:
        height, width = gradient.shape[1:3]
        x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
        x = jnp.concatenate([x[:, :, i : i + width] for i in range(side)], -1)
        gradient = jnp.pad(gradient, ((0, 0), (margin, margin), (0, 0), (0, 0)))
        gradient = jnp.concatenate([gradient[:, margin - i :][:, : height + margin] for i in range(side)], -1)
        return _product(x.reshape(-1, x.shape[-1]).T, gradient.reshape(-1, gradient.shape[-1]))

    images = max(1, PIXELS_A_TURN // (gradient.shape[1] * gradient.shape[2]))
    totals = _sum_of_turns(product, x, gradient, images).astype(x.dtype)
    return totals.reshape(side, x.shape[3], side, -1).transpose(2, 0, 1, 3)


def _kernel_gradient_by_taps(x: Array, gradient: Array, side: int, stride: int, padding: Padding) -> Array:
    """Gradient with respect to the kernel: per image, one product of its taps with the gradient of its pixels."""

    def product(image: Array, gradient: Array) -> Array:
        taps = jnp.concatenate(_taps(image[0].transpose(2, 0, 1), side, stride, padding))
        places = gradient.reshape(-1, gradient.shape[-1])
        return _product(taps.reshape(-1, len(places)), places)

    totals = _sum_of_turns(product, x, gradient, 1).astype(x.dtype)
    return totals.reshape(side, side, x.shape[3], -1)


def _sum_of_turns(product: Callable[[Array, Array], Array], x: Array, gradient: Array, images: int) -> Array:
    """Sum of `product` over turns of at most so many images."""
    turns = by_turns(x, images), by_turns(gradient, images)
    totals = jnp.zeros(jax.eval_shape(jax.vmap(product), *(values[0] for values in turns)).shape, jnp.float32)
    totals, _ = jax.lax.scan(lambda totals, turn: (totals + jax.vmap(product)(*turn), None), totals, turns)
    return jnp.sum(totals, 0)


def _image_gradients(kernel: Array, gradient: Array) -> Array:
    """Gradient with respect to the images, for stride 1.

    Per image, one product of every pixel's gradient with every place of the kernel. Each pixel then sums the products
    that belong to it.
    """
    side, _, inputs, outputs = kernel.shape
    matrix = kernel.transpose(3, 0, 1, 2).reshape(outputs, -1)

    def one(gradient: Array) -> Array:
        pad = side // 2
        padded = jnp.pad(gradient, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        products = _product(padded, matrix).reshape(*padded.shape[:3], side, side, inputs)
        _, height, width, _ = gradient.shape
        summands = [
            products[:, i : i + height, j : j + width, side - 1 - i, side - 1 - j]
            for i, j in itertools.product(range(side), range(side))
        ]
        return sum(summands[1:], summands[0]).astype(gradient.dtype)

    _, turns = jax.lax.scan(lambda _, images: (None, jax.vmap(one)(images)), None, by_turns(gradient))
    return turns.swapaxes(0, 1).reshape(*gradient.shape[:3], inputs)


def by_turns(x: Array, images: int = 1) -> Array:
    """Splits a batch into turns, in each of which every device computes a few images of its own shard.

    Args:
        x: the batch.
        images: of one device in a turn, at most. It is lowered until it divides the shard.

    Returns:
        Axis 0 is the turn, axis 1 the device, axis 2 the image.
    """
    devices = math.gcd(len(x), jax.device_count())
    shard = len(x) // devices
    images = next(count for count in range(min(images, shard), 0, -1) if shard % count == 0)
    return x.reshape(devices, -1, images, *x.shape[1:]).swapaxes(0, 1)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)

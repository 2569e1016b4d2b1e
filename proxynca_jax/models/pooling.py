"""3×3 pooling: the definitions, and faster gradients of the maximum for CPUs and for GPUs. Images are NHWC.

Of equal pixels in a window, the first one, row by row, gets the gradient, as in PyTorch.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxynca_jax.onednn import operations
from proxynca_jax.onednn.way import uses_onednn


def average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Mean of the 3×3 pixels around each pixel. Pixels outside of the image are zeros, and the divisor stays 9."""
    on_cpu = operations.average_pool if _by_onednn(x) else plain_average_pool
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=plain_average_pool)


def plain_average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """`average_pool`, as XLA computes it."""
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)]
    sums = jax.lax.reduce_window(x.astype(jnp.float32), 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads)
    return (sums / 9).astype(x.dtype)


def max_pool(
    x: Float[Array, "batch height width channels"], *, stride: int
) -> Float[Array, "batch rows columns channels"]:
    """Maximum of 3×3 pixels.

    Args:
        x: activations.
        stride: 1 pads each side by one pixel, which keeps the size. 2 pads nothing and rounds the size up (PyTorch's
            `ceil_mode`).
    """
    on_cpu = functools.partial(
        operations.max_pool if _by_onednn(x) else lambda stride, x: max_pool_on_cpu(x, stride), stride
    )
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=functools.partial(max_pool_on_gpu, stride=stride))


def plain_max_pool(
    x: Float[Array, "batch height width channels"], stride: int
) -> Float[Array, "batch rows columns channels"]:
    """y[b, i, j, c] = max_uv x[b, stride·i + u, stride·j + v, c], with u and v from −1 to 1 or, of stride 2, 0 to 2.

    XLA's own gradient of it scatters, on a CPU with one thread.

    Args:
        x: as for `max_pool`.
        stride: as for `max_pool`.
    """
    pads = [(0, 0), _pad(stride), _pad(stride), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pads)


def _by_onednn(x: Array) -> bool:
    return uses_onednn() and x.dtype == jnp.float32


def _pad(stride: int) -> tuple[int, int]:
    """Pixels of padding before and after. After the image, stride 2 may need one to fill the last window."""
    return (1, 1) if stride == 1 else (0, 1)


# On a CPU: XLA's maximum, and a gradient that gathers. The residuals are the input and the maxima.

max_pool_on_cpu = jax.custom_vjp(plain_max_pool, nondiff_argnums=(1,))


def _forward_on_cpu(x: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    maximum = plain_max_pool(x, stride)
    return maximum, (x, maximum)


def _backward_on_cpu(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    """Finds for each place of a window where it has the maximum first, and sums each pixel's gradients."""
    x, maximum = residuals
    batch, height, width, channels = x.shape
    rows, columns = maximum.shape[1:3]
    pad, reach = (1 if stride == 1 else 0), 2 // stride  # reach: how many windows further on may contain a pixel
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

    # Pixels whose coordinates have the same remainders modulo the stride have the same places in their windows.
    remainders = range(stride)
    sums = [
        [sum(shares[i, j] for i in range(p, 3, stride) for j in range(q, 3, stride)) for q in remainders]
        for p in remainders
    ]
    interleaved = jnp.stack([jnp.stack(row, 3) for row in sums], 2)
    whole = interleaved.reshape(batch, stride * (rows + reach), stride * (columns + reach), channels)
    return (whole[:, pad : pad + height, pad : pad + width],)


max_pool_on_cpu.defvjp(_forward_on_cpu, _backward_on_cpu)


# On a GPU: the residual is the place of each maximum in its window, one byte, and the gradient gathers.

max_pool_on_gpu = jax.custom_vjp(plain_max_pool, nondiff_argnums=(1,))


def _forward_on_gpu(x: Array, stride: int) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    """Computes the maxima and their places: 4 times the row plus the column, both from 0 to 2."""
    pad = _pad(stride)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((size - 3) // stride * stride + 1 for size in padded.shape[1:3])
    corner, *others = (padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(3) for j in range(3))
    maxima, places = corner, jnp.zeros(corner.shape, jnp.uint8)
    for place, values in enumerate(others, start=1):
        row, column = divmod(place, 3)
        places = jnp.where(values > maxima, jnp.uint8(4 * row + column), places)
        maxima = jnp.maximum(maxima, values)
    return maxima, (places, x.shape)


def _backward_on_gpu(stride: int, residuals: tuple[Array, tuple[int, ...]], gradient: Array) -> tuple[Array]:
    """Sums for each pixel the gradients of the windows in which it is the maximum.

    A pixel is in 9 windows of stride 1 or in up to 4 of stride 2. Pixels are handled in blocks of stride × stride, at
    each of which one window begins.
    """
    places, shape = residuals
    before, _ = _pad(stride)
    reach = 2 // stride  # how many blocks back a window that contains a pixel may begin
    blocks = [-(-(size + before) // stride) for size in shape[1:3]]
    margins = [(reach, count - size) for count, size in zip(blocks, places.shape[1:3], strict=True)]
    around = ((0, 0), *margins, (0, 0))
    places = jnp.pad(places, around, constant_values=255)  # the place of no pixel
    gradient = jnp.pad(gradient, around)
    side = np.arange(stride, dtype=np.uint8)
    # Each pixel's place in the window that begins at its block. The axes are images, rows of blocks, rows of pixels,
    # columns of blocks, columns of pixels, channels.
    own = np.add.outer(4 * side, side).reshape(1, 1, stride, 1, stride, 1)
    total: Any = 0.0
    for i, j in itertools.product(range(reach + 1), range(reach + 1)):
        window = (slice(None), *(slice(reach - k, reach - k + count) for k, count in zip((i, j), blocks, strict=True)))
        is_maximum = places[window][:, :, None, :, None] == own + np.uint8(stride * (4 * i + j))
        total += jnp.where(is_maximum, gradient[window][:, :, None, :, None].astype(jnp.float32), 0)
    pixels = total.reshape(shape[0], stride * blocks[0], stride * blocks[1], shape[3])
    height, width = shape[1:3]
    return (pixels[:, before : before + height, before : before + width].astype(gradient.dtype),)


max_pool_on_gpu.defvjp(_forward_on_gpu, _backward_on_gpu)

"""The operations that `handlers/` computes, as functions of JAX. Images are NHWC.

Each one is differentiable and is partitioned over the devices of a sharded batch. `library.register` comes first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt32

from proxynca_jax.onednn.library import target

Padding = tuple[tuple[int, int], tuple[int, int]]  # pixels added above and below, left and right
Limits = tuple[float, float]  # low and high: results are clamped to them
BATCH = "n"  # the factor of a sharding rule that stands for the images


class Window(NamedTuple):
    """How a convolution moves over images, and what its results are clamped to."""

    stride: int  # pixels between two windows, in both directions
    padding: Padding  # with zeros
    limits: Limits
    depthwise: bool = False  # whether each channel has a kernel of its own


def convolution(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "..."],
    bias: Float[Array, " outputs"] | None,
    window: Window,
    addend: Float[Array, "batch rows columns outputs"] | None = None,
    fingerprint: UInt32[Array, "4"] | None = None,
) -> Float[Array, "batch rows columns outputs"]:
    """min(max(x ∗ kernel + bias + addend, low), high).

    Args:
        x: images or activations; float32 or bfloat16, as is the result.
        kernel: OHWI, or HWIO with one input if the convolution is depthwise. Of the type of `x`.
        bias: float32.
        window: how it moves over `x`.
        addend: of the type of `x`.
        fingerprint: `fingerprint_of` the kernel in float32, for inference. A copy of the kernel in oneDNN's layout is
            then kept and used again.
    """
    bias, addend = (jnp.zeros((0,), jnp.float32) if each is None else each for each in (bias, addend))
    return _convolution(window, x, kernel, bias, addend, _or_empty(fingerprint))


def fingerprint_of(kernel: Float[Array, "..."]) -> UInt32[Array, "4"]:
    """A digest of the content of a kernel, float32. It has no gradient."""

    def local(kernel: Array) -> Array:
        return _call("fingerprint", jax.ShapeDtypeStruct((4,), jnp.uint32), kernel)

    axes = " ".join(f"k{axis}" for axis in range(kernel.ndim))
    return _over_devices(local, f"{axes} -> f")(jax.lax.stop_gradient(kernel))


def _or_empty(fingerprint: Array | None) -> Array:
    return jnp.zeros((0,), jnp.uint32) if fingerprint is None else fingerprint


def _convolve(window: Window, x: Array, kernel: Array, bias: Array, addend: Array, fingerprint: Array) -> Array:
    low, high = map(np.float32, window.limits)
    attributes = _geometry(window) | {"low": low, "high": high}

    def local(x: Array, kernel: Array, *summands: Array) -> Array:
        return _call("convolution", _convolved(x, kernel, window), x, kernel, *summands, **attributes)

    of_addend = "n r s q" if addend.size else "none"
    rule = f"n h w c, o u v i, k, {of_addend}, f -> n r s q"
    return _over_devices(local, rule)(x, kernel, bias, addend, fingerprint)


_convolution = jax.custom_vjp(_convolve, nondiff_argnums=(0,))


def _convolution_forward(window: Window, *arrays: Array) -> tuple[Array, tuple[Any, ...]]:
    """Without the fingerprint: a kernel that is trained changes, so a copy would never be used again."""
    x, kernel, bias, addend, _ = arrays
    y = _convolve(window, x, kernel, bias, addend, _or_empty(None))
    return y, (x, kernel, bias, addend, None if np.isinf(window.limits).all() else y)


def _convolution_backward(window: Window, residuals: tuple[Any, ...], gradient: Array) -> tuple[Array | None, ...]:
    x, kernel, bias, addend, y = residuals
    if y is not None:
        low, high = window.limits
        gradient = jnp.where((y > low) & (y < high), gradient, 0)
    of_kernel = _gradient_of_depthwise_kernel if window.depthwise else _gradient_of_kernel
    return (
        _gradient_of_images(x, kernel, gradient, window),
        of_kernel(x, kernel, gradient, window),
        jnp.sum(gradient, (0, 1, 2), jnp.float32) if bias.size else bias,
        gradient if addend.size else addend,
        None,  # of the fingerprint
    )


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _gradient_of_images(x: Array, kernel: Array, gradient: Array, window: Window) -> Array:
    pixels = x.shape[1:]

    def local(gradient: Array, kernel: Array) -> Array:
        result = jax.ShapeDtypeStruct((len(gradient), *pixels), gradient.dtype)
        return _call("gradient_of_images", result, gradient, kernel, **_geometry(window))

    return _over_devices(local, "n r s q, o u v i -> n h w c")(gradient, kernel)


def _gradient_of_kernel(x: Array, kernel: Array, gradient: Array, window: Window) -> Array:
    result = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)

    def local(x: Array, gradient: Array) -> Array:
        return _call("gradient_of_kernel", result, x, gradient, **_geometry(window))

    return _over_devices(local, "n h w c, n r s q -> o u v i")(x, gradient)


def _gradient_of_depthwise_kernel(x: Array, kernel: Array, gradient: Array, window: Window) -> Array:
    result = jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
    geometry = _geometry(window)
    attributes = {name: geometry[name] for name in ("stride", "top", "left")}

    def local(x: Array, gradient: Array) -> Array:
        return _call("gradient_of_depthwise_kernel", result, x, gradient, **attributes)

    floats = x.astype(jnp.float32), gradient.astype(jnp.float32)
    return _over_devices(local, "n h w c, n r s q -> o u v i")(*floats).astype(kernel.dtype)


def convolutions_image_by_image(
    x: Float[Array, "batch height width inputs"],
    weights: Sequence[tuple[Float[Array, "..."], Float[Array, " _"], UInt32[Array, "4"] | None]],
    windows: Sequence[Window],
    adds_images: bool,
) -> Float[Array, "batch rows columns outputs"]:
    """Convolutions one after the other, each image by one thread, so that its activations stay in a core's cache.

    Args:
        x: as for `convolution`.
        weights: the kernel, the bias and the fingerprint of each convolution.
        windows: of each convolution.
        adds_images: whether `x` is the addend of the last convolution.
    """
    arrays = (array for kernel, bias, fingerprint in weights for array in (kernel, bias, _or_empty(fingerprint)))
    return _convolutions(tuple(windows), adds_images, x, *arrays)


def _convolve_images(windows: Sequence[Window], adds_images: bool, x: Array, *weights: Array) -> Array:
    attributes = {
        "geometry": np.array([list(_geometry(window).values()) for window in windows], np.int64).ravel(),
        "limits": np.array([window.limits for window in windows], np.float32).ravel(),
        "adds_images": adds_images,
    }

    def local(x: Array, *weights: Array) -> Array:
        result: Any = x
        for window, kernel in zip(windows, weights[::3], strict=True):
            result = _convolved(result, kernel, window)
        return _call("convolutions_image_by_image", result, x, *weights, **attributes)

    of_weights = ", ".join(f"o{i} u{i} v{i} i{i}, k{i}, f{i}" for i in range(len(windows)))
    return _over_devices(local, f"n h w c, {of_weights} -> n r s q")(x, *weights)


_convolutions = jax.custom_vjp(_convolve_images, nondiff_argnums=(0, 1))


def _convolutions_forward(
    windows: Sequence[Window], adds_images: bool, x: Array, *weights: Array
) -> tuple[Array, Callable[..., Any]]:
    """A gradient needs the activations between the convolutions, so these are computed one by one."""

    def one_by_one(x: Array, *weights: Array) -> Array:
        addends = [*[None] * (len(windows) - 1), x if adds_images else None]
        for window, kernel, bias, addend in zip(windows, weights[::3], weights[1::3], addends, strict=True):
            x = convolution(x, kernel, bias, window, addend)
        return x

    return jax.vjp(one_by_one, x, *weights)


_convolutions.defvjp(_convolutions_forward, lambda _windows, _adds_images, pull, gradient: pull(gradient))


def _max_pool(
    stride: int, x: Float[Array, "batch height width channels"]
) -> Float[Array, "batch rows columns channels"]:
    """Maximum of 3×3 pixels, float32. Stride 1 pads one pixel; stride 2 pads nothing and rounds the size up."""
    padding = [(0, 0), *[(1, 1) if stride == 1 else (0, 1)] * 2, (0, 0)]

    def local(x: Array) -> Array:
        pool = functools.partial(jax.lax.reduce_window, init_value=-jnp.inf, computation=jax.lax.max, padding=padding)
        result = jax.eval_shape(
            functools.partial(pool, window_dimensions=(1, 3, 3, 1), window_strides=(1, stride, stride, 1)), x
        )
        return _call("max_pool", result, x, stride=np.int64(stride))

    return _over_devices(local, "n h w c -> n r s c")(x)


max_pool = jax.custom_vjp(_max_pool, nondiff_argnums=(0,))


def _max_pool_forward(stride: int, x: Array) -> tuple[Array, Array]:
    return _max_pool(stride, x), x


def _max_pool_backward(stride: int, x: Array, gradient: Array) -> tuple[Array]:
    def local(x: Array, gradient: Array) -> Array:
        return _call(
            "gradient_of_max_pool", jax.ShapeDtypeStruct(x.shape, x.dtype), x, gradient, stride=np.int64(stride)
        )

    return (_over_devices(local, "n h w c, n r s c -> n h w c")(x, gradient),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _average_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    """Mean of the 3×3 pixels around each pixel, float32. Pixels outside of the image are zeros, the divisor stays 9."""

    def local(x: Array) -> Array:
        return _call("average_pool", jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    return _over_devices(local, "n h w c -> n h w c")(x)


average_pool = jax.custom_vjp(_average_pool)
# A pixel is in the windows of the pixels around it, so the gradient is the same pool.
average_pool.defvjp(lambda x: (_average_pool(x), None), lambda _, gradient: (_average_pool(gradient),))


def sums_of_distances(
    x: Float[Array, "batch height width channels"], centre: Float[Array, " channels"]
) -> Sequence[Float[Array, " channels"]]:
    """Sums of x − centre and of its squares over images and pixels, float32. It has no gradient."""

    def local(x: Array, centre: Array) -> Sequence[Array]:
        sums = jax.ShapeDtypeStruct(centre.shape, jnp.float32)
        return _call("sums_of_distances", (sums, sums), x, centre)

    return _over_devices(local, "n h w c, c -> c, c")(x, centre)


def sums_of_gradients(
    x: Float[Array, "batch height width channels"],
    gradient: Float[Array, "batch height width channels"],
    centre: Float[Array, " channels"],
    factor: Float[Array, " channels"],
    offset: Float[Array, " channels"],
    limits: Limits,
) -> Sequence[Float[Array, " channels"]]:
    """Sums over images and pixels of the gradient of clamp(factor · x + offset), and of its products with x − centre.

    All arrays are float32. It has no gradient.
    """

    def local(*arrays: Array) -> Sequence[Array]:
        sums = jax.ShapeDtypeStruct(arrays[2].shape, jnp.float32)
        low, high = map(np.float32, limits)
        return _call("sums_of_gradients", (sums, sums), *arrays, low=low, high=high)

    return _over_devices(local, "n h w c, n h w c, c, c, c -> c, c")(x, gradient, centre, factor, offset)


def _geometry(window: Window) -> dict[str, Any]:
    (top, bottom), (left, right) = window.padding
    numbers = {"stride": window.stride, "top": top, "bottom": bottom, "left": left, "right": right}
    return {"depthwise": window.depthwise} | {name: np.int64(value) for name, value in numbers.items()}


def _convolved(x: Array | jax.ShapeDtypeStruct, kernel: Array, window: Window) -> jax.ShapeDtypeStruct:
    """Describes the result of a convolution. XLA checks the shapes, as it does for its own."""
    numbers = ("NHWC", "HWIO" if window.depthwise else "OHWI", "NHWC")
    groups = {"feature_group_count": x.shape[3]} if window.depthwise else {}
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(window.stride, window.stride),
        padding=window.padding,
        dimension_numbers=numbers,
        **groups,
    )
    return jax.eval_shape(convolve, x, kernel)


def _call(handler: str, result: Any, *arrays: Array, **attributes: Any) -> Any:
    """Calls a handler, unless it would have nothing to compute."""
    if any(0 in array.shape for array in arrays[:1]) or 0 in jax.tree.leaves(result)[0].shape:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
    return jax.ffi.ffi_call(target(handler), result)(*arrays, **attributes)


def _over_devices(local: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """Lets each device compute the images that it has.

    Args:
        local: the operation on one device.
        rule: a sharding rule in which only `BATCH` may be sharded. If the first operand has it, a result without it is
            summed over the devices.
    """
    if jax.device_count() == 1:
        return local
    operands, results = ([axes.split() for axes in side.split(",")] for side in rule.split("->", 1))
    factors = dict.fromkeys(axis for axes in operands + results for axis in axes if axis != BATCH)  # in their order
    is_sum = BATCH in operands[0] and all(BATCH not in axes for axes in results)

    def shardings(mesh: Any, batch: Any) -> tuple[tuple[NamedSharding, ...], Any]:
        of_operands, of_results = (
            tuple(NamedSharding(mesh, P(batch) if axes[0] == BATCH else P()) for axes in side)
            for side in (operands, results)
        )
        return of_operands, of_results if len(results) > 1 else next(iter(of_results))

    def batch_axes(arguments: Any) -> Any:
        spec = arguments[0].sharding.spec
        return spec[0] if spec else None

    def partition(mesh: Any, arguments: Any, _results: Any) -> Any:
        batch = batch_axes(arguments)
        of_operands, of_results = shardings(mesh, batch)

        def on_shard(*arrays: Array) -> Any:
            result = local(*arrays)
            return jax.lax.psum(result, batch) if is_sum and batch is not None else result

        return mesh, on_shard, of_results, of_operands

    def infer(mesh: Any, arguments: Any, _results: Any) -> Any:
        return shardings(mesh, batch_axes(arguments))[1]

    partitioned = custom_partitioning(local)
    partitioned.def_partition(
        partition,
        infer,
        sharding_rule=rule,
        reduction_factors=(BATCH,) if is_sum else (),
        need_replication_factors=tuple(factors),
    )
    return partitioned

"""Compares each handler with NumPy on small arrays, before a network depends on it.

    python -m proxynca_jax.onednn.probe ONEDNN HANDLERS

tests the handlers of a file that was just compiled, with the shared library `ONEDNN`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from proxynca_jax.onednn import library, operations
from proxynca_jax.onednn.library import Unavailable
from proxynca_jax.onednn.operations import Window

TOLERANCE = 1e-5  # of the largest value
PADDING = ((1, 1), (1, 1))
EVERY_SECOND = Window(2, PADDING, (0.0, float("inf")))
EVERY_CHANNEL = Window(1, PADDING, (-float("inf"), float("inf")), depthwise=True)


def check() -> None:
    """Runs every handler once.

    Raises:
        Unavailable: a result is wrong, or a handler reports an error.
    """
    rng = np.random.default_rng(0)
    x, kernel, depthwise = (
        rng.standard_normal(shape, np.float32) for shape in ((2, 7, 6, 16), (8, 3, 3, 16), (3, 3, 1, 16))
    )
    bias, centre = rng.standard_normal(8, np.float32), rng.standard_normal(16, np.float32)
    try:
        # The caller may be in the middle of tracing a network, or may have forbidden transfers.
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            found = jax.device_get(jax.jit(lambda *arrays: _by_handlers(*arrays))(x, kernel, depthwise, bias, centre))
    except Exception as error:  # whatever it is: XLA alone can compute the network
        raise Unavailable(f"its test failed: {str(error).splitlines()[0]}") from error
    for name, expected in _by_numpy(x, kernel, depthwise, bias, centre).items():
        error = np.max(np.abs(found[name] - expected)) / np.max(np.abs(expected))
        if not error < TOLERANCE:
            raise Unavailable(f"its {name} differs from the definition by {error:.1e}")


def _by_handlers(
    x: jax.Array, kernel: jax.Array, depthwise: jax.Array, bias: jax.Array, centre: jax.Array
) -> dict[str, jax.Array]:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return operations.convolution(x, kernel, bias, EVERY_SECOND)

    def convolve_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return operations.convolution(x, kernel, None, EVERY_CHANNEL)

    results = {}
    for name, function, weights in (
        ("convolution", convolve, kernel),
        ("depthwise convolution", convolve_channels, depthwise),
    ):
        results[name], pull = jax.vjp(function, x, weights)
        of_images, of_kernel = pull(jnp.ones_like(results[name]))
        results |= {f"{name}'s gradient of images": of_images, f"{name}'s gradient of the kernel": of_kernel}
    channels = depthwise, jnp.zeros_like(centre), operations.fingerprint_of(depthwise)
    results["convolutions image by image"] = operations.convolutions_image_by_image(
        x,
        [channels, (kernel, bias, operations.fingerprint_of(kernel))],
        [EVERY_CHANNEL, EVERY_SECOND],
        adds_images=False,
    )
    fingerprint, other = (
        operations.fingerprint_of(depthwise),
        operations.fingerprint_of(depthwise.at[0, 0, 0, 0].add(1)),
    )
    results["fingerprint"] = jnp.any(fingerprint != other).astype(jnp.float32)
    results["convolution and sum"] = operations.convolution(x, depthwise, centre, EVERY_CHANNEL, x, fingerprint)
    results["maximum"], pull = jax.vjp(lambda x: operations.max_pool(2, x), x)
    (results["maximum's gradient"],) = pull(jnp.ones_like(results["maximum"]))
    results["average"] = operations.average_pool(x)
    results["sum"], results["sum of squares"] = operations.sums_of_distances(x, centre)
    ones = jnp.ones_like(centre)
    results["sum of gradients"], _ = operations.sums_of_gradients(x, x, centre, ones, centre, (0.0, float("inf")))
    return results


def _by_numpy(
    x: np.ndarray, kernel: np.ndarray, depthwise: np.ndarray, bias: np.ndarray, centre: np.ndarray
) -> dict[str, np.ndarray]:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # n, rows, columns, c, u, v
    results = {}

    every_second = windows[:, ::2, ::2]
    before = np.einsum("nrscuv,ouvc->nrso", every_second, kernel) + bias
    passed = (before > 0).astype(np.float32)
    results["convolution"] = before * passed
    results["convolution's gradient of the kernel"] = np.einsum("nrscuv,nrso->ouvc", every_second, passed)
    shares = np.einsum("nrso,ouvc->nrsuvc", passed, kernel)
    results["convolution's gradient of images"] = _scatter(shares, padded.shape, 2)[:, 1:-1, 1:-1]

    results["depthwise convolution"] = np.einsum("nrscuv,uvc->nrsc", windows, depthwise[:, :, 0])
    results["convolution and sum"] = results["depthwise convolution"] + centre + x
    results["fingerprint"] = np.ones((), np.float32)  # whether it changes with the kernel
    results["depthwise convolution's gradient of the kernel"] = np.einsum("nrscuv->uvc", windows)[:, :, None]
    shares = np.broadcast_to(depthwise[:, :, 0], (*windows.shape[:3], *depthwise[:, :, 0].shape))
    results["depthwise convolution's gradient of images"] = _scatter(shares, padded.shape, 1)[:, 1:-1, 1:-1]

    between = np.pad(results["depthwise convolution"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    every_second = np.lib.stride_tricks.sliding_window_view(between, (3, 3), (1, 2))[:, ::2, ::2]
    results["convolutions image by image"] = np.maximum(np.einsum("nrscuv,ouvc->nrso", every_second, kernel) + bias, 0)

    extended = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.lib.stride_tricks.sliding_window_view(extended, (3, 3), (1, 2))[:, ::2, ::2]
    results["maximum"] = pooled.max((-2, -1))
    largest = pooled.reshape(*pooled.shape[:-2], 9).argmax(-1)
    shares = (largest[..., None] == np.arange(9)).astype(np.float32).reshape(pooled.shape).transpose(0, 1, 2, 4, 5, 3)
    results["maximum's gradient"] = _scatter(shares, extended.shape, 2)[:, :-1, :-1]

    results["average"] = windows.sum((-2, -1)) / 9
    results["sum"], results["sum of squares"] = (x - centre).sum((0, 1, 2)), np.square(x - centre).sum((0, 1, 2))
    results["sum of gradients"] = np.where(x + centre > 0, x, 0).sum((0, 1, 2))
    return results


def _scatter(shares: np.ndarray, shape: tuple[int, ...], stride: int) -> np.ndarray:
    """Adds the shares of each window, (n, rows, columns, u, v, c), to its pixels."""
    total = np.zeros(shape, np.float32)
    _, rows, columns, *sides = shares.shape[:5]
    for u, v in np.ndindex(*sides):
        total[:, u : u + stride * rows : stride, v : v + stride * columns : stride][:, :rows, :columns] += shares[
            :, :, :, u, v
        ]
    return total


if __name__ == "__main__":
    library.load(*map(pathlib.Path, sys.argv[1:]))
    check()

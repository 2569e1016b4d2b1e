"""Starts cuDNN on GPUs before a CUDA graph is recorded."""

import functools

import jax
import jax.numpy as jnp


@functools.cache
def start_cudnn() -> None:
    """Computes a small convolution on each GPU of this process. Does nothing on other devices.

    XLA starts cuDNN with the first convolution that it tries or runs. If that happens while it records a CUDA graph,
    cuDNN cannot allocate memory, and the program fails. A program that was loaded from the compilation cache, whose
    first kernels are in a graph, always did.
    """

    # XLA leaves a program of one kernel out of graphs.
    @jax.jit
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    for device in jax.local_devices():
        if device.platform == "gpu":
            x, kernel = (jax.device_put(jnp.zeros(shape), device) for shape in ((1, 8, 8, 8), (3, 3, 8, 8)))
            convolve(x, kernel).block_until_ready()

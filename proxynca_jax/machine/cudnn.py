"""Starts cuDNN on GPUs before a CUDA graph is recorded."""

import functools

import jax
import numpy as np


@functools.cache
def start_cudnn() -> None:
    """Computes a small convolution on each GPU of this process. Does nothing on other devices.

    XLA starts cuDNN with the first convolution that it tries or runs. If that happens while it records a CUDA graph,
    cuDNN cannot allocate memory, and the program fails. This always happened to programs from the compilation cache,
    because XLA had not tried convolutions to choose between them.
    """

    # XLA leaves a program of one kernel out of graphs.
    @jax.jit
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    for device in jax.local_devices():
        if device.platform == "gpu":
            x, kernel = (jax.device_put(np.zeros(shape, np.float32), device) for shape in ((1, 8, 8, 8), (3, 3, 8, 8)))
            convolve(x, kernel).block_until_ready()

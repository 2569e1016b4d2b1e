"""Model FLOP: what the network's arithmetic costs by its table of layers, however it is computed, and what devices can.

A multiplication and an addition are two. Convolutions and the embedding layer count; BatchNorm, ReLU, pools, loss and
optimiser, which move memory rather than compute, do not.
"""

import functools
import time

import jax
import jax.numpy as jnp

from proxynca_jax.models.bn_inception import BLOCKS, FEATURES
from proxynca_jax.models.precision import PRECISIONS, activation_dtype

TRAINING = 3  # passes' worth: forward, and backward to the weights and to the layer's input

# Dense FLOP/s by the beginning of the device kind, from NVIDIA's datasheets, where figures with sparsity are halved.
# TF32 and bfloat16 are the tensor cores'; float32 is the other cores'.
DATASHEET: dict[str, dict[str, float]] = {
    "NVIDIA H100 PCIe": {"float32": 51e12, "tensorfloat32": 378e12, "bfloat16": 756e12},
    "NVIDIA H100": {"float32": 67e12, "tensorfloat32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H200": {"float32": 67e12, "tensorfloat32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA A100": {"float32": 19.5e12, "tensorfloat32": 156e12, "bfloat16": 312e12},
    "NVIDIA L4": {"float32": 30.3e12, "tensorfloat32": 60.5e12, "bfloat16": 121e12},
}
MATMUL_SIDE = 2048
MATMUL_REPEATS = 5


def forward_flops(image_size: int, embedding_dim: int) -> int:
    """FLOP of embedding one image.

    Args:
        image_size: pixels, one on which the network closes.
        embedding_dim: D.
    """
    side = (image_size + 1) // 2
    products = side**2 * 7 * 7 * 3 * 64
    side //= 2
    products += side**2 * (64 * 64 + 9 * 64 * 192)
    side //= 2
    for inputs, (one, three_reduce, three, double_reduce, double_1, double_2, projection) in BLOCKS.values():
        products += side**2 * inputs * (one + three_reduce + double_reduce + projection)
        products += side**2 * 9 * double_reduce * double_1
        side = side if one else side // 2
        products += side**2 * 9 * (three_reduce * three + double_1 * double_2)
    return 2 * (products + FEATURES * embedding_dim)


def peak_flops(dtype: str) -> tuple[float, str]:
    """FLOP/s that JAX's devices can reach together, and where the number is from.

    Args:
        dtype: one of `precision.PRECISIONS`.
    """
    kind = jax.devices()[0].device_kind
    for beginning, peaks in DATASHEET.items():
        if kind.startswith(beginning):
            return peaks[dtype] * jax.device_count(), "datasheet"
    return measured_matmul(dtype), f"measured, {MATMUL_SIDE}² matrices"


def measured_matmul(dtype: str) -> float:
    """FLOP/s of the fastest of a few products of square matrices."""
    matrix = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), activation_dtype(dtype))
    multiply = jax.jit(functools.partial(jnp.matmul, precision=PRECISIONS[dtype])).lower(matrix, matrix).compile()
    seconds = []
    for _ in range(MATMUL_REPEATS):
        start = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * MATMUL_SIDE**3 / min(seconds)

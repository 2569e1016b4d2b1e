"""Peak FLOP/s of the devices, from datasheets or from a measured matrix product."""

import functools
import time

import jax
import jax.numpy as jnp

from proxynca_jax.machine.precision import PRECISIONS, activation_dtype

# Dense FLOP/s, by the prefix of the device kind. The source is NVIDIA's datasheets; their figures with sparsity are
# halved here. TF32 and bfloat16 run on tensor cores, float32 on CUDA cores.
DATASHEET: dict[str, dict[str, float]] = {
    "NVIDIA H100 PCIe": {"float32": 51e12, "tensorfloat32": 378e12, "bfloat16": 756e12},
    "NVIDIA H100": {"float32": 67e12, "tensorfloat32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H200": {"float32": 67e12, "tensorfloat32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA A100": {"float32": 19.5e12, "tensorfloat32": 156e12, "bfloat16": 312e12},
    "NVIDIA L4": {"float32": 30.3e12, "tensorfloat32": 60.5e12, "bfloat16": 121e12},
}
MATMUL_SIDE = 2048
MATMUL_REPEATS = 5


def peak_flops(dtype: str) -> tuple[float, str]:
    """Returns the peak FLOP/s of all JAX devices together, and the source of the number.

    Args:
        dtype: one of `precision.PRECISIONS`.
    """
    kind = jax.devices()[0].device_kind
    for beginning, peaks in DATASHEET.items():
        if kind.startswith(beginning):
            return peaks[dtype] * jax.device_count(), "datasheet"
    return measured_matmul(dtype), f"measured, {MATMUL_SIDE}² matrices"


def measured_matmul(dtype: str) -> float:
    """Measures the FLOP/s of a square matrix product: the fastest of MATMUL_REPEATS."""
    matrix = jnp.ones((MATMUL_SIDE, MATMUL_SIDE), activation_dtype(dtype))
    multiply = jax.jit(functools.partial(jnp.matmul, precision=PRECISIONS[dtype])).lower(matrix, matrix).compile()
    seconds = []
    for _ in range(MATMUL_REPEATS):
        start = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * MATMUL_SIDE**3 / min(seconds)

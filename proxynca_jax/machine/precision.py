"""Precision of the network's convolutions, by the values of `model.compute_dtype`.

| name | activations | convolutions |
| --- | --- | --- |
| `float32` | float32 | float32, as on a CPU |
| `tensorfloat32` | float32 | inputs rounded to 10 bits of mantissa; PyTorch's default on GPUs with TF32 |
| `bfloat16` | bfloat16 | bfloat16 |

All three accumulate in float32. Parameters, statistics, embedding layer, loss and metrics are always float32.
"""

import re
from typing import Any

import jax
from jax.lax import Precision

# GPUs with TF32 use it for float32 convolutions unless the precision is HIGHEST.
PRECISIONS = {"float32": Precision.HIGHEST, "tensorfloat32": Precision.HIGH, "bfloat16": Precision.DEFAULT}
TF32_SINCE = 8  # major compute capability: NVIDIA's Ampere


def activation_dtype(compute_dtype: str) -> str:
    """Returns the dtype of the activations for a `compute_dtype`, one of `PRECISIONS`."""
    return "bfloat16" if compute_dtype == "bfloat16" else "float32"


def has_tensorfloat32(device: Any) -> bool:
    """Returns whether a device, one of `jax.devices()`, supports TF32."""
    capability = re.match(r"\d+", str(getattr(device, "compute_capability", "")))
    return capability is not None and int(capability[0]) >= TF32_SINCE


def computed_in(compute_dtype: str) -> str:
    """Returns the precision, one of `PRECISIONS`, that JAX's devices really use for a `compute_dtype`."""
    if compute_dtype == "tensorfloat32" and not has_tensorfloat32(jax.devices()[0]):
        return "float32"
    return compute_dtype


def available() -> list[str]:
    """Returns the names in `PRECISIONS` that JAX's devices support."""
    return [name for name in PRECISIONS if computed_in(name) == name]

"""The arithmetic of the network's convolutions, by the names that `model.compute_dtype` takes.

| name | activations | convolutions |
| --- | --- | --- |
| `float32` | float32 | float32, as on a CPU |
| `tensorfloat32` | float32 | inputs rounded to 10 bits of mantissa, PyTorch's default on the GPUs that have it |
| `bfloat16` | bfloat16 | bfloat16 |

Sums inside a product and all else (parameters, statistics, embedding layer, loss, metrics) are float32 with each.
"""

import re
from typing import Any

import jax
from jax.lax import Precision

# A GPU with TF32 uses it for float32 convolutions unless HIGHEST forbids it.
PRECISIONS = {"float32": Precision.HIGHEST, "tensorfloat32": Precision.HIGH, "bfloat16": Precision.DEFAULT}
TF32_SINCE = 8  # major compute capability: NVIDIA's Ampere


def activation_dtype(compute_dtype: str) -> str:
    """The type of the activations, for one of `PRECISIONS`."""
    return "bfloat16" if compute_dtype == "bfloat16" else "float32"


def has_tensorfloat32(device: Any) -> bool:
    """Whether a device, one of `jax.devices()`, computes in TF32."""
    capability = re.match(r"\d+", str(getattr(device, "compute_capability", "")))
    return capability is not None and int(capability[0]) >= TF32_SINCE


def computed_in(compute_dtype: str) -> str:
    """The arithmetic that a network of this `compute_dtype` really gets from JAX's devices, one of `PRECISIONS`."""
    if compute_dtype == "tensorfloat32" and not has_tensorfloat32(jax.devices()[0]):
        return "float32"
    return compute_dtype


def available() -> list[str]:
    """Those of `PRECISIONS` that JAX's devices have."""
    return [name for name in PRECISIONS if computed_in(name) == name]

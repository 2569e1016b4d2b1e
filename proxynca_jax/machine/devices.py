"""The devices of JAX, in words."""

import jax


def describe_devices() -> str:
    """Names all devices: `1 × cpu`, `8 × NVIDIA H100 80GB HBM3`."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"

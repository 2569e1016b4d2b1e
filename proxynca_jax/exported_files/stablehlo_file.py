"""StableHLO: one file that JAX runs on several platforms, without this project."""

import jax

from proxynca_jax.config import ModelConfig
from proxynca_jax.exported_files.inference import images_of, inference_function
from proxynca_jax.models.network import Variables

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(config: ModelConfig, variables: Variables, image_size: int) -> bytes:
    """Returns the content of a file for `jax.export.deserialize`, with each platform's fastest algorithms.

    Args:
        config: of the network.
        variables: its arrays.
        image_size: pixels.
    """
    function = jax.jit(inference_function(config, variables))
    return bytes(jax.export.export(function, platforms=PLATFORMS)(images_of(image_size)).serialize())

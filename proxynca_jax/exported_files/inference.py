"""What exported files compute: a network with fixed weights, as a JAX function of images."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxynca_jax.config import ModelConfig
from proxynca_jax.models.network import Variables, abstract_network
from proxynca_jax.onednn.way import without_onednn
from proxynca_jax.steps import make_embed_step

BATCH = "batch"  # the name of the first dimension, which may have any length

Function = Callable[[jax.Array], jax.Array]  # UInt8[Array, "batch size size 3"] to Float32[Array, "batch dim"]


def inference_function(config: ModelConfig, variables: Variables) -> Function:
    """Returns the network as a function of RGB bytes, with BatchNorm folded into the convolutions.

    It computes in float32, whatever `compute_dtype` is: parameters are float32, and runtimes on CPUs have no bfloat16.

    Args:
        config: of the network.
        variables: its arrays, on any devices.
    """
    graph, _ = abstract_network(dataclasses.replace(config, compute_dtype="float32"))
    folded_graph, arrays = make_embed_step(graph).fold(variables)
    on_one_device = jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), arrays)
    network = nnx.merge(folded_graph, on_one_device)

    def inference(images: jax.Array) -> jax.Array:
        with without_onednn():  # other machines run the file
            return network(images, train=False)

    return inference


def images_of(image_size: int) -> jax.ShapeDtypeStruct:
    """Describes the images of a network: any number of them.

    Args:
        image_size: pixels.
    """
    shape = jax.export.symbolic_shape(f"{BATCH}, {image_size}, {image_size}, 3")
    return jax.ShapeDtypeStruct(shape, jnp.uint8)

"""A state dict for PyTorch, as a safetensors file. Writing it needs no PyTorch."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from proxynca_jax.models.network import Variables
from proxynca_jax.weights import conversion
from proxynca_jax.weights.converted_file import METADATA_KEY, flatten


def to_torch(backbone: str, variables: Variables, about: Mapping[str, Any]) -> bytes:
    """Returns the content of a file for `safetensors.torch.load_file`.

    Args:
        backbone: of the network.
        variables: its arrays.
        about: the file's metadata, JSON-serialisable. It is one JSON string under `METADATA_KEY`.

    Raises:
        UserError: if the backbone has no names in PyTorch.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(variables._asdict()).items()}
    state = conversion.to_torch(leaves, backbone)
    # safetensors ignores strides, so a transposed view must become contiguous first.
    contiguous = {key: np.asarray(value, order="C") for key, value in state.items()}
    return safetensors.numpy.save(contiguous, {METADATA_KEY: json.dumps(about)})

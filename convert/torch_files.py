"""State dicts written for PyTorch, with PyTorch."""

import io
import pathlib
import types
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replace_file


def import_torch() -> types.ModuleType:
    """Imports PyTorch, which only `verify` and `--to-torch` need.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError("this needs PyTorch: pip install 'proxynca_jax[convert]'") from error
    return torch


def write_state_dict(path: pathlib.Path, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Writes a state dict in PyTorch's current format.

    Raises:
        UserError: if the file cannot be written.
    """
    torch = import_torch()
    buffer = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(value, order="C")) for key, value in state.items()}, buffer)
    replace_file(path, buffer.getvalue())

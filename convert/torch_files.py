"""State dicts in files: both of PyTorch's formats and safetensors. Nothing inside a file is executed."""

import hashlib
import io
import pathlib
import re
import types
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.weights import METADATA_KEY, read_safetensors

WRAPPERS = ("state_dict", "model")  # entries of a training checkpoint that hold the state dict
DATA_PARALLEL_PREFIX = "module."


def import_torch() -> types.ModuleType:
    """Imports PyTorch, which only conversion needs.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError("this needs PyTorch: pip install 'proxynca_jax[convert]'") from error
    return torch


def git_blob_id(path: pathlib.Path) -> str:
    """Returns git's name for a file's content. It proves that a download from a repository is the right file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_state_dict(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads a state dict, bare or inside a training checkpoint, with or without the prefix of `DataParallel`.

    Args:
        path: a `.pt` or `.pth` file in either of PyTorch's formats, or `.safetensors`.

    Returns:
        Arrays by key, in PyTorch's layout. They have not been compared with any network.

    Raises:
        UserError: if the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    if path.suffix != ".safetensors":
        return _arrays(_unwrap(_load(path), path), path)
    tensors, metadata = read_safetensors(path)
    if METADATA_KEY in metadata:
        raise UserError(f"{path} is converted already. The way back to PyTorch is --to-torch.")
    return _unwrap(tensors, path)


def write_state_dict(path: pathlib.Path, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Writes a state dict in PyTorch's current format.

    Raises:
        UserError: if the file cannot be written.
    """
    torch = import_torch()
    buffer = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(value, order="C")) for key, value in state.items()}, buffer)
    replace_file(path, buffer.getvalue())


def _load(path: pathlib.Path) -> Any:
    torch = import_torch()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # PyTorch itself does not check the checksums
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
        with warnings.catch_warnings(action="ignore"):  # the errors below say more
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} was refused: it asks to run {refused[1]!r}, which weights do not need. "
                "If it is a checkpoint of yours, save only its state dict and convert that."
            ) from error
        raise UserError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a PyTorch file: it is damaged, cut short or "
            "something else. Get it again."
        ) from error


def _unwrap(loaded: Any, path: pathlib.Path) -> dict[str, Any]:
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    if all(key.startswith(DATA_PARALLEL_PREFIX) for key in loaded):
        return {key.removeprefix(DATA_PARALLEL_PREFIX): value for key, value in loaded.items()}
    return dict(loaded)


def _arrays(state: dict[str, Any], path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    arrays, others = {}, []
    for key, value in state.items():
        try:
            arrays[key] = value.detach().numpy()
        except (AttributeError, TypeError, RuntimeError):  # not a tensor, or of a dtype that NumPy lacks
            others.append(f"{key} ({getattr(value, 'dtype', type(value).__name__)})")
    if others:
        raise UserError(
            f"{path} holds no state dict, bare or under {' or '.join(map(repr, WRAPPERS))}: "
            f"{', '.join(others)} cannot be used as arrays."
        )
    return arrays

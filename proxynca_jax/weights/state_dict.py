"""State dicts in files: PyTorch's two formats and safetensors, with the wrappings of training checkpoints undone."""

import hashlib
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.errors import UserError, nearest
from proxynca_jax.weights import torch_file
from proxynca_jax.weights.converted_file import METADATA_KEY, list_names, read_safetensors
from proxynca_jax.weights.torch_pickle import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")  # entries that contain the state dict
AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict")  # used if there is no other
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, a training module and torch.compile
DEEPEST = 4  # wrappers in wrappers; a checkpoint can contain itself


class StateDict(NamedTuple):
    """A state dict, and what was left out on the way to it."""

    tensors: dict[str, Shaped[np.ndarray, "..."]]  # by key, in PyTorch's layout and the file's dtypes
    git_blob_id: str  # git's name for the file's content, which proves that a download is the right file
    notes: tuple[str, ...]  # what was chosen and what was removed from the keys, a line each


def read_state_dict(path: pathlib.Path, entry: str | None = None) -> StateDict:
    """Reads a state dict, bare or inside a training checkpoint. Nothing inside a file is executed.

    Args:
        path: a `.pt` or `.pth` file in either of PyTorch's formats, or `.safetensors`.
        entry: the entry at the top of the checkpoint that contains the state dict. By default the first of `WRAPPERS`,
            then of `AVERAGES`, that there is.

    Returns:
        The state dict, without the prefixes that all of its keys have. It has not been compared with any network.

    Raises:
        UserError: if the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if path.suffix != ".safetensors":
        return parse_state_dict(content, path, entry)
    tensors, metadata = read_safetensors(path)
    if METADATA_KEY in metadata:
        raise UserError(f"{path} is converted already. The way back to PyTorch is --to-torch.")
    return _state_dict(content, tensors, path, entry)


def parse_state_dict(content: bytes, path: pathlib.Path, entry: str | None = None) -> StateDict:
    """As `read_state_dict`, of a PyTorch file whose content has been read."""
    return _state_dict(content, torch_file.read(content, path), path, entry)


def git_blob_id(content: bytes) -> str:
    """Returns git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _state_dict(content: bytes, loaded: Any, path: pathlib.Path, entry: str | None) -> StateDict:
    state, notes = _unwrap(loaded, path, entry)
    if state and all(isinstance(value, Tensor | np.ndarray) for value in state.values()):
        tensors = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in state.items()}
        tensors, prefix = _without_prefixes(tensors)
        if prefix:
            notes.append(f"removed {prefix!r} from the start of every key.")
        return StateDict(tensors, git_blob_id(content), tuple(notes))
    others = [f"{key} ({type(value).__name__})" for key, value in state.items() if not isinstance(value, Tensor)]
    fault = f"{path} has no state dict, bare or under {' or '.join(map(repr, WRAPPERS))}: "
    fault += list_names("not a tensor", others) if others else "it is empty"
    usable = [key for key, value in state.items() if _is_state_dict(value) and not notes]  # --entry is of the top level
    raise UserError(f"{fault}. Choose an entry with --entry {' or '.join(usable)}." if usable else f"{fault}.")


def _unwrap(loaded: Any, path: pathlib.Path, entry: str | None) -> tuple[dict[str, Any], list[str]]:
    """Finds the state dict in a checkpoint. Its values may still be anything."""
    notes = []
    for depth in itertools.count():
        if not isinstance(loaded, dict) or not all(isinstance(key, str) and key.isprintable() for key in loaded):
            raise UserError(f"{path} contains a {type(loaded).__name__}, not a state dict.")
        wrappers = [name for name in (*WRAPPERS, *AVERAGES) if isinstance(loaded.get(name), dict) and loaded[name]]
        if (entry is None and not wrappers) or depth == DEEPEST:
            break
        chosen = wrappers[0] if entry is None else entry
        if not isinstance(loaded.get(chosen), dict):
            dicts = [name for name, value in loaded.items() if isinstance(value, dict)]
            raise UserError(f"--entry is {chosen!r}, which is not a state dict in {path}: {nearest(chosen, dicts)}")
        notes.append(f"used the entry {chosen!r}.")
        left_out = [name for name, value in loaded.items() if name in wrappers or _is_state_dict(value)]
        if others := [name for name in left_out if name != chosen]:
            copies = ", ".join(map(repr, others))
            advice = "" if depth else f" To take {others[0]!r} instead, add --entry {others[0]}."
            notes.append(f"left out: {copies}.{advice}")
        loaded, entry = loaded[chosen], None
    return loaded, notes


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(leaf, Tensor) for leaf in value.values())


def _without_prefixes(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Removes each of `PREFIXES` that all keys have, in whatever order. Returns them as one string, too."""
    removed = ""
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in tensors)), ""):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        removed += prefix
    return dict(tensors), removed

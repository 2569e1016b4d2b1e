"""Starts a network from weights: a converted file, an exported network, or a package by name."""

import difflib
import os
import pathlib

import jax
import jax.numpy as jnp
from flax import traverse_util

from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine.arguments import path as expanded
from proxynca_jax.models.network import Variables
from proxynca_jax.weights import converted_file, hub_folder
from proxynca_jax.weights.converted_file import Converted, flatten, mismatches
from proxynca_jax.weights.packages import PACKAGES, read_package


def are_weights(path: str | os.PathLike[str]) -> bool:
    """Tells weights from the folder of a run. A mistyped name of a package is weights, so that its error names it."""
    name, path = os.fspath(path), pathlib.Path(path)
    if name in PACKAGES or path.is_file() or is_exported(path):
        return True
    return not path.exists() and bool(difflib.get_close_matches(name, PACKAGES, cutoff=0.8))


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Tells an exported network, a folder for `hub_folder.read`, from other weights."""
    return os.fspath(path) not in PACKAGES and hub_folder.is_hub_folder(expanded(os.fspath(path)))


def read_weights(path: str | os.PathLike[str]) -> Converted:
    """Reads weights in this project's layout.

    Args:
        path: of the file that `python -m convert` wrote, the folder of an exported network, or a key of `PACKAGES`.
            Such a name is always the package; a file or a folder of that name needs its own folder before it.

    Raises:
        UserError: if there is no such file or it is something else, or the package is not installed.
    """
    name, path = os.fspath(path), expanded(os.fspath(path))
    if name in PACKAGES:
        return read_package(name)
    if is_exported(path):
        return hub_folder.read(path)[0]
    if name == path.stem and not path.exists():
        raise UserError(f"no weights are called {name!r}: {nearest(name, PACKAGES)} {converted_file.CONVERT_FIRST}")
    return converted_file.read(path)


def fill(variables: Variables, weights: Converted, backbone: str) -> Variables:
    """Fills a network with weights.

    All of the backbone is replaced. The embedding layer is replaced if the weights have one of the same width.
    Otherwise, as with weights from ImageNet, it is kept. ImageNet's classifier and PyTorch's batch counters are not
    used.

    Args:
        variables: the network before. It does not change.
        weights: of `read_weights`.
        backbone: of the network, a key of `BACKBONES`.

    Returns:
        The filled network.

    Raises:
        UserError: for weights of another backbone, or for leaves that are missing, unknown or of another shape.
    """
    if weights.backbone != backbone:
        raise UserError(
            f"{weights.origin} are of the backbone {weights.backbone!r}, and model.backbone is {backbone!r}. "
            f"Set --config.model.backbone={weights.backbone}, or give weights of {backbone!r}."
        )
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith("torch/")}
    expected = flatten(variables._asdict())
    embedding = {name: leaf for name, leaf in expected.items() if name.startswith("params/embedding_layer/")}
    if mismatches({name: tensors[name] for name in embedding.keys() & tensors.keys()}, embedding):
        tensors |= embedding
    if faults := mismatches(tensors, expected):
        raise UserError("\n  ".join([f"{weights.origin} do not fit the network:", *faults]))
    filled = traverse_util.unflatten_dict(jax.tree.map(jnp.array, tensors), sep="/")
    return Variables(**filled)

"""The converted weights file: safetensors holding the leaves of the network's plain dicts under their paths.

`params/backbone/conv1_7x7_s2/kernel` and `batch_stats/backbone/conv1_7x7_s2_bn/mean` are such paths; what only PyTorch
has a use for lies under `torch/`. The preprocessing that the weights expect and their origin travel in the metadata.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Shaped

import proxynca_jax
from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.models.network import BN_INCEPTION
from proxynca_jax.steps import Tree

# All metadata is one JSON string under this key: safetensors writes several keys in an order that changes from run to
# run, and the same weights must give the same bytes.
METADATA_KEY = "proxynca_jax"
CONVERT_FIRST = "Make one with `python -m convert bn_inception_weights_pt04.pt` and give its output here."


def flatten(tree: Tree) -> dict[str, Any]:
    """The leaves of nested dicts under their paths, joined by slashes."""
    return traverse_util.flatten_dict(tree, sep="/")


def mismatches(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Compares names, shapes and dtypes.

    Args:
        found: arrays by name.
        expected: arrays, or anything with their `shape` and `dtype`, by name.

    Returns:
        A line for each kind of mismatch, which lists all of its names; empty if everything agrees.
    """

    def kind(array: Any) -> str:
        return f"{array.dtype} {tuple(array.shape)}"

    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "wrong": [
            f"{name} is {kind(found[name])} and must be {kind(expected[name])}"
            for name in sorted(found.keys() & expected.keys())
            if kind(found[name]) != kind(expected[name])
        ],
    }
    return [f"{fault} ({len(names)}): {', '.join(names)}" for fault, names in faults.items() if names]


def write(path: pathlib.Path, tensors: Mapping[str, Shaped[np.ndarray, "..."]], *, source: dict[str, str]) -> None:
    """Writes a converted weights file; the same arguments give the same bytes.

    Args:
        path: of the file.
        tensors: leaves by path.
        source: where the weights come from.

    Raises:
        UserError: if the file cannot be written.
    """
    about = {
        "preprocessing": dataclasses.asdict(BN_INCEPTION),
        "source": source,
        "proxynca_jax": proxynca_jax.__version__,
    }
    # safetensors writes the memory behind a transposed view as it lies, without regard to its strides.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    replace_file(path, safetensors.numpy.save(contiguous, {METADATA_KEY: json.dumps(about, sort_keys=True)}))


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Shaped[np.ndarray, "..."]], dict[str, str]]:
    """Any safetensors file's tensors by name, and its metadata.

    Raises:
        UserError: if there is no such file or it is something else.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    try:
        with safetensors.safe_open(path, "np") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:  # the latter two: no such NumPy dtype
        raise UserError(f"{path} cannot be read as a safetensors file: {error}.") from error


def read(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """A converted weights file's tensors by path.

    Raises:
        UserError: if there is no such file, it is something else, or its weights expect other pixels than ours.
    """
    try:
        tensors, metadata = read_safetensors(path)
    except UserError as error:
        raise UserError(f"{error} {CONVERT_FIRST}") from error
    if METADATA_KEY not in metadata:
        raise UserError(f"{path} is not a converted weights file. {CONVERT_FIRST}")
    found = json.loads(metadata[METADATA_KEY])["preprocessing"]
    required = json.loads(json.dumps(dataclasses.asdict(BN_INCEPTION)))
    if found != required:
        raise UserError(
            f"the weights in {path} expect images as {found}, this version prepares them as {required}. "
            "Convert the PyTorch file again with this version."
        )
    return tensors


def load_pretrained(path: str | os.PathLike[str], network: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
    """Fills a network from a converted weights file.

    The whole backbone is replaced. The embedding layer is too if the file has one of the same width; otherwise, as with
    weights from ImageNet, it stays as it is. ImageNet's classifier and PyTorch's batch counters are left out.

    Args:
        path: of the file that `python -m convert` wrote.
        network: the embedder's parameters, `{"backbone": ..., "embedding_layer": ...}`.
        batch_stats: the embedder's running statistics.

    Returns:
        The parameters and the running statistics, in the form of the arguments, which are left alone.

    Raises:
        UserError: for a file of another kind, or listing every leaf that is missing, unknown or of another shape.
    """
    path = pathlib.Path(path)
    tensors = {name: tensor for name, tensor in read(path).items() if not name.startswith("torch/")}
    expected = flatten({"params": network, "batch_stats": batch_stats})
    embedding = {name: leaf for name, leaf in expected.items() if name.startswith("params/embedding_layer/")}
    if mismatches({name: tensors[name] for name in embedding.keys() & tensors.keys()}, embedding):
        tensors |= embedding
    if faults := mismatches(tensors, expected):
        raise UserError("\n  ".join([f"{path} does not fit the network:", *faults]))
    filled = traverse_util.unflatten_dict(jax.tree.map(jnp.array, tensors), sep="/")
    return filled["params"], filled["batch_stats"]

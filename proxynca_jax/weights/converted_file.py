"""The converted weights file: a network's arrays by path, in safetensors.

Paths are such as `params/backbone/conv1_7x7_s2/kernel` and `batch_stats/backbone/conv1_7x7_s2_bn/mean`. Arrays that
only PyTorch uses are under `torch/`. The metadata names the backbone, its preprocessing and the source of the weights.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Shaped

from proxynca_jax.errors import UserError, look_up
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import Tree
from proxynca_jax.version import __version__

# All metadata is one JSON string under this key. safetensors writes several keys in an order that changes from run to
# run, but the same weights must give the same bytes.
METADATA_KEY = "proxynca_jax"
CONVERT_FIRST = "Make one with `python -m convert bn_inception_weights_pt04.pt` and give its output here."
# What the metadata of version 0.1 lacks. All of its files are of this backbone.
SINCE_VERSION_0_1 = {"scale": 1.0, "std": [1.0, 1.0, 1.0], "resize_size": 256}
BACKBONE_OF_VERSION_0_1 = "bn_inception"
NAMES_LISTED = 8  # of each kind of mismatch


class Converted(NamedTuple):
    """Weights in this project's layout."""

    backbone: str  # a key of BACKBONES
    tensors: dict[str, Shaped[np.ndarray, "..."]]  # by path
    source: Mapping[str, str]  # which file they were converted from
    origin: str  # where they are, in words


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns the leaves of nested dicts by path, whose parts are joined by slashes."""
    return traverse_util.flatten_dict(tree, sep="/")


def mismatches(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Compares the names, shapes and dtypes of two sets of arrays.

    Args:
        found: arrays by name.
        expected: arrays, or anything with their `shape` and `dtype`, by name.

    Returns:
        One line for each kind of mismatch, with the first names. Empty if everything agrees.
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
    return [list_names(fault, names) for fault, names in faults.items() if names]


def list_names(fault: str, names: Sequence[str]) -> str:
    """Counts names after a word, and lists the first of them."""
    more = ", ..." if len(names) > NAMES_LISTED else ""
    return f"{fault} ({len(names)}): {', '.join(names[:NAMES_LISTED])}{more}"


def write(
    path: pathlib.Path, backbone: str, tensors: Mapping[str, Shaped[np.ndarray, "..."]], *, source: dict[str, str]
) -> None:
    """Writes a converted weights file. The same arguments give the same bytes.

    Args:
        path: of the file.
        backbone: a key of `BACKBONES`.
        tensors: leaves by path.
        source: where the weights come from.

    Raises:
        UserError: if the file cannot be written.
    """
    about = {
        "backbone": backbone,
        "preprocessing": dataclasses.asdict(BACKBONES[backbone].preprocessing),
        "source": source,
        "proxynca_jax": __version__,
    }
    # safetensors ignores strides, so a transposed view must become contiguous first.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    replace_file(path, safetensors.numpy.save(contiguous, {METADATA_KEY: json.dumps(about, sort_keys=True)}))


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Shaped[np.ndarray, "..."]], dict[str, str]]:
    """Reads any safetensors file: its tensors by name, and its metadata.

    Raises:
        UserError: if there is no such file, or it is not safetensors.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}.")
    try:
        with safetensors.safe_open(path, "np") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:  # the last two: an unknown dtype
        raise UserError(f"{path} cannot be read as a safetensors file: {error}.") from error


def read(path: pathlib.Path) -> Converted:
    """Reads a converted weights file.

    Raises:
        UserError: if there is no such file, it is something else, its backbone is unknown, or its weights expect other
            pixels than that backbone gets.
    """
    try:
        tensors, metadata = read_safetensors(path)
    except UserError as error:
        raise UserError(f"{error} {CONVERT_FIRST}") from error
    if METADATA_KEY not in metadata:
        raise UserError(f"{path} is not a converted weights file. {CONVERT_FIRST}")
    try:
        about = json.loads(metadata[METADATA_KEY])
        name, source = str(about.get("backbone", BACKBONE_OF_VERSION_0_1)), dict(about.get("source", {}))
        found = SINCE_VERSION_0_1 | dict(about["preprocessing"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: what it says of its weights cannot be read. {CONVERT_FIRST}") from error
    backbone = look_up(BACKBONES, name, f"the backbone of the weights in {path}")
    required = json.loads(json.dumps(dataclasses.asdict(backbone.preprocessing)))
    if found != required:
        raise UserError(
            f"the weights in {path} expect images as {found}, this version prepares them as {required}. "
            "Convert the PyTorch file again with this version."
        )
    return Converted(name, tensors, source, f"the weights in {path}")

"""Compares a PyTorch file and its converted file: both networks on the same images, layer by layer."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import torch
from flax import nnx
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from convert.twins import TWINS
from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError, look_up
from proxynca_jax.machine.output import print_line
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.backbone import normalise
from proxynca_jax.models.network import Variables, init_network, unit_vectors
from proxynca_jax.weights import NAMES, conversion
from proxynca_jax.weights.converted_file import Converted, flatten, mismatches, read
from proxynca_jax.weights.pretrained import fill
from proxynca_jax.weights.state_dict import read_state_dict

IMAGES = 4
# Largest relative RMS accepted. The rounding of float32 alone gave 1.3e-5 in inference (BN-Inception) and 2.3e-4 in
# training (EfficientNet-Lite1; a running mean, whose addends cancel).
TOLERANCE = {"inference": 1e-4, "training": 1e-3}

Stages = dict[str, Float[np.ndarray, "..."]]  # outputs by stage, and the running statistics after them by key


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far our array is from PyTorch's."""

    max_abs: float
    relative_rms: float  # RMS of the difference over RMS of PyTorch's array
    cosine: float


def distance(ours: Float[np.ndarray, "*shape"], theirs: Float[np.ndarray, "*shape"]) -> Distance:
    """Compares two arrays in double precision."""
    x, y = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    difference = x - y
    if not difference.any():  # also of arrays of zeros, which have no length to divide by
        return Distance(max_abs=0.0, relative_rms=0.0, cosine=1.0)
    length = np.linalg.norm(y)
    return Distance(
        max_abs=float(np.abs(difference).max()),
        relative_rms=float(np.linalg.norm(difference) / length),
        cosine=float(x @ y / (np.linalg.norm(x) * length)),
    )


def synthetic_images(size: int) -> UInt8[np.ndarray, "batch size size 3"]:
    """Draws smooth colour patterns, the same ones every time.

    Args:
        size: pixels, side of the square.
    """
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    sides, method = (size, size), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(image).resize(sides, method)) for image in coarse])


def torch_stages(
    backbone: str, state: Mapping[str, Shaped[np.ndarray, "..."]], images: UInt8[np.ndarray, "..."]
) -> dict[str, Stages]:
    """Runs the PyTorch network in each mode, in float64: its rounding in float32 is up to 60 times ours.

    Args:
        backbone: a key of `TWINS`.
        state: its state dict.
        images: RGB bytes, NHWC.
    """
    network = TWINS[backbone]({key: torch.tensor(value) for key, value in state.items()}).double()
    outputs = {}
    for mode in TOLERANCE:
        network.train(mode == "training")
        with torch.no_grad():
            stages = dict(network.stages(torch.tensor(images)))
        running = {key: x.numpy().copy() for key, x in network.state_dict().items() if ".running_" in key}
        outputs[mode] = {name: x.movedim(1, -1).numpy() for name, x in stages.items()} | running
    return outputs


def flax_stages(converted: Converted, model: ModelConfig, images: UInt8[np.ndarray, "..."]) -> dict[str, Stages]:
    """Runs the Flax network in each mode, with weights loaded as for training.

    Args:
        converted: the converted file.
        model: the network.
        images: RGB bytes.
    """
    graph, fresh = init_network(model, np.random.default_rng(0))
    variables = fill(fresh, converted, model.backbone)
    names, outputs = NAMES[model.backbone], {}
    for mode in TOLERANCE:
        # A GPU's default TF32 is a thousand times coarser than what is measured here.
        with jax.default_matmul_precision("highest"):
            stages, updated = _run(graph, variables, images, train=mode == "training")
        leaves = flatten({"batch_stats": updated})
        running = dict(names.to_torch(name, np.asarray(leaf)) for name, leaf in leaves.items())
        outputs[mode] = {name: np.asarray(x) for name, x in stages.items()} | running
    return outputs


@functools.partial(jax.jit, static_argnames=("graph", "train"))
def _run(graph: nnx.GraphDef, variables: Variables, images: UInt8[jax.Array, "..."], *, train: bool):
    model = nnx.merge(graph, *variables)
    stages = dict(model.backbone.stages(normalise(images, model.preprocessing), train=train))
    stages["embedding"] = unit_vectors(model.embedding_layer(stages["global_pool"]))
    return stages, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def verify(torch_path: pathlib.Path, converted_path: pathlib.Path, entry: str | None = None) -> None:
    """Prints the distance between the two networks at every stage in both modes, and a verdict.

    Args:
        torch_path: the PyTorch file.
        converted_path: the file that `python -m convert` wrote.
        entry: of the PyTorch file, as for `read_state_dict`.

    Raises:
        UserError: if a file is unusable, a tensor differs, or a distance is above `TOLERANCE`.
    """
    converted = read(converted_path)
    backbone, tensors = converted.backbone, converted.tensors
    look_up(TWINS, backbone, f"verify needs a PyTorch network; the backbone of {converted_path}")
    state, _ = conversion.accept(read_state_dict(torch_path, entry).tensors, backbone, torch_path)
    required = conversion.to_flax(state, backbone)
    _raise_if(mismatches(tensors, required), torch_path, converted_path)

    images = synthetic_images(BACKBONES[backbone].preprocessing.image_size)
    # If the files have no embedding layer, ours is not compared, whatever its width.
    embedding_dim = len(tensors.get("params/embedding_layer/bias", [0]))
    model = ModelConfig(backbone=backbone, embedding_dim=embedding_dim)
    theirs = torch_stages(backbone, state, images)
    ours = flax_stages(converted, model, images)
    rows = {mode: {name: distance(ours[mode][name], x) for name, x in theirs[mode].items()} for mode in TOLERANCE}
    print_line(table({mode: _summarise_statistics(distances) for mode, distances in rows.items()}))
    unequal = [name for name in required if not np.array_equal(required[name], tensors[name])]
    faults = [f"not equal ({len(unequal)}): {', '.join(unequal)}"] if unequal else []
    for mode, distances in rows.items():
        if outside := [name for name, found in distances.items() if not found.relative_rms <= TOLERANCE[mode]]:
            faults.append(f"relative RMS above {TOLERANCE[mode]:.0e} in {mode} ({len(outside)}): {', '.join(outside)}")
    _raise_if(faults, torch_path, converted_path)
    bounds = " and ".join(f"{bound:.0e} in {mode}" for mode, bound in TOLERANCE.items())
    print_line(f"verified: all {len(tensors)} tensors are equal, every stage is within a relative RMS of {bounds}.")


def _raise_if(faults: list[str], torch_path: pathlib.Path, converted_path: pathlib.Path) -> None:
    if faults:
        raise UserError("\n  ".join([f"{converted_path} is not {torch_path} converted:", *faults]))


def _summarise_statistics(distances: dict[str, Distance]) -> dict[str, Distance]:
    """Keeps the running statistics of the worst layer only."""
    rows = {name: found for name, found in distances.items() if "." not in name}
    for statistic in ("running_mean", "running_var"):
        layers = [found for name, found in distances.items() if name.endswith(f".{statistic}")]
        rows[f"{statistic}, worst layer"] = max(layers, key=lambda found: found.relative_rms)
    return rows


def table(rows: dict[str, dict[str, Distance]]) -> str:
    """Formats distances by mode and stage: a line for each stage, a group of columns for each mode."""
    columns = f"{'max abs':>9} {'rel RMS':>9} {'cosine':>11}"
    lines = [[" " * 25, *(f"{mode:^31}" for mode in rows)], [f"{'stage':25}", *(columns for _ in rows)]]
    for stage in next(iter(rows.values())):
        found = [distances[stage] for distances in rows.values()]
        cells = [f"{x.max_abs:9.1e} {x.relative_rms:9.1e} {x.cosine:11.8f}" for x in found]
        lines.append([f"{stage:25}", *cells])
    return "\n".join("  ".join(line).rstrip() for line in lines)

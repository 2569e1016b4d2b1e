"""The reference's numbers and the weights they were computed from, in our layout."""

import functools
import json
import pathlib
import zlib

import jax
import numpy as np

from proxynca_jax.models.network import Tree
from proxynca_jax.weights import NAMES

FOLDER = pathlib.Path(__file__).parent / "golden"


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """Every array of the file that the reference's network, loss and optimiser produced."""
    with np.load(FOLDER / "golden_cub.npz") as arrays:
        return dict(arrays)


def made_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight that the reference was given for a state-dict key, in PyTorch's layout."""
    rng = np.random.default_rng([7, zlib.crc32(key.encode())])
    if key == "embedding_layer.bias":
        return rng.uniform(-1 / 32, 1 / 32, shape).astype(np.float32)
    z = rng.standard_normal(shape, dtype=np.float32)
    if key == "embedding_layer.weight":
        return (np.clip(z, -2, 2) * 0.001).astype(np.float32)
    if key == "proxies":
        return z / np.float32(8)
    if key.startswith("last_linear."):
        return z * np.float32(0.01)
    if len(shape) == 4:
        return (z * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if key.endswith("_bn.weight"):
        return 1 + np.float32(0.2) * z
    return z * np.float32(0.1 if key.endswith("_bn.bias") else 0.05)


def state_dict() -> dict[str, np.ndarray]:
    """The golden backbone with ImageNet's classifier, as PyTorch lays it out and with its batch counters."""
    shapes = json.loads((FOLDER / "bn_inception_state_dict.json").read_text())
    state = {key: made_weight(key, tuple(shape)) for key, shape in shapes.items()}
    state |= {key: golden()[f"stats/{key}"] for key in shapes if ".running_" in key}
    return state | {key: np.array(7) for key in shapes if key.endswith(".num_batches_tracked")}


def path_of(layer: str, leaf: str) -> str:
    """Where a leaf of the network is in a converted file."""
    collection = "batch_stats" if leaf in ("mean", "var") else "params"
    return f"{collection}/{layer}/{leaf}" if layer == "embedding_layer" else f"{collection}/backbone/{layer}/{leaf}"


def as_torch(layer: str, leaf: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns PyTorch's key of a leaf of the network, and the leaf in PyTorch's layout."""
    return NAMES["bn_inception"].to_torch(path_of(layer, leaf), np.asarray(value))


def fill(tree: Tree, stats: str = "stats/{}") -> Tree:
    """The golden weights in the shape of `tree`, parameters or batch statistics of an embedder."""

    def leaf(path: tuple, old: jax.Array) -> jax.Array:
        key, torch_layout = as_torch(path[-2].key, path[-1].key, np.asarray(old))
        made = golden()[stats.format(key)] if "running" in key else made_weight(key, torch_layout.shape)
        return jax.numpy.array(NAMES["bn_inception"].to_flax(key, made)[1])

    return jax.tree_util.tree_map_with_path(leaf, tree)

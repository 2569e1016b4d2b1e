"""Both networks on the same images, layer by layer: does the converted file compute what the PyTorch file does?"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import torch
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from convert import rules
from convert.torch_files import read_state_dict
from convert.torch_network import from_state_dict
from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models.embedder import BN_INCEPTION, Embedder, normalise, unit_vectors
from proxynca_jax.steps import Tree, split_embedder
from proxynca_jax.weights import flatten, load_pretrained, read

IMAGES = 4
TOLERANCE = {"inference": 1e-4, "training": 1e-3}  # relative RMS; float32 rounding alone gives a tenth of it

Stages = dict[str, Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far our array is from PyTorch's."""

    max_abs: float
    relative_rms: float  # RMS of the difference over RMS of PyTorch's
    cosine: float

    @classmethod
    def between(cls, ours: Float[np.ndarray, "..."], theirs: Float[np.ndarray, "..."]) -> "Distance":
        x, y = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
        norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
        return cls(float(abs(x - y).max()), float(np.linalg.norm(x - y) / norm_y), float(x @ y / (norm_x * norm_y)))


def synthetic_images() -> UInt8[np.ndarray, "batch size size 3"]:
    """The same few smooth colour patterns every time."""
    coarse = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    side = (BN_INCEPTION.image_size,) * 2
    return np.stack([Image.fromarray(image).resize(side, Image.Resampling.BICUBIC) for image in coarse])


def verify(torch_path: pathlib.Path, converted_path: pathlib.Path) -> None:
    """Prints every stage's distance between the two networks, and a verdict.

    Args:
        torch_path: the PyTorch file.
        converted_path: what `python -m convert` made of it.

    Raises:
        UserError: if a file cannot be used, or a distance is above `TOLERANCE`, or the tensors differ.
    """
    state = read_state_dict(torch_path)
    rules.check_state_dict(state, torch_path)
    tensors = read(converted_path)
    required = dict(rules.to_flax(key, value) for key, value in state.items())
    different = [
        name
        for name in sorted(required.keys() | tensors.keys())
        if not (name in required and name in tensors and np.array_equal(required[name], tensors[name]))
    ]
    images = synthetic_images()
    distances = {}
    theirs, ours = _torch_stages(state, images), _flax_stages(converted_path, tensors, images)
    for mode in TOLERANCE:
        distances[mode] = {name: Distance.between(ours[mode][name], theirs[mode][name]) for name in theirs[mode]}
    print(_table(distances))
    outside = [f"{n} ({m})" for m, stages in distances.items() for n, d in stages.items() if d.relative_rms > TOLERANCE[m]]
    ...

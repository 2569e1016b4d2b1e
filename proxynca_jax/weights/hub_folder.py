"""The folder of an exported network, in the form of the Hugging Face Hub.

| file | content |
| --- | --- |
| `config.json` | what the network is, how it sees images, and the SHA-256 of its weights |
| `model.safetensors` | the weights, a converted file |
| `README.md` | the model card, which is not read |

Nothing in these files is executed.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.config import TrainConfig
from proxynca_jax.errors import UserError, look_up
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.models import BACKBONES
from proxynca_jax.version import __version__
from proxynca_jax.weights import converted_file
from proxynca_jax.weights.converted_file import Converted

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "proxynca_jax"
# The fields of `TrainConfig` that inference depends on, by group. `config.json` has them under the same names.
SETTINGS = {
    "model": ("backbone", "embedding_dim", "compute_dtype"),
    "data": ("image_size", "resize_size", "squash"),
    "evaluation": ("batch_size",),
}
NORMALISATION = ("channel_order", "scale", "mean", "std")  # fields of `Preprocessing`


def is_hub_folder(path: pathlib.Path) -> bool:
    """Tells an exported network from other folders, such as a run's."""
    return (path / WEIGHTS).is_file()


def write(
    folder: pathlib.Path,
    config: TrainConfig,
    tensors: Mapping[str, Shaped[np.ndarray, "..."]],
    *,
    source: dict[str, str],
) -> None:
    """Writes `config.json` and `model.safetensors`. The same arguments give the same bytes.

    Args:
        folder: must exist.
        config: of the network. Only the fields of `SETTINGS` are written: no path, and nothing of the training images.
        tensors: leaves by path.
        source: where the weights come from.

    Raises:
        UserError: if a file cannot be written.
    """
    weights = folder / WEIGHTS
    converted_file.write(weights, config.model.backbone, tensors, source=source)
    about = {"library_name": LIBRARY, "library_version": __version__, **_describe(config, _sha256(weights))}
    replace_file(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def read(folder: pathlib.Path) -> tuple[Converted, TrainConfig]:
    """Reads an exported network.

    Args:
        folder: that `write` wrote, or a copy of it.

    Returns:
        The weights, and a configuration with the fields of `SETTINGS`. The others have their defaults.

    Raises:
        UserError: if a file is missing, damaged or of something else, or this version sees images in another way.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}. An exported network has both: write one with "
            f"`proxynca export RUN --format hub -o FOLDER`, or download it again."
        )
    path = folder / CONFIG
    about = _read_json(path)
    config = _settings(about, path)
    expected = json.loads(json.dumps(_describe(config, _sha256(folder / WEIGHTS))))
    found = {name: about.get(name) for name in expected}
    if found["weights_sha256"] != expected["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS} is damaged, or not the file that {path} describes: its SHA-256 is "
            f"{expected['weights_sha256']}, and must be {found['weights_sha256']}. Copy or download it again."
        )
    if found != expected:
        raise UserError(
            f"{path} describes images as {found['normalisation']}, this version prepares them as "
            f"{expected['normalisation']}. Use the version of proxynca_jax that wrote it: {about['library_version']}."
        )
    weights = converted_file.read(folder / WEIGHTS)
    kernel = weights.tensors.get("params/embedding_layer/kernel")
    if weights.backbone != config.model.backbone or kernel is None or kernel.shape[1] != config.model.embedding_dim:
        raise UserError(f"{path} and {folder / WEIGHTS} describe different networks. Copy or download them again.")
    return weights, config


def _describe(config: TrainConfig, weights_sha256: str) -> dict[str, Any]:
    settings = {name: getattr(getattr(config, group), name) for group, names in SETTINGS.items() for name in names}
    preprocessing = dataclasses.asdict(BACKBONES[config.model.backbone].preprocessing)
    normalisation = {name: preprocessing[name] for name in NORMALISATION}
    return {**settings, "normalisation": normalisation, "weights_sha256": weights_sha256}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads what a folder says of its network, if it is one of this project.

    Raises:
        UserError: if it is not.
    """
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    if not isinstance(about, dict) or about.get("library_name") != LIBRARY or "library_version" not in about:
        raise UserError(
            f"{path} does not describe a network of {LIBRARY}: it needs the field library_name with that value, and "
            "library_version. Networks of other libraries cannot be loaded."
        )
    return about


def _settings(about: dict[str, Any], path: pathlib.Path) -> TrainConfig:
    """Returns the settings in a configuration.

    Raises:
        UserError: if one is missing, of another type or out of its range.
    """
    config = TrainConfig()
    for group, names in SETTINGS.items():
        for name in names:
            required, found = type(getattr(getattr(config, group), name)), about.get(name)
            if type(found) is not required:
                raise UserError(f"{path}: {name} is {found!r}; it must be of the type {required.__name__}.")
            setattr(getattr(config, group), name, found)
    try:
        config.validate()
        look_up(BACKBONES, config.model.backbone, "backbone").check_image_size(config.data.image_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

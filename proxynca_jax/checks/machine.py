"""Checks of the machine: versions, devices, memory and disk."""

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from packaging.requirements import Requirement

from proxynca_jax.checks import ERROR, OK, WARNING, Finding
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.evaluation_images import NOWHERE, choose_place
from proxynca_jax.data.resident import plan
from proxynca_jax.data.split import DataSet, sample
from proxynca_jax.data.transforms import loaded_size, shrunk_size
from proxynca_jax.errors import UserError
from proxynca_jax.machine.free_memory import free_on_host
from proxynca_jax.onednn.way import way

NAMED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SIZES = 200  # images whose size is looked at
STATES_ON_DISK = 3  # the latest, the best, and one that is being written


def check_versions() -> Iterator[Finding]:
    """Names the versions of what computes, and finds packages out of the range that this version needs."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("proxynca_jax", *NAMED)]
    yield Finding(OK, f"Python {platform.python_version()}, {', '.join(versions)}")
    for text in importlib.metadata.requires("proxynca_jax") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(ERROR, f"{needed.name} is not installed: pip install '{needed.name}{needed.specifier}'")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            yield Finding(WARNING, f"{needed.name} is {found} and must be {needed.specifier}: install it again")
    device = jax.devices()[0]
    yield Finding(OK, f"{jax.device_count()} × {device.device_kind} ({device.platform})")
    yield Finding(OK, way().hint or f"convolutions by {way().name}")


def check_memory(dataset: DataSet, config: TrainConfig, *, width: int) -> Iterator[Finding]:
    """Compares memory that the images need with what is free. The memory of a step is known once it is compiled.

    Args:
        dataset: The images.
        config: Of the run.
        width: Of an embedding, D.
    """
    place, line = choose_place(dataset.evaluation, config)
    yield Finding(WARNING if place == NOWHERE else OK, line)
    embedded = sum(len(split.labels) for split in dataset.evaluation.splits()) * width * 4
    free = free_on_host()
    yield Finding(
        OK if 4 * embedded < free else WARNING,
        f"the evaluation's embeddings take {embedded / 1e9:.2f} GB; {free / 1e9:.1f} GB of host memory are free",
    )
    if config.data.placement == "device":
        try:
            _, (places, height, width) = plan(dataset.train, config.data)
        except UserError as error:
            yield Finding(ERROR, str(error))
        else:
            yield Finding(OK, f"training images on the device take {places * height * width * 3 / 1e9:.2f} GB")


def check_disk(folder: Path, state_bytes: int) -> Iterator[Finding]:
    """Compares the size of a run's states with what is free.

    Args:
        folder: Of the run; it need not exist. A run that goes on replaces its states one by one.
        state_bytes: Size of one state.
    """
    states = 1 if (folder / "checkpoints").exists() else STATES_ON_DISK
    yield _room("a run's states take up to", states * state_bytes, folder, "--run")


def check_cache(dataset: DataSet, config: TrainConfig) -> Iterator[Finding]:
    """Compares the size of decoded images with what is free, if they are to be kept and are not there yet.

    Args:
        dataset: The images.
        config: Of the run.
    """
    folder = Path(config.data.cache).expanduser()
    if config.data.cache and not (folder.is_dir() and any(folder.iterdir())):
        split = dataset.train
        rows = sample(split, SIZES)
        sizes = [shrunk_size(*loaded_size(split, row), config.data.max_side) for row in rows]
        training = len(split.labels) * float(np.mean([height * width for height, width in sizes])) * 3
        crops = sum(len(split.labels) for split in dataset.evaluation.splits()) * config.data.image_size**2 * 3
        yield _room(
            f"decoded images, by the size of {len(rows)}, take about", round(training + crops), folder, "data.cache"
        )


def _room(what: str, needed: int, folder: Path, option: str) -> Finding:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    text = f"{what} {needed / 1e9:.2f} GB; {free / 1e9:.1f} GB are free in {there}"
    return Finding(OK, text) if needed < free else Finding(ERROR, f"{text}. Make room, or choose another {option}.")

"""The main job for `benchmarks.gpu`: draws images, as many as CUB has, trains on them, and compares two runs' bits."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import simplejpeg
from absl import logging
from PIL import Image

from proxynca_jax.errors import UserError
from proxynca_jax.runs.log import Record

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH = 375, 500  # pixels, of most of CUB's photographs
NOISE = 5.0  # levels of 255, standard deviation; with it a file has 50 to 100 kB
QUALITY = 90  # of the JPEGs
MOMENTS = {  # lines of a run's output
    "compiled": re.compile(r"compiled in "),
    "first_evaluation": re.compile(r"epoch -1 "),
    "first_images": re.compile(r"epoch 0  (\d+)/"),  # a step waits for its loss before it prints this
}
# What differs from one execution of the same run to the next.
CLOCKS = {"train_seconds", "images_per_second", "data_wait_share", "evaluation_seconds"}


def draw_cub(root: Path, *, training: int, test: int, classes: int) -> float:
    """Draws JPEGs in CUB's layout, no two alike, in as many threads as there are cores.

    The colours of an image have nothing to do with its class, so nothing can be learned from them.

    Args:
        root: an empty folder.
        training: images of the first half of the classes.
        test: images of the other half.
        classes: an even number.

    Returns:
        kB of a file, on average.
    """
    noise = np.random.default_rng(0).normal(0, NOISE, (2 * HEIGHT, 2 * WIDTH, 3)).astype(np.int16)
    halves = np.split(np.arange(classes), 2)
    labels = np.concatenate(
        [np.arange(count) % len(half) + half[0] for count, half in zip((training, test), halves, strict=True)]
    )
    for label in range(classes):
        (root / "images" / f"{label + 1:03d}.Class").mkdir(parents=True)

    def draw(index: int) -> int:
        content = draw_photograph(index, noise)
        return (root / "images" / f"{labels[index] + 1:03d}.Class" / f"{index + 1:05d}.jpg").write_bytes(content)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(draw, range(len(labels)))) / len(labels) / 1000


def draw_photograph(seed: int, noise: np.ndarray) -> bytes:
    """A JPEG of coloured blobs and a random crop of noise.

    Args:
        seed: another one gives another image.
        noise: int16, (2 * HEIGHT, 2 * WIDTH, 3).
    """
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 226, (6, 8, 3), np.uint8))
    pixels = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
    top, left = rng.integers(0, (HEIGHT, WIDTH))
    pixels = np.clip(pixels + noise[top : top + HEIGHT, left : left + WIDTH], 0, 255)
    return simplejpeg.encode_jpeg(pixels.astype(np.uint8), quality=QUALITY)


def train(command: Sequence[str], run: Path, cache: Path, timeout_seconds: float) -> dict[str, Any]:
    """Trains in a process of its own.

    Args:
        command: arguments of Python, without `--run`.
        run: a folder that does not exist yet.
        cache: the folder for compiled programs.
        timeout_seconds: the run is killed if it takes longer.

    Returns:
        Seconds since the command was given for each of MOMENTS, how many images were trained at the last of them, and
        the run's records, as "epochs": before training and after each epoch. All of it can be written as JSON.

    Raises:
        UserError: if the run ends with another status than 0.
    """
    # The environment variable would win over XDG_CACHE_HOME, and JAX would then keep only what compiles for long.
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    filled = cache.exists()
    errors = run.with_name(f"{run.name}.err")
    start = time.perf_counter()
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *command, "--run", str(run)],
            cwd=ROOT,
            env=kept | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        timer = threading.Timer(timeout_seconds, process.kill)
        timer.start()
        try:
            seconds, images = watch(process.stdout or [], start)
        finally:
            timer.cancel()
    if process.returncode:
        print(errors.read_text(), file=sys.stderr)
        last = (errors.read_text().strip().splitlines() or ["nothing on standard error"])[-1]
        raise UserError(f"the run ended with status {process.returncode} (limit: {timeout_seconds:g} s): {last}")
    return {
        "compile_cache": "filled" if filled else "empty",
        "command": list(command),
        "command_seconds": time.perf_counter() - start,
        "seconds_from_command": seconds,
        "first_images": images,
        "epochs": read_records(run),
    }


def watch(lines: Iterator[str] | Sequence[str], start: float) -> tuple[dict[str, float], int]:
    """Reads a run's output until it ends.

    Args:
        lines: of standard output, as they come.
        start: when the command was given, on `time.perf_counter`.

    Returns:
        Seconds from then to the first line of each of MOMENTS, and the images that the last of these had counted.
    """
    seconds: dict[str, float] = {}
    images = 0
    for line in lines:
        for name, pattern in MOMENTS.items():
            if name not in seconds and (match := pattern.match(line)):
                seconds[name] = time.perf_counter() - start
                images = int(match[1]) if match.groups() else images
    return seconds, images


def read_records(run: Path) -> list[Record]:
    """The records of a run: before training and after each epoch."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def different_records(first: Sequence[Record], second: Sequence[Record]) -> list[str]:
    """What differs between the records of two runs, CLOCKS aside: a line for each value."""
    if len(first) != len(second):
        return [f"{len(first)} records and {len(second)}"]
    return [
        f"epoch {one['epoch']} {name}: {one.get(name)} and {other.get(name)}"
        for one, other in zip(first, second, strict=True)
        for name in sorted((one.keys() | other.keys()) - CLOCKS)
        if one.get(name) != other.get(name)
    ]


def read_arrays(run: Path) -> dict[str, np.ndarray]:
    """Every array of the latest checkpoint of a run, network, proxies and optimiser, by its path.

    Raises:
        UserError: if there is not exactly one.
    """
    import orbax.checkpoint as ocp  # takes seconds, and each process of the benchmark imports this module

    logging.set_verbosity(logging.ERROR)  # Orbax warns of metadata that items of a checkpoint do not have
    folders = [path for path in (run / "checkpoints" / "latest").absolute().glob("*") if path.name.isdigit()]
    if len(folders) != 1:
        raise UserError(f"{run} has {len(folders)} latest checkpoints, not 1")
    arrays = {}
    with ocp.PyTreeCheckpointer() as checkpointer:
        for item in ("network", "training"):
            tree = checkpointer.metadata(folders[0] / item).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(folders[0] / item, ocp.args.PyTreeRestore(restore_args=as_numpy))
            for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
                arrays[item + jax.tree_util.keystr(path)] = leaf
    return arrays


def different_arrays(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the arrays that do not have the same bits in both, or are missing in one."""

    def bits(array: np.ndarray | None) -> Any:
        return array if array is None else (array.dtype, array.shape, array.tobytes())

    return [name for name in sorted(first.keys() | second.keys()) if bits(first.get(name)) != bits(second.get(name))]


def compare_checkpoints(first: Path, second: Path) -> tuple[int, list[str]]:
    """How many arrays the latest checkpoint of the first run has, and which of them differ in the second."""
    arrays = read_arrays(first)
    return len(arrays), different_arrays(arrays, read_arrays(second))

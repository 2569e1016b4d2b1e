"""Training runs for `benchmarks.gpu`: draws synthetic images, trains on them, and compares two runs bit by bit."""

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
NOISE = 5.0  # standard deviation, in levels of 255; files then have 50 to 100 kB
QUALITY = 90  # of the JPEGs
MOMENTS = {  # lines of a run's output that mark its progress
    "compiled": re.compile(r"compiled in "),
    "first_evaluation": re.compile(r"epoch -1 "),
    "first_images": re.compile(r"epoch 0  (\d+)/"),  # the run waits for the loss of a step before it prints this
}
# Fields of records that depend on time, so they differ between two executions of the same run.
TIME_FIELDS = {"train_seconds", "images_per_second", "data_wait_share", "evaluation_seconds"}


def draw_cub(root: Path, *, training: int, test: int, classes: int) -> float:
    """Draws JPEGs, all different, in CUB's folder layout. Uses as many threads as there are cores.

    The images do not depend on their classes, so a network cannot learn anything from them.

    Args:
        root: an empty folder.
        training: number of images of the first half of the classes.
        test: number of images of the second half.
        classes: number of classes, even.

    Returns:
        Mean size of a file in kB.
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
    """Draws coloured blobs plus a random crop of noise, and returns them as a JPEG.

    Args:
        seed: each seed gives another image.
        noise: int16 of shape (2 * HEIGHT, 2 * WIDTH, 3).
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
        run: the folder of the run, which must not exist yet.
        cache: XDG_CACHE_HOME, with the compilation cache.
        timeout_seconds: the run is killed if it takes longer.

    Returns:
        A JSON-serialisable dict. "seconds_from_command" has, for each of MOMENTS, the seconds since the start of the
        command; "first_images" the number of images trained at the last of them; "epochs" the run's records, before
        training and after each epoch.

    Raises:
        UserError: the run exits with a status other than 0.
    """
    # JAX_COMPILATION_CACHE_DIR would take precedence over XDG_CACHE_HOME. JAX would then cache only slow compilations.
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
        raise UserError(f"the run exited with status {process.returncode} (limit: {timeout_seconds:g} s): {last}")
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
        lines: of standard output, as they arrive.
        start: time of the command's start, by `time.perf_counter`.

    Returns:
        Seconds from the start to the first line of each of MOMENTS, and the number of images in the last of these
        lines.
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
    """Reads the records of a run: before training and after each epoch."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def different_records(first: Sequence[Record], second: Sequence[Record]) -> list[str]:
    """Lists the differences between the records of two runs, one line per value. TIME_FIELDS are ignored."""
    if len(first) != len(second):
        return [f"{len(first)} records and {len(second)}"]
    return [
        f"epoch {one['epoch']} {name}: {one.get(name)} and {other.get(name)}"
        for one, other in zip(first, second, strict=True)
        for name in sorted((one.keys() | other.keys()) - TIME_FIELDS)
        if one.get(name) != other.get(name)
    ]


def read_arrays(run: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a run's latest checkpoint, by path: network, proxies and optimiser.

    Raises:
        UserError: the run does not have exactly one latest checkpoint.
    """
    import orbax.checkpoint as ocp  # the import takes seconds, and each process of the benchmark imports this module

    logging.set_verbosity(logging.ERROR)  # Orbax warns if items of a checkpoint have no metadata
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
    """Returns the names of the arrays whose bits differ, or that one side does not have."""

    def bits(array: np.ndarray | None) -> Any:
        return array if array is None else (array.dtype, array.shape, array.tobytes())

    return [name for name in sorted(first.keys() | second.keys()) if bits(first.get(name)) != bits(second.get(name))]


def compare_checkpoints(first: Path, second: Path) -> tuple[int, list[str]]:
    """Compares the latest checkpoints of two runs. Returns the number of arrays and the names of those that differ."""
    arrays = read_arrays(first)
    return len(arrays), different_arrays(arrays, read_arrays(second))

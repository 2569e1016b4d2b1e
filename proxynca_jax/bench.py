"""Measures how fast this machine trains and embeds, at the reference's image size and with the real input pipeline.

    python -m proxynca_jax.bench [--steps ...] [--placements ...] [--dtypes ...] [--batch_size 32]

It needs no data: the images are synthetic JPEG files of 500 × 375 pixels in memory, so no disk is measured. Each row
runs in a process of its own. "first s" is the first step with its compilation, which never comes from a cache. Then
follow steps that are not counted, and those that are, back to back as in training.

- "step ms" is the mean of the counted steps, waits for images included. "data wait" is the share of the time in which
  the device had nothing to do but wait for images.
- "peak MB" is the device's peak. If a device does not report it, it is the peak of the process, compiler included,
  minus what the process had with the libraries loaded.
- "MFU" is the model FLOP of a step (`forward_flops` in models/network.py) divided by the FLOP that the device can
  compute in that time at its peak.

For a GPU the command also estimates seconds per epoch of CUB, Cars and SOP. The last line is all of it as JSON.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import operator
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from proxynca_jax import steps
from proxynca_jax.config import COMPUTE_DTYPES, PAIR, PLACEMENTS, DataConfig, ModelConfig, TrainConfig
from proxynca_jax.data.datasets import DATASETS
from proxynca_jax.data.pipeline import crop_batches, evaluation_batches, prefetch_to_device, training_batches
from proxynca_jax.data.resident import crops, upload
from proxynca_jax.data.split import Split
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.peak_flops import peak_flops
from proxynca_jax.machine.precision import available
from proxynca_jax.machine.progress import Stalls
from proxynca_jax.machine.xla_messages import hide_xla_warnings
from proxynca_jax.models.network import init_network
from proxynca_jax.optim import make_optimizer
from proxynca_jax.report.speed_table import STEPS, Measurement, describe_device, in_own_process, peak_mb, print_table
from proxynca_jax.sharding import Layout

CLASSES = 100  # CUB's
PHOTOGRAPHS = 64  # different ones, used again and again
REFERENCE_SECONDS = {"cub": 36, "cars": 35, "sop": 194}  # of training, an epoch, as the reference logged on a Titan X


class Variant(NamedTuple):
    """What one row measures."""

    step: str  # one of STEPS
    placement: str  # one of PLACEMENTS; images to embed always come from the host
    dtype: str  # one of COMPUTE_DTYPES
    batch_size: int


class Counts(NamedTuple):
    """How many images a step takes, unless the user says it, and how many steps follow the first."""

    batch_size: int
    uncounted: int
    counted: int


CPU_COUNTS = Counts(batch_size=8, uncounted=1, counted=3)  # with 32, a step takes seconds
COUNTS = Counts(batch_size=32, uncounted=20, counted=200)


def photographs(images: int) -> Split:
    """JPEG files with detail at every scale, about 100 kB each, of `CLASSES` classes."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PHOTOGRAPHS):
        pixels = np.zeros((375, 500, 3), np.float32)
        for columns, contrast in ((4, 90), (16, 45), (64, 25), (500, 12)):
            noise = rng.uniform(0, 255, (columns * 3 // 4, columns, 3)).astype(np.uint8)
            layer = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            pixels += (np.asarray(layer, np.float32) - 128) * (contrast / 128)
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return Split(
        images=[files[row % PHOTOGRAPHS] for row in range(images)],
        names=[f"photograph {row % PHOTOGRAPHS}" for row in range(images)],
        labels=np.arange(images, dtype=np.int32) % CLASSES,
        class_names=tuple(f"class {label}" for label in range(CLASSES)),
    )


def measure(variant: Variant, peak: float) -> Measurement:
    """Measures one row in this process.

    Args:
        variant: what to measure.
        peak: FLOP/s that the device can reach.
    """
    keep_freed_memory()
    hide_xla_warnings()
    jax.config.update("jax_enable_compilation_cache", False)
    before_mb = peak_mb()
    counts = CPU_COUNTS if jax.default_backend() == "cpu" else COUNTS
    data, model = DataConfig(placement=variant.placement), ModelConfig(compute_dtype=variant.dtype)
    config = TrainConfig(data=data, model=model)
    # Enough for the pipeline to be still at work when the last counted step ends.
    split = photographs((1 + counts.uncounted + counts.counted + 8) * variant.batch_size)
    compute, batches = {"train": _training, "embed": _embedding}[variant.step](config, split, variant)
    with contextlib.closing(batches):
        first_step_seconds, step_seconds, data_wait_share = _time(compute, batches, counts)
    return Measurement(
        step=variant.step,
        variant=f"{variant.placement} {variant.dtype}",
        batch_size=variant.batch_size,
        step_seconds=step_seconds,
        first_step_seconds=first_step_seconds,
        peak_mb=peak_mb() - before_mb,
        peak_flops=peak,
        data_wait_share=data_wait_share,
    )


Batches = Generator[dict[str, jax.Array], None, None]
Compute = Callable[[dict[str, jax.Array]], jax.Array]


def _training(config: TrainConfig, split: Split, variant: Variant) -> tuple[Compute, Batches]:
    optimizer = make_optimizer(config.optim, steps_per_epoch=1000)
    layout = Layout()
    layout.check_batch_size(variant.batch_size)
    graph, state = steps.init_state(config.model, optimizer, classes=CLASSES, seed=0, layout=layout)
    order: dict[str, Any] = {"batch_size": variant.batch_size, "seed": 0, "epoch": 0}
    if variant.placement == "device":
        resident = upload(split, config.data, layout)
        places, images_of = {"pixels": resident.pixels}, functools.partial(crops, size=config.data.image_size)
        batches = crop_batches(split, resident.sizes, config.data, **order)
    else:
        places, images_of = {}, operator.itemgetter("image")
        batches = training_batches(split, config.data, **order)
    train_step = steps.make_train_step(graph, config.loss, optimizer, images_of, layout)

    def compute(batch: dict[str, jax.Array]) -> jax.Array:
        nonlocal state
        state, loss = train_step(state, batch | places)
        return loss

    return compute, prefetch_to_device(batches, sharding=layout.batches)


def _embedding(config: TrainConfig, split: Split, variant: Variant) -> tuple[Compute, Batches]:
    graph, network = init_network(config.model, np.random.default_rng(0))
    layout = Layout()
    embed_step = steps.make_embed_step(graph, layout)
    folded = embed_step.fold(layout.place(network))
    batches = evaluation_batches(split, config.data, batch_size=variant.batch_size)
    on_device = prefetch_to_device(batches, sharding=layout.batches)
    return lambda batch: embed_step.embed(folded, batch["image"]), on_device


def _time(compute: Compute, batches: Batches, counts: Counts) -> tuple[float, float, float]:
    """Seconds of the first step and, on average, of the counted ones, and the share that they waited for images."""
    batch = next(batches)
    start = time.perf_counter()
    result = compute(batch).block_until_ready()
    first_seconds = time.perf_counter() - start
    for batch in itertools.islice(batches, counts.uncounted):
        compute(batch).block_until_ready()
    start = time.perf_counter()
    with Stalls() as stalls:
        for batch in stalls.waiting(itertools.islice(batches, counts.counted)):
            result = compute(batch)
            stalls.computing(result)
        result.block_until_ready()
    seconds = time.perf_counter() - start
    return first_seconds, seconds / counts.counted, stalls.seconds / seconds


def epoch_seconds(row: Measurement) -> dict[str, float]:
    """Estimates the seconds of a training epoch on each data set from a row's step time."""
    counts = {dataset: DATASETS[dataset].published for dataset in REFERENCE_SECONDS}
    steps = {dataset: count.train // row.batch_size for dataset, count in counts.items() if count}
    return {dataset: count * row.step_seconds for dataset, count in steps.items()}


def print_epochs(rows: Sequence[Measurement]) -> None:
    print(f"seconds of training an epoch, from {COUNTS.counted} steps with {CLASSES} classes, not measured on the data")
    print("".join([f"{'':24}", *(f"{dataset:>9}" for dataset in REFERENCE_SECONDS)]))
    print("".join([f"  {'reference, Titan X':22}", *(f"{seconds:9.0f}" for seconds in REFERENCE_SECONDS.values())]))
    for row in rows:
        print("".join([f"  {row.variant:22}", *(f"{seconds:9.1f}" for seconds in epoch_seconds(row).values())]))


def variants(options: argparse.Namespace, batch_size: int) -> list[list[Variant]]:
    """The rows of each step."""
    placements = {"train": options.placements, "embed": ["host"]}
    return [
        [
            Variant(step, placement, dtype, batch_size)
            for dtype, placement in itertools.product(options.dtypes, placements[step])
        ]
        for step in options.steps
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m proxynca_jax.bench",
        description=f"{__doc__}\nOn 2 cores and no GPU the defaults take about three minutes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--dtypes", nargs="+", choices=COMPUTE_DTYPES, help="(default: all that the device has)")
    parser.add_argument("--batch_size", type=integer(PAIR), metavar="B", help="images (default: 8 on a CPU, else 32)")
    options = parser.parse_args()
    platform, device = in_own_process(describe_device)
    precisions = in_own_process(available)
    for dtype in set(options.dtypes or ()) - set(precisions):
        parser.error(f"--dtypes has {dtype}, which {device} does not compute in; it has {', '.join(precisions)}")
    options.dtypes = options.dtypes or precisions
    peaks = {dtype: in_own_process(peak_flops, dtype) for dtype in options.dtypes}
    described = (f"{dtype} {peak / 1e12:.3g} TFLOP/s ({source})" for dtype, (peak, source) in peaks.items())
    print(f"{device}; peak {', '.join(described)}", flush=True)
    rows = []
    for group in variants(options, options.batch_size or (CPU_COUNTS if platform == "cpu" else COUNTS).batch_size):
        found = [in_own_process(measure, variant, peaks[variant.dtype][0]) for variant in group]
        print_table(found, found[0])
        rows += found
    report: dict[str, Any] = {"device": device, "rows": [row.record() for row in rows]}
    trained = [row for row in rows if row.step == "train"]
    if trained and platform == "gpu":
        print_epochs(trained)
        report["epoch_seconds"] = {row.variant: epoch_seconds(row) for row in trained}
    print(json.dumps(report))


if __name__ == "__main__":
    main()

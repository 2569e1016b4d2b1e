"""Benchmarks training and embedding throughput on this machine, at the reference's image size.

    python -m proxynca_jax.bench [--steps ...] [--placements ...] [--dtypes ...] [--batch_size 32]

The benchmark uses the real input pipeline on synthetic images: JPEG files of 500 × 375 pixels in memory. It needs no
files and measures no disk. Each row runs in a process of its own, without the compilation cache. After warm-up steps,
the timed steps run as in training.

    step ms      mean time of a step, including waits for images
    data wait    share of the time in which the device was idle and waited for images
    first s      the first step, including compilation
    peak MB      the device's peak memory. If the device does not report it: the process's peak, minus the memory after
                 loading the libraries; it includes the compiler
    MFU          model FLOP utilisation: the model FLOP of a step (`models.network`) / (peak FLOP/s × step time)

On a GPU it also estimates the seconds per epoch on CUB, Cars and SOP. The last line is the whole report as JSON.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

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
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.peak_flops import peak_flops
from proxynca_jax.machine.precision import available
from proxynca_jax.machine.progress import Stalls
from proxynca_jax.machine.xla_messages import hide_xla_warnings
from proxynca_jax.models.network import forward_flops, init_network
from proxynca_jax.optim import make_optimizer
from proxynca_jax.report.speed_table import STEPS, Measurement, describe_device, in_own_process, peak_mb, print_table
from proxynca_jax.sharding import Layout

CLASSES = 100  # CUB's
PHOTOGRAPHS = 64  # number of different images; they repeat
REFERENCE_SECONDS = {
    "cub": 36,
    "cars": 35,
    "sop": 194,
}  # per training epoch on a Titan X, from its logs


class Variant(NamedTuple):
    """The settings of one row."""

    step: str  # one of STEPS
    placement: str  # of the images, one of PLACEMENTS; always "host" for embedding
    dtype: str  # one of COMPUTE_DTYPES
    batch_size: int


class Counts(NamedTuple):
    """The default batch size, and the numbers of warm-up and timed steps after the first step."""

    batch_size: int
    warm_up: int
    timed: int


CPU_COUNTS = Counts(batch_size=8, warm_up=1, timed=3)  # with a batch of 32, a step takes seconds
COUNTS = Counts(batch_size=32, warm_up=20, timed=200)


def photographs(images: int) -> Split:
    """Generates JPEG files of `CLASSES` classes, about 100 kB each, with detail at every scale."""
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
        variant: the settings of the row.
        peak: peak FLOP/s of the devices.
    """
    keep_freed_memory()
    hide_xla_warnings()
    jax.config.update("jax_enable_compilation_cache", False)
    before_mb = peak_mb()
    counts = CPU_COUNTS if jax.default_backend() == "cpu" else COUNTS
    data, model = DataConfig(placement=variant.placement), ModelConfig(compute_dtype=variant.dtype)
    config = TrainConfig(data=data, model=model)
    # Enough images to keep the pipeline busy until the last timed step ends.
    split = photographs((1 + counts.warm_up + counts.timed + 8) * variant.batch_size)
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
        image_flops=forward_flops(model, data.image_size),
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
    """Returns the seconds of the first step, the mean seconds of the timed steps, and their share of data waits."""
    batch = next(batches)
    start = time.perf_counter()
    result = compute(batch).block_until_ready()
    first_seconds = time.perf_counter() - start
    for batch in itertools.islice(batches, counts.warm_up):
        compute(batch).block_until_ready()
    start = time.perf_counter()
    with Stalls() as stalls:
        for batch in stalls.waiting(itertools.islice(batches, counts.timed)):
            result = compute(batch)
            stalls.computing(result)
        result.block_until_ready()
    seconds = time.perf_counter() - start
    return first_seconds, seconds / counts.timed, stalls.seconds / seconds


def epoch_seconds(row: Measurement) -> dict[str, float]:
    """Estimates the seconds of a training epoch on each data set from a row's step time."""
    counts = {dataset: DATASETS[dataset].published for dataset in REFERENCE_SECONDS}
    steps = {dataset: count.train // row.batch_size for dataset, count in counts.items() if count}
    return {dataset: count * row.step_seconds for dataset, count in steps.items()}


def print_epochs(rows: Sequence[Measurement]) -> None:
    print(f"estimated training seconds per epoch, from {COUNTS.timed} steps on synthetic images of {CLASSES} classes")
    print("".join([f"{'':24}", *(f"{dataset:>9}" for dataset in REFERENCE_SECONDS)]))
    print("".join([f"  {'reference, Titan X':22}", *(f"{seconds:9.0f}" for seconds in REFERENCE_SECONDS.values())]))
    for row in rows:
        print("".join([f"  {row.variant:22}", *(f"{seconds:9.1f}" for seconds in epoch_seconds(row).values())]))


def variants(options: argparse.Namespace, batch_size: int) -> list[list[Variant]]:
    """Returns the rows to measure, a list for each step."""
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
    parser.add_argument("--dtypes", nargs="+", choices=COMPUTE_DTYPES, help="(default: all that the device supports)")
    parser.add_argument("--batch_size", type=integer(PAIR), metavar="B", help="(default: 8 on CPUs, 32 elsewhere)")
    options = parser.parse_args()
    platform, device = in_own_process(describe_device)
    precisions = in_own_process(available)
    for dtype in set(options.dtypes or ()) - set(precisions):
        parser.error(f"--dtypes has {dtype}, which {device} does not support; supported: {', '.join(precisions)}")
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
    with exit_on_user_error():
        main()

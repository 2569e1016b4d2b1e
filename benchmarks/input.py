"""Benchmarks the input pipelines in images/s, ours compared with the reference's, and checks that pixels are equal.

    python -m benchmarks.input [--images 768] [--repeats 5] [--threads 2] [--pipelines reference ours] [--json FILE]

It needs torch and torchvision, in an environment of their own in which this package is installed too. The CPU builds of
torch and PyPI's torchvision are incompatible, so torchvision would break other environments.

    python -m venv input && . input/bin/activate
    pip install . torch==2.13.0 && pip install --no-deps torchvision==0.28.0

The images are synthetic: crops of scikit-learn's two photographs with noise, as JPEGs of 500 to 700 pixels per side and
about 100 kB. The pipelines take turns, each in a process of its own. After a few warm-up batches, each pipeline reads
all images four times. The time runs from the start of the first epoch to the last batch. For the reference the four
passes are one epoch. Starting its worker processes takes 0.1 s, which would count for more here than in an epoch of
CUB. Images/s per core are images per second of processor time, summed over all processes and threads.

    reference       the reference's pipeline: torchvision transforms in a torch DataLoader
    ours            our pipeline, from JPEG files
    cache           reads decoded images from `data.cache`
    shrunk_cache    the same, with images that `data.max_side` has shrunk to 400 pixels
    device          the host's part if the images are in device memory

The one-time work of a run, writing the cache and reading the sizes of images, is not timed.

Measured with 2 threads or processes each on 2 cores of an AMD EPYC, medians of 3 over 768 images (torchvision 0.28.0,
torch 2.13.0, Pillow 13.0.0, simplejpeg 1.9.0, grain 0.2.18):

                    images/s per core    ratio
    reference                     230     1.00
    ours                          375     1.63
    cache                         591     2.57
    shrunk_cache                  990     4.30
    device                      9,063     39.4

The pixels of `ours` and `cache` equal the reference's. Those of `device` differ by at most one level. Shrinking changes
pixels. Of the 2.7 ms per image in `ours`, libjpeg-turbo takes 1.27 ms to decode it, and Pillow takes 0.13 ms to copy
the crop and 1.04 ms to resize it. With these three alone, the throughput would be 1.8 times the reference's.
"""

import argparse
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images

from benchmarks import input_reference
from proxynca_jax.config import COUNT, DataConfig
from proxynca_jax.data.cache import cached
from proxynca_jax.data.image_files import FileImages
from proxynca_jax.data.pipeline import Batch, crop_batches, evaluation_batches, training_batches
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import crop_and_resize, decode, draw_crop, image_size
from proxynca_jax.machine.arguments import integer

BATCH = 32
PASSES = 4  # over the images per measurement
DRAWN_SIDES = (500, 701)  # range of an image's side in pixels, half-open
MAX_SIDE = 400  # longer side of the shrunk images in pixels
WARM_UP_IMAGES = 4 * BATCH


def draw(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    photographs = [PIL.Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        photograph = photographs[number % 2]
        height, width = rng.integers(*DRAWN_SIDES, 2).tolist()
        part_width = rng.uniform(0.5, 1) * min(photograph.width, photograph.height * width / height)
        part_height = part_width * height / width
        left, top = rng.uniform(0, photograph.width - part_width), rng.uniform(0, photograph.height - part_height)
        box = (left, top, left + part_width, top + part_height)
        enlarged = photograph.resize((width, height), PIL.Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(enlarged, np.float32) + rng.normal(0, 4, (height, width, 1))
        image = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05d}.jpg", quality=(85, 92)[number % 2])


def make_split(paths: list[Path]) -> Split:
    names = [path.name for path in paths]
    return Split(images=FileImages(paths), names=names, labels=np.zeros(len(paths), np.int32), class_names=("drawn",))


def passes(epoch_batches: Callable[..., Iterator[Batch]], *arguments: object) -> Iterator[Batch]:
    epochs = (epoch_batches(*arguments, batch_size=BATCH, seed=0, epoch=epoch) for epoch in range(PASSES))
    return itertools.chain.from_iterable(epochs)


def ours(paths: list[Path], config: DataConfig) -> Iterable[Batch]:
    return passes(training_batches, make_split(paths), config)


def cache(paths: list[Path], config: DataConfig) -> Iterable[Batch]:
    return passes(training_batches, cached(make_split(paths), config, max_side=config.max_side), config)


def shrunk_cache(paths: list[Path], config: DataConfig) -> Iterable[Batch]:
    return cache(paths, dataclasses.replace(config, max_side=MAX_SIDE))


def device(paths: list[Path], config: DataConfig) -> Iterable[Batch]:
    sizes = np.array([image_size(path.read_bytes(), path.name) for path in paths])
    return passes(crop_batches, make_split(paths), sizes, config)


def reference(paths: list[Path], config: DataConfig) -> Iterable[object]:
    return input_reference.training_loader(paths * PASSES, batch_size=BATCH, workers=config.threads)


PIPELINES: dict[str, Callable[[list[Path], DataConfig], Iterable[object]]] = {
    "reference": reference,
    "ours": ours,
    "cache": cache,
    "shrunk_cache": shrunk_cache,
    "device": device,
}


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(name: str, paths: list[Path], config: DataConfig) -> dict[str, float]:
    """Measures images per second of wall time and per second of processor time."""
    for _ in PIPELINES[name](paths[:WARM_UP_IMAGES], config):
        pass
    opened = PIPELINES[name](paths, config)  # does the one-time work: writes the cache, or reads the images' sizes
    start, processor_start, batches = time.perf_counter(), processor_seconds(), 0
    for _ in opened:
        batches += 1
    seconds, processor = time.perf_counter() - start, processor_seconds() - processor_start
    return {"per_second": batches * BATCH / seconds, "per_core": batches * BATCH / processor}


def compare_pixels(paths: list[Path], config: DataConfig) -> None:
    """Exits unless ours and the reference's pixels are equal: all images for evaluation, and one training crop each."""
    rng = np.random.default_rng(0)
    batches = evaluation_batches(make_split(paths), config, batch_size=1)
    for path, batch in zip(paths, batches, strict=True):
        image = decode(path.read_bytes(), path.name)
        box, _ = draw_crop(image.shape[0], image.shape[1], config, rng)
        for what, pixels, theirs in (
            ("evaluation", batch["image"][0], input_reference.evaluation_pixels(path)),
            ("a training crop", crop_and_resize(image, box, config.image_size), input_reference.crop(path, box)),
        ):
            if not np.array_equal(pixels, theirs):
                sys.exit(f"{path}: pixels differ for {what}, by up to {np.abs(pixels - theirs.astype(int)).max()}")
    print(f"pixels of {len(paths)} images are equal, for evaluation and for one training crop each")


def in_a_process(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.input", "--folder", str(folder), "--run", name]
    program = subprocess.run([*words, "--threads", str(arguments.threads)], capture_output=True, text=True, check=False)
    if program.returncode:
        sys.exit(f"{name} failed:\n{program.stderr[-2000:]}")
    return json.loads(program.stdout.splitlines()[-1])


def print_table(runs: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'pipeline':>14} {'images/s':>9} {'from':>6} {'to':>6} {'ratio':>6} {'images/s/core':>16} {'ratio':>6}")
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    base = next(iter(medians.values()))
    for name, found in runs.items():
        speeds, median = [run["per_second"] for run in found], medians[name]
        ratios = {key: median[key] / base[key] for key in median}
        print(
            f"{name:>14} {median['per_second']:9.0f} {min(speeds):6.0f} {max(speeds):6.0f} {ratios['per_second']:6.2f} "
            f"{median['per_core']:16.0f} {ratios['per_core']:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=integer(COUNT), default=768)
    parser.add_argument("--repeats", type=integer(COUNT), default=5)
    parser.add_argument(
        "--threads",
        type=integer(COUNT),
        default=os.cpu_count(),
        help="threads of ours, and worker processes of the reference (default: all cores)",
    )
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        config = DataConfig(cache=str(arguments.folder / "cache"), threads=arguments.threads)
        print(json.dumps(measure(arguments.run, sorted(arguments.folder.glob("*.jpg")), config)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, arguments.images)
        compare_pixels(sorted(folder.glob("*.jpg")), DataConfig(threads=arguments.threads))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.pipelines}
        for _ in range(arguments.repeats):
            for pipeline, found in runs.items():
                found.append(in_a_process(pipeline, folder, arguments))
    print_table(runs)
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()

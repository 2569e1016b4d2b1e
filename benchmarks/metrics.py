"""Benchmarks Recall@1, 2, 4 and 8 of one set of embeddings with four libraries, and compares the recalls.

    pip install ".[bench]"
    python -m benchmarks.metrics [--sizes cub cars sop] [--methods ours torch faiss sklearn] [--repeats 3] [--json FILE]

The methods take turns, each run in a process of its own. The embeddings are class centres plus noise, as unit vectors;
one set per size is generated. Loading them is not timed. A warm-up runs first and is not included in the seconds. Our
warm-up is the whole search: it compiles, and its time is printed as "first". The others warm up on a few images. Peak
memory is the process's peak minus its memory after loading the embeddings and the libraries. Ours includes the
compiler.

Medians of 3, measured on 2 cores of an AMD EPYC, otherwise idle (jax 0.10.2, torch 2.13.0, faiss-cpu 1.15.1,
scikit-learn 1.9.1). At the first three sizes all four methods computed the same recalls.

    seconds (peak MB)           ours          torch           faiss        scikit-learn
    cub           5,924 × 64    0.043 (136)   0.297 (151)     0.053 (21)   0.089 (16)
    cars          8,131 × 64    0.061 (131)   0.352 (271)     0.099 (21)   0.159 (16)
    sop          60,502 × 64    2.42  (186)   32.5  (14,036)  5.90  (25)   9.64  (24)
    half_sop     30,251 × 64    0.54  (154)
    twice_sop   121,004 × 64    8.40  (232)
    100k       100,000 × 512    33.0  (637)                   63.3  (2)    one run; recalls equal except for one image
    300k       300,000 × 512    492   (1,200)                              one call, while other jobs were running

Compilation takes another 0.4 to 0.5 s. At SOP size, ours was 2.1 to 2.4 times as fast as faiss in three executions.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.metrics_methods import KS, PACKAGES
from proxynca_jax.config import COUNT
from proxynca_jax.machine.arguments import integer


class Size(NamedTuple):
    images: int
    classes: int
    dim: int
    noise: float  # standard deviation per coordinate; that of the class centres is 1. Makes Recall@1 about 70 %


SIZES = {
    "cub": Size(5_924, 100, 64, 1.72),
    "cars": Size(8_131, 98, 64, 1.75),
    "sop": Size(60_502, 11_316, 64, 1.1),
    "half_sop": Size(30_251, 5_658, 64, 1.1),
    "twice_sop": Size(121_004, 22_632, 64, 1.1),
    "100k": Size(100_000, 18_000, 512, 2.2),
    "300k": Size(300_000, 54_000, 512, 2.2),
}


def make_embeddings(size: Size, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size.images) % size.classes)
    embeddings = rng.standard_normal((size.images, size.dim), np.float32) * np.float32(size.noise)
    embeddings += rng.standard_normal((size.classes, size.dim), np.float32)[labels]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels


def measure(method: str, folder: str) -> dict:
    """Runs a method in a process of its own. Returns the dict that `metrics_methods.main` prints."""
    words = [sys.executable, "-m", "benchmarks.metrics_methods", method, folder]
    program = subprocess.run(words, capture_output=True, text=True, check=False)
    if program.returncode:
        reason = (program.stderr.strip().splitlines() or [f"status {program.returncode}"])[-1]
        sys.exit(f"{method} failed: {reason}")
    return json.loads(program.stdout)


def free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def compare(name: str, methods: list[str], repeats: int) -> dict[str, dict]:
    """Measures each method. Returns the medians over the repeats of seconds and peak memory, and the recalls."""
    with tempfile.TemporaryDirectory() as folder:
        embeddings, labels = make_embeddings(SIZES[name])
        np.save(Path(folder, "embeddings.npy"), embeddings)
        np.save(Path(folder, "labels.npy"), labels)
        runs = [{method: measure(method, folder) for method in methods} for _ in range(repeats)]
    result = {}
    for method in methods:
        numbers = ("seconds", "first_seconds", "peak_mb")
        medians = {number: statistics.median(run[method][number] for run in runs) for number in numbers}
        result[method] = {**medians, "recalls": runs[0][method]["recalls"], "version": runs[0][method]["version"]}
    return result


def print_table(name: str, result: dict[str, dict]) -> None:
    reference = next(iter(result.values()))
    print(f"{name}: {SIZES[name].images:,} images, {SIZES[name].dim} dimensions")
    recalls_title = "  ".join(f"R@{k:<5}" for k in KS)
    print(f"  {'method':24} {'seconds':>9} {'ratio':>7} {'first':>9} {'peak MB':>9}  {recalls_title}")
    for method, row in result.items():
        recalls = "  ".join(f"{100 * recall:.3f} " for recall in row["recalls"])
        same = "" if row["recalls"] == reference["recalls"] else "  recalls differ"
        label, ratio = f"{method} {row['version']}", row["seconds"] / reference["seconds"]
        numbers = f"{row['seconds']:9.3f} {ratio:7.1f} {row['first_seconds']:9.3f} {row['peak_mb']:9.0f}"
        print(f"  {label:24} {numbers}  {recalls}{same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["cub", "cars", "sop"])
    parser.add_argument("--methods", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--repeats", type=integer(COUNT), default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    arguments = parser.parse_args()
    methods = []
    for method in arguments.methods:
        if importlib.util.find_spec(PACKAGES[method]):
            methods.append(method)
        else:
            print(f"{method} skipped: {PACKAGES[method]} is not installed")
    results = {}
    for name in arguments.sizes:
        fitting = methods
        if "torch" in methods and SIZES[name].images ** 2 * 4 > free_bytes():
            print(f"torch skipped at {name}: its distance matrix does not fit into memory")
            fitting = [method for method in methods if method != "torch"]
        results[name] = compare(name, fitting, arguments.repeats)
        print_table(name, results[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Runs all GPU checks and benchmarks with one command.

    python -m benchmarks.gpu [--json gpu.json]

It needs a GPU that JAX and PyTorch find, the extras `cuda` and `test`, and about 2 GB in the folder for temporary
files. On one H200 with 16 cores its parts took nine minutes: parity 100 s, steps 297 s, epoch 82 s, repeat 39 s. The
parts, in this order:

    versions    the card, its driver, and the versions of the libraries
    parity      distances from the reference's numbers in each precision (tests/test_golden.py)
    steps       speed of training and embedding steps compared with PyTorch's, in the table of `benchmarks.torch_step`
    epoch       a training run on as many synthetic JPEGs as CUB has: time to the first images, and time per epoch
    repeat      the same run again: start-up with the compilation cache, and whether scores and weights are equal
    summary     the main figures of all parts in one table

If a part fails, the benchmark prints the reason and continues with the next part. After each part it writes all figures
so far to a JSON file. The exit status is 1 if a part failed.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import proxynca_jax
from benchmarks import gpu_run, torch_step
from benchmarks.workers import Work, describe
from proxynca_jax.config import DataConfig, ModelConfig
from proxynca_jax.data.datasets import cub
from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.report.speed_table import Failure, Measurement, describe_device, in_own_process, print_table

OURS = ("ours", "ours_tensorfloat32", "ours_bfloat16")
PYTORCH = ("eager", "compile_graphs", "compile_graphs_amp")
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "orbax-checkpoint", "torch", "numpy")
NOT_INSTALLED = "not installed"

Figures = dict[str, Any]  # results of a part, for JSON; "summary" has its rows in the last table


class Comparison(NamedTuple):
    """Variants to compare in one table."""

    step: str  # one of speed_table.STEPS
    batch_size: int
    variants: tuple[str, ...]  # keys of torch_step.VARIANTS


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all parts."""

    golden_options: tuple[str, ...] = ("-m", "gpu")  # pytest options that select the golden tests
    comparisons: tuple[Comparison, ...] = (
        Comparison("train", 32, OURS + PYTORCH),
        Comparison("embed", 128, ("ours_tensorfloat32", "ours_bfloat16", *PYTORCH[1:])),
        Comparison("embed", 512, ("ours_bfloat16",)),
    )
    repeats: int = 3  # turns of each variant
    training_images: int = cub.COUNTS.train
    test_images: int = cub.COUNTS.queries
    classes: int = 200
    train_program: tuple[str, ...] = ("-m", "proxynca_jax.train")
    train_options: tuple[str, ...] = (
        "--config.data.placement=device",
        "--config.model.compute_dtype=bfloat16",
        "--config.optim.epochs=3",
    )
    timeout_seconds: int = 300  # for the golden tests, a variant's first step, and a run


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def nvidia_smi() -> str:
    """Returns name, memory and driver of each card, or why nvidia-smi failed."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        return "no nvidia-smi"
    except subprocess.SubprocessError as error:
        return describe(error)
    return "; ".join(done.stdout.split("\n")).strip("; ")


def torch_card() -> str:
    """Returns name and memory of the card that PyTorch uses."""
    import torch

    if not torch.cuda.is_available():
        return "none"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"


def versions(settings: Settings, work: Path, figures: Figures) -> None:
    """Machine and library versions."""
    figures["nvidia-smi"] = nvidia_smi()
    figures["JAX's device"] = in_own_process(describe_device)[1]
    figures["Python"], figures["CPU cores"] = platform.python_version(), os.cpu_count()
    figures["proxynca_jax"] = proxynca_jax.__version__
    figures |= {package: version(package) for package in PACKAGES}
    figures["PyTorch's card"] = NOT_INSTALLED if figures["torch"] == NOT_INSTALLED else in_own_process(torch_card)
    for name, value in figures.items():
        print(f"  {name:22} {value}")
    figures["summary"] = {"card": figures["nvidia-smi"], "JAX's device": figures["JAX's device"]}


def parity(settings: Settings, work: Path, figures: Figures) -> None:
    """Golden tests in each precision, and the worst distance of each kind.

    Raises:
        UserError: a test failed, or none ran.
    """
    report = work / "golden.xml"
    # pytest's default JUnit family does not include the properties of tests.
    words = ["-m", "pytest", "tests/test_golden.py", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider", *settings.golden_options],
        cwd=gpu_run.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=settings.timeout_seconds,
        check=False,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    if not report.exists():
        raise UserError(f"pytest exited with status {done.returncode} and no report; standard error has its output")
    figures |= read_golden_report(report)
    summary = figures["summary"] = {"golden tests": "{tests}, {failures} failed, {errors} errors".format(**figures)}
    print(f"  {'precision':15} {'distance from the reference':46} {'worst':>8} {'bound':>8}")
    for row in figures["distances"]:
        far = "" if row["distance"] < row["bound"] else "  beyond its bound"
        print(f"  {row['precision']:15} {row['kind']:46} {row['distance']:8.1e} {row['bound']:8.1e}  {row['of']}{far}")
        if "loss" in row["kind"]:
            summary[f"{row['precision']}: {row['kind']}"] = f"{row['distance']:.1e} (bound {row['bound']:g})"
    print("  {tests} tests, {failures} failures, {errors} errors, {skipped} skipped".format(**figures))
    if done.returncode:
        failed = ", ".join(figures["failed"]) or "none"
        raise UserError(f"pytest exited with status {done.returncode}; failed: {failed}")


def read_golden_report(path: Path) -> Figures:
    """Reads test counts, the names of failed tests, and the distances that `worst_of_each_kind` selects."""
    suite = next(xml.etree.ElementTree.parse(path).iter("testsuite"))
    figures: Figures = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    figures["failed"] = [
        case.get("name")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    properties = (tag for tag in suite.iter("property") if tag.get("name") == "distance")
    figures["distances"] = worst_of_each_kind(json.loads(tag.get("value", "")) for tag in properties)
    return figures


def worst_of_each_kind(distances: Iterable[Figures]) -> list[Figures]:
    """Selects, for each precision and kind, the row with the largest distance relative to its bound.

    Args:
        distances: rows with "precision", "kind", "of", "distance" and "bound", as `check` in tests/test_golden.py
            records them.
    """

    def relative(row: Figures) -> float:
        found = row["distance"] / row["bound"]
        return math.inf if math.isnan(found) else found

    worst: dict[tuple[str, str], Figures] = {}
    for row in distances:
        key = row["precision"], row["kind"]
        if key not in worst or relative(row) > relative(worst[key]):
            worst[key] = row
    return list(worst.values())


def steps(settings: Settings, work: Path, figures: Figures) -> None:
    """Speed of training and embedding steps, ours compared with PyTorch's.

    Raises:
        UserError: a variant failed.
    """
    figures["rows"], figures["compared"], figures["summary"] = [], [], {}
    failures: list[str] = []
    for step, batch_size, variants in settings.comparisons:
        work = Work(step, batch_size, ModelConfig(), DataConfig().image_size)
        found = torch_step.compare(list(variants), work, settings.repeats, settings.timeout_seconds)
        measured = {row.variant: row for row in found if isinstance(row, Measurement)}
        print_table(found, measured.get(PYTORCH[0]) or next(iter(measured.values()), None))
        sys.stdout.flush()
        figures["rows"] += [row.record() for row in found]
        figures["compared"] += compare_with_pytorch(list(measured.values()))
        failures += [f"{step} {row.variant}, batch {batch_size}" for row in found if isinstance(row, Failure)]
    for step in ("train", "embed"):
        if best := best_of_ours(step, figures["rows"]):
            speed = f"{best['images_per_second']:,.0f} images/s ({best['variant']}, batch {best['batch_size']})"
            figures["summary"][f"{step}: our best"] = speed
    for row in figures["compared"]:
        ratio = f"{row['ratio']:.2f} × {row['pytorch']}, PyTorch's best {row['kind']}"
        figures["summary"]["{step}, batch {batch_size}: {ours}".format(**row)] = ratio
    print_summary(figures["summary"])
    if failures:
        raise UserError(f"variants that failed: {', '.join(failures)}")


def compare_with_pytorch(rows: Sequence[Measurement]) -> list[Figures]:
    """Computes the ratios of our speed to PyTorch's best, from rows with the same step and batch size.

    Our bfloat16 is compared with all PyTorch variants, our TF32 with the PyTorch variants that do not use bfloat16.
    """
    found = []
    for ours, kind, dtypes in (
        ("ours_bfloat16", "of all", {"tensorfloat32", "bfloat16"}),
        ("ours_tensorfloat32", "of float32", {"tensorfloat32"}),
    ):
        own = next((row for row in rows if row.variant == ours), None)
        theirs = [row for row in rows if row.variant in PYTORCH and torch_step.VARIANTS[row.variant].dtype in dtypes]
        if own and theirs:
            best = max(theirs, key=Measurement.images_per_second)
            ratio = own.images_per_second() / best.images_per_second()
            names = {"step": own.step, "batch_size": own.batch_size, "ours": ours, "pytorch": best.variant}
            found.append(names | {"kind": kind, "ratio": ratio})
    return found


def best_of_ours(step: str, rows: Sequence[Figures]) -> Figures | None:
    """Returns the fastest of our rows of a step, with any batch size."""
    ours = [row for row in rows if row["step"] == step and row["variant"] in OURS and "error" not in row]
    return max(ours, key=lambda row: row["images_per_second"], default=None)


def train(settings: Settings, work: Path, run: str, figures: Figures) -> None:
    """Trains on the synthetic images and prints the times."""
    command = [*settings.train_program, "--config", "configs/cub.py", f"--config.data.root={work / 'cub'}"]
    command += settings.train_options
    figures |= gpu_run.train(command, work / run, work / "cache", settings.timeout_seconds)
    print(f"  compilation cache: {figures['compile_cache']}; the whole command took {figures['command_seconds']:.1f} s")
    moments = ", ".join(f"{name} {seconds:.1f}" for name, seconds in figures["seconds_from_command"].items())
    print(f"  seconds from the command: {moments} ({figures['first_images']} images)")
    for line in (work / run / "log.txt").read_text().splitlines():
        if line.startswith("epoch "):
            print(f"  {line}")
    cache, images = figures["compile_cache"], figures["first_images"]
    seconds = f"{figures['seconds_from_command']['first_images']:.1f} s"
    figures["summary"] = {f"from command to {images} trained images, {cache} cache": seconds}


def epoch(settings: Settings, work: Path, figures: Figures) -> None:
    """Training run on as many synthetic images as CUB has."""
    start = time.perf_counter()
    counts = {"training": settings.training_images, "test": settings.test_images, "classes": settings.classes}
    figures["images"] = counts | {"kb": gpu_run.draw_cub(work / "cub", **counts)}
    figures["draw_seconds"] = time.perf_counter() - start
    drawn = "{training:,} + {test:,} JPEGs of {classes} classes, {kb:.0f} kB each".format(**figures["images"])
    print(f"  wrote {drawn}, in {figures['draw_seconds']:.1f} s", flush=True)
    train(settings, work, "first", figures)
    before, *epochs = figures["epochs"]
    figures["summary"] |= {
        f"training an epoch of {settings.training_images:,} images": joined(epochs, "train_seconds", ".2f", " s"),
        "images/s of training": joined(epochs, "images_per_second", ",.0f"),
        "data wait": joined(epochs, "data_wait_share", ".1%"),
        f"first evaluation, of {settings.test_images:,} images": joined([before], "evaluation_seconds", ".2f", " s"),
        "later evaluations": joined(epochs, "evaluation_seconds", ".2f", " s"),
    }


def joined(records: Iterable[Figures], name: str, form: str, unit: str = "") -> str:
    """Formats one field of all records as text."""
    return ", ".join(f"{record[name]:{form}}{unit}" for record in records)


def repeat(settings: Settings, work: Path, figures: Figures) -> None:
    """The same training run again, and whether its results are equal.

    Raises:
        UserError: there is no first run.
    """
    first, second = work / "first", work / "second"
    if not (first / "metrics.jsonl").exists():
        raise UserError("there is no first run to compare with")
    train(settings, work, second.name, figures)
    records = gpu_run.different_records(gpu_run.read_records(first), gpu_run.read_records(second))
    figures["different_records"] = records
    figures["arrays"], arrays = in_own_process(gpu_run.compare_checkpoints, first, second)
    figures["different_arrays"] = arrays
    differ = f"{len(arrays)} differ: {', '.join(arrays[:5])}" if arrays else "equal to the last bit"
    compared = {
        "losses and scores of two runs": "; ".join(records) or "equal",
        f"{figures['arrays']} arrays of their last states": differ,
    }
    print_summary(compared)
    figures["summary"] |= compared


Part = Callable[[Settings, Path, Figures], None]  # fills in the figures; if it raises, the figures so far are kept
PARTS: dict[str, Part] = {part.__name__: part for part in (versions, parity, steps, epoch, repeat)}


def measure(settings: Settings, path: Path) -> bool:
    """Runs all parts and writes the JSON file after each.

    Args:
        settings: of all parts.
        path: of the JSON file. "parts" has the figures and the seconds of each part, and "error" if the part failed.

    Returns:
        Whether all parts succeeded.
    """
    report: Figures = {"settings": dataclasses.asdict(settings), "parts": {}}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="proxynca_jax") as work:
        for name, part in PARTS.items():
            print(f"{name}: {(part.__doc__ or '').splitlines()[0]}", flush=True)
            figures: Figures = {}
            began = time.perf_counter()
            try:
                part(settings, Path(work), figures)
            except Exception as error:  # the other parts must still run
                if not isinstance(error, UserError):
                    traceback.print_exc()
                figures["error"] = describe(error)
                print(f"  failed: {figures['error']}")
            figures["seconds"] = time.perf_counter() - began
            report["parts"][name] = figures
            report["seconds"] = time.perf_counter() - start
            replace_file(path, (json.dumps(report, indent=1) + "\n").encode())
            print(f"  took {figures['seconds']:.0f} s", flush=True)
    print("summary: the main figures of all parts")
    for name, figures in report["parts"].items():
        print_summary(figures.get("summary", {}))
        if "error" in figures:
            print_summary({f"{name} failed": figures["error"]})
    print(f"{report['seconds']:.0f} s in all; everything is in {path.absolute()}")
    return not any("error" in figures for figures in report["parts"].values())


def print_summary(rows: dict[str, str]) -> None:
    for what, value in rows.items():
        print(f"  {what:58} {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="output file (default: %(default)s)")
    options = parser.parse_args()
    found, device = in_own_process(describe_device)
    with exit_on_user_error():
        if found != "gpu":
            raise UserError(
                f"JAX finds no GPU, only {device}. This benchmark needs a GPU: install with pip install -e '.[cuda]', "
                "and check that nvidia-smi lists the GPU."
            )
        if not measure(Settings(), options.json):
            raise UserError("a part failed; the reasons are above")


if __name__ == "__main__":
    main()

"""The speed table of the benchmarks: its rows, how it is printed, and how memory is measured."""

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import psutil

from proxynca_jax.machine.devices import describe_devices
from proxynca_jax.machine.output import print_line
from proxynca_jax.models.network import TRAINING_PASSES
from proxynca_jax.onednn.way import way

STEPS = ("train", "embed")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measured row of the table."""

    step: str  # one of STEPS
    variant: str
    batch_size: int
    step_seconds: float
    first_step_seconds: float
    peak_mb: float
    peak_flops: float | None  # FLOP/s; None: unknown
    image_flops: int  # model FLOP of embedding one image, from models.network.forward_flops
    data_wait_share: float | None = None  # 0 to 1; None: the images are already on the device
    # Per step, on average. None: there is no GPU, or no profile.
    device_busy_seconds: float | None = None
    kernels: float | None = None  # copies and memsets included
    launches: float | None = None  # by the host; a CUDA graph is one launch
    graph_changes: float | None = None  # by the host; 0 while arrays have the same addresses in every step

    def images_per_second(self) -> float:
        return self.batch_size / self.step_seconds

    def utilisation(self) -> float | None:
        """Returns the model FLOP utilisation (MFU), from 0 to 1, or None if the device's peak is unknown."""
        if self.peak_flops is None:
            return None
        passes = TRAINING_PASSES if self.step == "train" else 1
        return passes * self.image_flops * self.images_per_second() / self.peak_flops

    def record(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        derived = {"images_per_second": self.images_per_second(), "model_flops_utilisation": self.utilisation()}
        return dataclasses.asdict(self) | derived


@dataclasses.dataclass(frozen=True)
class Failure:
    """A row of the table whose measurement failed."""

    step: str  # one of STEPS
    variant: str
    batch_size: int
    error: str  # one line

    def record(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return dataclasses.asdict(self)


COLUMNS = {  # title: width and format of the values
    "images/s": (9, ".1f"),
    "ratio": (6, ".2f"),
    "step ms": (9, ".1f"),
    "busy ms": (8, ".1f"),
    "kernels": (7, ".0f"),
    "launches": (8, ".0f"),
    "changes": (7, ".1f"),
    "data wait": (9, ".1%"),
    "first s": (8, ".1f"),
    "peak MB": (8, ",.0f"),
    "MFU": (6, ".1%"),
}


def print_table(rows: Sequence[Measurement | Failure], baseline: Measurement | None) -> None:
    """Prints the rows of one step. The column "ratio" is a row's speed divided by the baseline's.

    Args:
        rows: at least one. A value of None leaves its cell empty.
        baseline: the row to compare with. None leaves the ratios empty; required if all rows are failures.
    """
    titles = (f"{title:>{width}}" for title, (width, _) in COLUMNS.items())
    print(f"{rows[0].step + f', batch {rows[0].batch_size}':24}", *titles)
    for row in rows:
        if isinstance(row, Failure):
            print_line(f"  {row.variant:22} failed: {row.error}")
            continue
        values = (
            row.images_per_second(),
            baseline and row.images_per_second() / baseline.images_per_second(),
            1000 * row.step_seconds,
            row.device_busy_seconds and 1000 * row.device_busy_seconds,
            row.kernels,
            row.launches,
            row.graph_changes,
            row.data_wait_share,
            row.first_step_seconds,
            row.peak_mb,
            row.utilisation(),
        )
        cells = (
            " " * width if value is None else f"{value:{width}{form}}"
            for value, (width, form) in zip(values, COLUMNS.values(), strict=True)
        )
        print(f"  {row.variant:22}", *cells)


def describe_device() -> tuple[str, str]:
    """Returns JAX's platform, and a line that describes devices, cores and JAX's version."""
    versions = f"jax {jax.__version__}, convolutions by {way().name}"
    return jax.default_backend(), f"{describe_devices()}, {os.cpu_count()} cores, {versions}"


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process and returns its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mb() -> float:
    """Returns the peak memory so far, in MB: of JAX's default device if it reports one, otherwise of this process."""
    if statistics := jax.devices()[0].memory_stats():
        return statistics["peak_bytes_in_use"] / 1e6
    return process_peak_mb()


def process_peak_mb() -> float:
    """The peak memory of this process so far, in MB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

"""What a benchmark tells of a step, and in what form."""

import dataclasses
import multiprocessing
import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

from proxynca_jax.config import ModelConfig
from proxynca_jax.model_flops import TRAINING, forward_flops
from proxynca_jax.models.embedder import BN_INCEPTION

STEPS = ("train", "embed")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A row of the table."""

    step: str  # one of STEPS
    variant: str
    batch_size: int
    step_seconds: float
    first_step_seconds: float
    peak_mb: float
    peak_flops: float  # FLOP/s
    data_wait_share: float | None = None  # None: the images lie on the device

    def images_per_second(self) -> float:
        return self.batch_size / self.step_seconds

    def utilisation(self) -> float:
        """Model FLOP over what the device could have done in the time, 0 to 1."""
        passes = TRAINING if self.step == "train" else 1
        flops = passes * forward_flops(BN_INCEPTION.image_size, ModelConfig().embedding_dim)
        return flops * self.images_per_second() / self.peak_flops

    def record(self) -> dict[str, Any]:
        """For JSON."""
        derived = {"images_per_second": self.images_per_second(), "model_flops_utilisation": self.utilisation()}
        return dataclasses.asdict(self) | derived


def print_table(rows: Sequence[Measurement], baseline: Measurement) -> None:
    """Prints rows of one step, with each one's speed as a multiple of the baseline's."""
    columns = f"{'images/s':>9} {'ratio':>6} {'step ms':>9} {'data wait':>9} {'first s':>8} {'peak MB':>8} {'MFU':>6}"
    print(f"{baseline.step + f', batch {baseline.batch_size}':24} {columns}")
    for row in rows:
        wait = "" if row.data_wait_share is None else f"{row.data_wait_share:.1%}"
        speed, ratio = row.images_per_second(), row.images_per_second() / baseline.images_per_second()
        times = f"{1000 * row.step_seconds:9.1f} {wait:>9} {row.first_step_seconds:8.1f}"
        print(f"  {row.variant:22} {speed:9.1f} {ratio:6.2f} {times} {row.peak_mb:8,.0f} {row.utilisation():6.1%}")


def describe_device() -> tuple[str, str]:
    """JAX's platform, and a line for people."""
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    return jax.default_backend(), f"{devices}, {os.cpu_count()} cores, jax {jax.__version__}"


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_mb() -> float:
    """The most memory that JAX's default device, or else this process, has held so far."""
    if statistics := jax.devices()[0].memory_stats():
        return statistics["peak_bytes_in_use"] / 1e6
    return process_peak_mb()


def process_peak_mb() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

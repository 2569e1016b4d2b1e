"""Fake variants for tests of `benchmarks.workers`: they compute nothing and fail on request."""

import functools
import os
import signal
import time
from pathlib import Path

from benchmarks.device_busy import Activity, Program
from benchmarks.workers import WARM_UP_STEPS, Variant, Work
from proxynca_jax.config import DataConfig, ModelConfig

BEFORE_TURNS = 2 + WARM_UP_STEPS  # steps before the first turn: first step, warm-up, and one to measure a turn

WORK = Work("train", 2, ModelConfig(), DataConfig().image_size)


def hang() -> None:
    time.sleep(20)
    os._exit(4)  # reached only if no one has stopped the process


FAULTS = {
    "raises": lambda: 1 / 0,
    "exits": lambda: os._exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": hang,
}


def first_step(diary: Path, meets: Path | None) -> None:
    """Writes its start and end times in seconds to the file `diary`, and waits in between for the file `meets`."""
    start = time.time()
    diary.write_text("has started")
    while meets and not meets.exists():
        if time.time() > start + 20:
            raise TimeoutError(f"{meets} has not started")
        time.sleep(0.01)
    diary.write_text(f"{start} {time.time()}")


def make(work: Work, *, fault: str, healthy_steps: int, diary: Path | None, meets: Path | None) -> Program:
    done = 0

    def program(count: int) -> None:
        nonlocal done
        if diary and done == 0:
            first_step(diary, meets)
        for _ in range(count):
            if fault and done >= healthy_steps:
                FAULTS[fault]()
            done += 1
        time.sleep(0.001)

    return program


def load() -> None:
    """Imports nothing."""


def peak_mb() -> float:
    return 1.0


def profile(program: Program, steps: int, *, fault: str = "") -> Activity:
    if fault:
        FAULTS[fault]()
    return Activity(busy_seconds=0.25, kernels=7.0, launches=3.0, graph_changes=0.5)


def variant(
    fault: str = "",
    healthy_steps: int = 0,
    profile_fault: str = "",
    *,
    starts_alone: bool = True,
    diary: Path | None = None,
    meets: Path | None = None,
) -> Variant:
    """Returns a fake variant that optionally fails after some steps.

    Args:
        fault: a key of FAULTS, or empty for no fault.
        healthy_steps: number of steps before the fault.
        profile_fault: a key of FAULTS for the profiler, or empty.
        starts_alone: of `Variant`.
        diary: the file that its first step writes its times to.
        meets: the diary of another variant. The first step waits until that file exists.
    """
    program = functools.partial(make, fault=fault, healthy_steps=healthy_steps, diary=diary, meets=meets)
    profiler = functools.partial(profile, fault=profile_fault)
    return Variant(program, load, peak_mb, profiler, "float32", starts_alone=starts_alone)

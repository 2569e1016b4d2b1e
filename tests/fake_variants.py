"""Variants of a program that computes nothing and fails as it is asked to, for worker processes to import."""

import functools
import os
import signal
import time

from benchmarks.device_busy import Activity, Program
from benchmarks.workers import WARM_UP_STEPS, Variant

BEFORE_TURNS = 2 + WARM_UP_STEPS  # calls, by which time the length of a turn is known, too


def hang() -> None:
    time.sleep(20)
    os._exit(4)  # nobody has stopped it


FAULTS = {
    "raises": lambda: 1 / 0,
    "exits": lambda: os._exit(3),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": hang,
}


def make(step: str, batch_size: int, *, fault: str, healthy_steps: int) -> Program:
    done = 0

    def program(count: int) -> None:
        nonlocal done
        for _ in range(count):
            if fault and done >= healthy_steps:
                FAULTS[fault]()
            done += 1
        time.sleep(0.001)

    return program


def load() -> None:
    """Needs nothing."""


def peak_mb() -> float:
    return 1.0


def profile(program: Program, steps: int, *, fault: str = "") -> Activity:
    if fault:
        FAULTS[fault]()
    return Activity(busy_seconds=0.25, kernels=7.0, launches=3.0)


def variant(fault: str = "", healthy_steps: int = 0, profile_fault: str = "") -> Variant:
    """A variant that computes some steps well and then, if it is given a fault, one of FAULTS, has it."""
    program = functools.partial(make, fault=fault, healthy_steps=healthy_steps)
    return Variant(program, load, peak_mb, functools.partial(profile, fault=profile_fault), "float32")

"""Argument types for argparse, and help texts that several commands share."""

import argparse
import os
import pathlib
from collections.abc import Callable

NO_GRAPHS = "On a GPU, launch kernels one by one. Use this if CUDA graphs fail."


def path(text: str) -> pathlib.Path:
    """Returns the path that a user wrote. `~` is the home folder: a shell leaves it as it is in `--run=~/x`."""
    return pathlib.Path(os.path.expanduser(text))  # noqa: PTH111  # Path.expanduser raises for ~unknown


def integer(limits: tuple[int, int | float]) -> Callable[[str], int]:
    """Returns an argparse type for integers from `limits[0]` to `limits[1]`, both included.

    Other values raise `argparse.ArgumentTypeError`, which argparse reports as a usage error.
    """
    lowest, highest = limits

    def integer(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    return integer


def number(limits: tuple[float, float]) -> Callable[[str], float]:
    """Returns an argparse type for numbers from `limits[0]` to `limits[1]`, both included, as `integer` does."""
    lowest, highest = limits

    def number(text: str) -> float:
        value = float(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    return number

"""Argument types for argparse, and help texts that several commands share."""

import argparse
from collections.abc import Callable

NO_GRAPHS = "On a GPU, launch kernels one by one. Use this if CUDA graphs fail."


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

"""Types of command-line arguments for argparse."""

import argparse
from collections.abc import Callable

NO_GRAPHS = "On a GPU, launch kernels one by one where CUDA graphs fail."


def integer(limits: tuple[int, int | float]) -> Callable[[str], int]:
    """Whole numbers from the first limit to the second, both allowed; others are the user's error."""
    lowest, highest = limits

    def integer(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    return integer

"""Argument types for argparse, and help texts that several commands share."""

import argparse
import math
import os
import pathlib
from collections.abc import Callable

from proxynca_jax.errors import UserError

PROCESS_VARIABLES = (("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
NO_GRAPHS = "On a GPU, launch kernels one by one. Use this if CUDA graphs fail."


def path(text: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path that a user wrote. `~` is the home folder: a shell leaves it as it is in `--run=~/x`.

    For a user without a home folder, and in a name such as `~1.jpg`, it stays.
    """
    return pathlib.Path(os.path.expanduser(text))  # noqa: PTH111  # Path.expanduser raises for ~unknown


def add_share(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command whose processes each take a share of the files, without waiting for each other."""
    parser.add_argument("--distributed", action="store_true", help="one of many processes that share the files")
    parser.add_argument("--num_processes", type=integer((1, math.inf)), help="how many (default: from Slurm, Open MPI)")
    parser.add_argument("--process_id", type=integer((0, math.inf)), help="the number of this one, from 0 (likewise)")


def share_of(options: argparse.Namespace) -> tuple[int, int]:
    """Returns the number of this process and how many there are. Without `--distributed`: 0 and 1.

    Raises:
        UserError: they are unknown, or do not fit together.
    """
    if not options.distributed:
        if options.num_processes is not None or options.process_id is not None:
            raise UserError("--num_processes and --process_id go with --distributed.")
        return 0, 1
    number, count = options.process_id, options.num_processes
    for number_name, count_name in PROCESS_VARIABLES:
        number = os.environ.get(number_name) if number is None else number
        count = os.environ.get(count_name) if count is None else count
    if number is None or count is None or not 0 <= int(number) < int(count):
        raise UserError(
            f"--distributed: this would be process {number} of {count}. Give --num_processes, and --process_id from 0 "
            "to one less; under Slurm and Open MPI both are known."
        )
    return int(number), int(count)


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

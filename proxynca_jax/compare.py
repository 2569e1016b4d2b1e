"""Compares training runs with the PyTorch reference's scores and the paper's.

    python -m proxynca_jax.compare runs/cub
    python -m proxynca_jax.compare runs/cub-0 runs/cub-1 runs/cub-2 --reference cub
    python -m proxynca_jax.compare runs/cub --published

Several runs may differ only in their seeds. The command prints the scores of the best epoch, of the last epoch, and the
mean of the last five epochs. It plots every epoch into comparison.png in the first run's folder or, if that is
read-only, in the current one. It takes seconds, reads no images, and needs no accelerator. If a data set has no
reference, the report is about the runs alone. --published adds the published results of other methods, and what differs
in their protocols.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import os
import pathlib

from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.machine.output import print_line
from proxynca_jax.report.picture import draw
from proxynca_jax.report.published import DATA_SETS, describe_published
from proxynca_jax.report.reference import REFERENCES, find_reference
from proxynca_jax.report.report import describe
from proxynca_jax.report.runs import read_runs


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m proxynca_jax.compare",
        description="Compares training runs with the PyTorch reference's scores and the paper's.",
    )
    parser.add_argument("runs", nargs="+", type=path, metavar="run", help="the folder of a training run")
    parser.add_argument("--reference", help=f"one of {', '.join(REFERENCES)} (default: the runs' data set)")
    about = f"add the published results of other methods; --reference may then be one of {', '.join(DATA_SETS)}"
    parser.add_argument("--published", action="store_true", help=about)
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        runs = read_runs(options.runs)
        name = options.reference or runs[0].config.data.dataset
        published = describe_published(runs, name) if options.published else None
        needed = options.reference and not published
        reference = find_reference(name) if needed or name in REFERENCES else None
        print_line(describe(runs, reference))
        if published:
            print_line(f"\n{published}")
        folder = runs[0].folder
        picture = (folder if os.access(folder, os.W_OK) else pathlib.Path()) / "comparison.png"
        draw(runs, reference, picture)
        print_line(f"\n{picture}")


if __name__ == "__main__":
    main()

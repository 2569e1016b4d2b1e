"""Lays a run, or several that differ by their seed, beside the reference's own figures and the paper's.

    python -m proxynca_jax.compare runs/cub
    python -m proxynca_jax.compare runs/cub-0 runs/cub-1 runs/cub-2 --reference cub

Prints best epoch, last epoch and mean of the last five, and draws every epoch into comparison.png in the first run's
folder. Takes seconds, reads no images, and needs no accelerator. Data sets without a reference are shown alone.
"""

import argparse
import pathlib

from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.report.picture import draw
from proxynca_jax.report.reference import REFERENCES, find_reference
from proxynca_jax.report.report import describe
from proxynca_jax.report.runs import read_runs


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.compare", description="Runs beside the reference.")
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="run", help="the folder of a training run")
    parser.add_argument("--reference", help=f"{', '.join(REFERENCES)}; by default that of the runs' data set")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        runs = read_runs(options.runs)
        name = options.reference or runs[0].config.data.dataset
        reference = find_reference(name) if options.reference or name in REFERENCES else None
        print(describe(runs, reference))
        picture = runs[0].folder / "comparison.png"
        draw(runs, reference, picture)
        print(f"\n{picture}")


if __name__ == "__main__":
    main()

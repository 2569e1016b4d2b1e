"""Brings an index of images up to date with a folder: embeds what is new or changed, and drops what is gone.

    python -m proxynca_jax.index /data/photographs -o photos.lance --model runs/mine
    python -m proxynca_jax.index /data/photographs -o postgresql://user@host/photos --model runs/mine
    python -m proxynca_jax.index /data/photographs -o photos.lance

    python -m proxynca_jax.index /data/photographs -o postgresql://user@host/photos --distributed

The network is needed once; the index remembers where it is and its digest. Renamed, moved and copied files are
recognised by their content and not embedded again. A stopped or killed command goes on where it was.

With --distributed, each of many processes on one or many hosts takes a share of the files, by their paths. They do not
wait for each other, and a share that was stopped goes on when its process is started again.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import sys
import warnings
from collections.abc import Callable

from proxynca_jax.machine.arguments import add_share, path, share_of
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.interrupt import Interrupted, stop_on_signal
from proxynca_jax.machine.output import print_line, printable
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.vector_index.approximate import NEIGHBOURS, Measured
from proxynca_jax.vector_index.index import Index

FAULTS_SHOWN = 5
GOOD_RECALL = 0.9


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.index", description=summary)
    parser.add_argument("folder", type=path, help="photographs, at any depth; the first folder's name is the label")
    parser.add_argument("-o", "--index", required=True, metavar="ADDRESS", help="a folder, s3://…, or postgresql://…")
    parser.add_argument("--model", help="a run's folder or weights (default: the network of the index)")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="of a run (default: best)")
    parser.add_argument("--rebuild", action="store_true", help="embed all again if --model is another network")
    parser.add_argument("--approximate", action="store_true", help="build an approximate index too, and measure it")
    add_share(parser)
    options = parser.parse_args(arguments)
    with exit_on_user_error(), stop_on_signal() as check:
        try:
            _index(options, check)
        except Interrupted:
            print("stopped; the same command goes on with the images that are left", file=sys.stderr)
            raise


def _index(options: argparse.Namespace, check: Callable[[], None]) -> None:
    index = Index.open(options.index, options.model, checkpoint=options.checkpoint, rebuild=options.rebuild)
    changes = index.add(options.folder, check, share=share_of(options), progress=True)
    done = f"{changes.embedded:,} embedded, {changes.recognised:,} recognised, {changes.unchanged:,} unchanged"
    print_line(f"{index.address}: {len(index):,} images ({done}, {changes.removed:,} removed)")
    if changes.left_out:
        faults = list(changes.left_out.values())
        more = [f"and {len(faults) - FAULTS_SHOWN:,} more"] if len(faults) > FAULTS_SHOWN else []
        lines = [f"{len(faults):,} files cannot be used and are left out:", *faults[:FAULTS_SHOWN], *more]
        print(printable("\n  ".join(lines)), file=sys.stderr)
    if options.approximate:
        _print_measured(index.approximate())


def _print_measured(measured: Measured) -> None:
    speed_up = measured.exact_seconds / measured.seconds
    times = f"{1000 * measured.seconds:.1f} ms instead of {1000 * measured.exact_seconds:.1f} ms ({speed_up:.1f}x)"
    built = f"approximate index, built in {measured.build_seconds:.0f} s: a search takes {times}"
    print_line(f"{built} and finds {100 * measured.recall:.1f} % of the {NEIGHBOURS} nearest images")
    if measured.recall < GOOD_RECALL:
        warnings.warn(f"it misses more than {100 * (1 - GOOD_RECALL):.0f} % of them; prefer exact search", stacklevel=1)


if __name__ == "__main__":
    prepare_process()
    main()

"""Writes a page that explains a run, or one that compares what two runs get right.

    proxynca report runs/cars                       # writes runs/cars/report.html
    proxynca report runs/cars -o cars.html --map umap
    proxynca report runs/cars-0 runs/cars-1         # writes runs/cars-0/report-cars-1.html

The page is one HTML file. It opens from disk and loads nothing. It needs `pip install 'proxynca_jax[report]'`, and
`'proxynca_jax[umap]'` for --map umap.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse

from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.report.run_page import require_report
from proxynca_jax.report.run_page.projection import METHODS
from proxynca_jax.runs.checkpoint import KINDS

SUFFIX = ".html"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="proxynca report", description=summary)
    parser.add_argument("run", type=path, help="the folder of a training run")
    parser.add_argument("other", type=path, nargs="?", help="another run on the same evaluation images")
    parser.add_argument("-o", "--output", type=path, metavar="FILE.html", help="(default: in the first run's folder)")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    parser.add_argument("--map", choices=METHODS, default=METHODS[0], help="of one run: how embeddings are projected")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        name = f"report-{options.other.name}{SUFFIX}" if options.other else f"report{SUFFIX}"
        output = options.output or options.run / name
        if output.suffix.lower() != SUFFIX:
            raise UserError(f"--output is {str(output)!r}; it must end in {SUFFIX}.")
        require_report()
        # These import Bokeh and Jinja, which the extra installs.
        from proxynca_jax.report.run_page.one_run import one_run_page
        from proxynca_jax.report.run_page.two_runs import two_runs_page

        if options.other:
            page = two_runs_page(options.run, options.other, options.checkpoint)
        else:
            page = one_run_page(options.run, options.checkpoint, projection=options.map)
        replace_file(output, page.encode())
        print_line(f"{output}: {len(page.encode()) / 1e6:.1f} MB. Open it in a browser.")


if __name__ == "__main__":
    prepare_process()
    main()

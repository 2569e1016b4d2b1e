"""Exports the network of a run for other programs.

    python -m proxynca_jax.export runs/cars --format hub -o cars-embedder

| format | output |
| --- | --- |
| `hub` | a folder for the Hugging Face Hub, with a model card; `Embedder.from_pretrained` reads it |

The output must not exist. It appears when it is complete, so an error or Ctrl-C leaves nothing half-written.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import shlex

from proxynca_jax.hub_export import write_hub_folder
from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.runs.checkpoint import KINDS

FORMATS = ("hub",)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.export", description=summary)
    parser.add_argument("run", type=path, metavar="RUN", help="the folder of a training run")
    parser.add_argument("--format", choices=FORMATS, required=True, help="hub: a folder for the Hugging Face Hub")
    parser.add_argument("-o", "--output", type=path, required=True, metavar="FOLDER", help="must not exist")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        write_hub_folder(options.run, options.output, checkpoint=options.checkpoint)
        quoted = shlex.quote(str(options.output))
        print(
            f"{options.output}: the network with its model card, README.md. Read the card, and choose a licence in it."
        )
        print(f"use it:      Embedder.from_pretrained({str(options.output)!r})")
        print(f"publish it:  hf upload owner/name {quoted}")


if __name__ == "__main__":
    prepare_process()
    main()

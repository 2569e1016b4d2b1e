"""All commands under one name: `proxynca train ...` does what `python -m proxynca_jax.train ...` does."""

import runpy
import sys

from proxynca_jax.machine.signals import start_command

COMMANDS = {  # name: module, and what it does
    "doctor": ("proxynca_jax.doctor", "check images, network and machine before training"),
    "train": ("proxynca_jax.train", "train an embedding network with proxies and score it on unseen classes"),
    "evaluate": ("proxynca_jax.evaluate", "score a run, or embeddings of any origin"),
    "embed": ("proxynca_jax.embed", "write the embeddings of images to a file"),
    "index": ("proxynca_jax.index", "bring an index of images up to date with a folder"),
    "search": ("proxynca_jax.search", "find the images of an index that are similar to a photograph"),
    "duplicates": ("proxynca_jax.duplicates", "find images of an index that are the same or nearly so"),
    "serve": ("proxynca_jax.serve", "search an index from a page in the browser, or by HTTP"),
    "compare": ("proxynca_jax.compare", "compare runs with the reference's own curves"),
    "report": ("proxynca_jax.report", "write a page that explains a run, or compares two"),
    "neighbours": ("proxynca_jax.neighbours", "draw queries and their nearest images"),
    "export": ("proxynca_jax.export", "export the network of a run for other programs"),
    "convert": ("convert", "convert PyTorch weights, or a run to PyTorch"),
    "bench": ("proxynca_jax.bench", "measure this machine's speed"),
}


def main() -> None:
    """Runs the command that the first argument names."""
    start_command()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"proxynca {name}"]
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
        return
    lines = ["usage: proxynca COMMAND ...", "", *(f"  {command:12}{does}" for command, (_, does) in COMMANDS.items())]
    lines += ["", "proxynca COMMAND --help shows the options of a command."]
    from proxynca_jax.errors import UserError, nearest
    from proxynca_jax.machine.command import exit_on_user_error

    with exit_on_user_error():
        if name not in ("", "-h", "--help"):
            raise UserError(f"{name!r} is no command: {nearest(name, COMMANDS)}")
        print("\n".join(lines))


if __name__ == "__main__":
    main()

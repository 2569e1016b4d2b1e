"""Finds the images of an index that are most similar to a photograph.

    python -m proxynca_jax.search query.jpg --index photos.lance -k 10
    python -m proxynca_jax.search query.jpg --index photos.lance --where "label = 'x'" --picture found.png
    python -m proxynca_jax.search query.jpg --index photos.lance --max_far 1e-3

Prints the score, the path and the label of each. The score is the cosine similarity of the vectors, at most 1.
With --max_far, only images that are similar enough for this false accept rate are found, or none.
With --json, prints an array with an object for each photograph.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import json
import pathlib

from proxynca_jax.config import COUNT
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import integer, path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.report.contact_sheet import contact_sheet
from proxynca_jax.vector_index.engine import Match
from proxynca_jax.vector_index.index import Index


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.search", description=summary)
    parser.add_argument("photographs", type=path, nargs="+", metavar="PHOTO", help="what to search for")
    parser.add_argument("--index", required=True, metavar="ADDRESS", help="a folder, s3://…, or postgresql://…")
    parser.add_argument("-k", type=integer(COUNT), default=10, help="how many to find for each (default: 10)")
    parser.add_argument("--where", metavar="SQL", help="search only some rows, such as \"label = 'x'\"")
    parser.add_argument("--max_far", type=float, metavar="RATE", help="find only the same, at this false accept rate")
    parser.add_argument("--approximate", action="store_true", help="use the approximate index; it misses some")
    parser.add_argument("--picture", type=path, metavar="FILE", help="draw what was found: .png")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.picture and options.picture.suffix.lower() != ".png":
            raise UserError(f"--picture is {str(options.picture)!r}; it must end in .png.")
        index, exact = Index.open(options.index), not options.approximate
        threshold = None if options.max_far is None else index.threshold(options.max_far)
        wanted = {"where": options.where, "exact": exact, "max_far": options.max_far}
        found = index.search(options.photographs, options.k, **wanted)
        if options.picture:
            replace_file(options.picture, contact_sheet(options.photographs, found))
        if options.json:
            print(json.dumps(_objects(options.photographs, found, threshold), indent=2))
        else:
            _print(options.photographs, found, threshold)


def _print(photographs: list[pathlib.Path], found: list[list[Match]], threshold: float | None) -> None:
    for photograph, matches in zip(photographs, found, strict=True):
        if len(photographs) > 1:
            print_line(str(photograph))
        for match in matches:
            print_line(f"{match.score:.4f}  {match.path}  {match.label}".rstrip())
        if threshold is not None and not matches:
            print_line(f"None of these is the same: no image has a similarity of {threshold:.4f} or more.")


def _objects(
    photographs: list[pathlib.Path], found: list[list[Match]], threshold: float | None
) -> list[dict[str, object]]:
    limit = {} if threshold is None else {"threshold": threshold}
    return [
        {"query": str(photograph), **limit, "matches": [match._asdict() for match in matches]}
        for photograph, matches in zip(photographs, found, strict=True)
    ]


if __name__ == "__main__":
    prepare_process()
    main()

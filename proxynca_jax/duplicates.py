"""Finds images of an index that are the same or nearly so.

    python -m proxynca_jax.duplicates --index photos.lance
    python -m proxynca_jax.duplicates --index photos.lance --min_score 0.97 --picture duplicates.png

Prints groups, the largest first. In a group, each image is similar to at least one other. The score is the cosine
similarity to the group's first image; "same" is a file with the same bytes. With --json, prints an array of groups.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import json
import pathlib
import warnings

from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import number, path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.report.contact_sheet import contact_sheet
from proxynca_jax.vector_index.duplicates import MIN_SCORE_OF_FEATURES, MIN_SCORE_OF_RUNS, Duplicate
from proxynca_jax.vector_index.engine import Match
from proxynca_jax.vector_index.index import Index

GROUPS_DRAWN, IMAGES_DRAWN = 20, 8
# A group of more images than both is hardly one of copies.
LARGE, LARGE_SHARE = 100, 0.1


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.duplicates", description=summary)
    parser.add_argument("--index", required=True, metavar="ADDRESS", help="a folder, s3://…, or postgresql://…")
    default = f"default: {MIN_SCORE_OF_RUNS} for a run, {MIN_SCORE_OF_FEATURES} for ImageNet's features"
    similar = f"from which similarity on two images are in a group ({default})"
    parser.add_argument("--min_score", type=number((0.0, 1.0)), metavar="SCORE", help=similar)
    drawn = f"draw the largest {GROUPS_DRAWN} groups, {IMAGES_DRAWN} images each: .png"
    parser.add_argument("--picture", type=path, metavar="FILE", help=drawn)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.picture and options.picture.suffix.lower() != ".png":
            raise UserError(f"--picture is {str(options.picture)!r}; it must end in .png.")
        index = Index.open(options.index)
        groups = index.duplicates(options.min_score, progress=True)
        if options.picture and groups:
            replace_file(options.picture, _draw(groups))
        if options.json:
            print(json.dumps([[image._asdict() for image in group] for group in groups], indent=2))
        else:
            _print(groups, len(index))


def _print(groups: list[list[Duplicate]], images: int) -> None:
    for group in groups:
        print_line(f"{len(group):,} images")
        for image in group:
            same = "  same" if image.same_content and image is not group[0] else ""
            print_line(f"  {image.score:.4f}  {image.path}  {image.label}".rstrip() + same)
    print_line(f"{len(groups):,} groups with {sum(map(len, groups)):,} of {images:,} images")
    if groups and len(groups[0]) > max(LARGE, LARGE_SHARE * images):
        warnings.warn(
            f"one group has {len(groups[0]):,} of {images:,} images, because a trained network makes images of a class "
            "alike. Choose a higher --min_score, or an index by ImageNet's features: --model efficientnet_lite0",
            stacklevel=1,
        )


def _draw(groups: list[list[Duplicate]]) -> bytes:
    drawn = [group[:IMAGES_DRAWN] for group in groups[:GROUPS_DRAWN]]
    firsts = [pathlib.Path(group[0].path) for group in drawn]
    return contact_sheet(firsts, [[Match(*image[:3]) for image in group[1:]] for group in drawn], first="group of")


if __name__ == "__main__":
    prepare_process()
    main()

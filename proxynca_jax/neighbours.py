"""Draws queries of a run's evaluation classes with their nearest neighbours, right and wrong ones marked.

    python -m proxynca_jax.neighbours --run runs/glyphs --output docs/neighbours.png

A row is a query and its eight nearest other images by exact cosine distance. The seed draws one query per class; those
with both right and wrong neighbours come first. So the picture shows what the network confuses, and not how often: the
line below the rows has Recall@1 of all images.
"""

import argparse
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from proxynca_jax.config import COUNT, SEEDS, DataConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.datasets.glyphs import face
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.data.transforms import eval_transform, load_image
from proxynca_jax.embedder import embed, load_network
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.metrics.retrieval import LabelledVectors, ranks, recall_at_k
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.runs.log import MetricLog

NEIGHBOURS = 8
# Pixels. Shown at half its size, the picture is sharp on screens of high density.
TILE, FRAME, GAP, QUERY_GAP, MARGIN, TEXT, LINE = 156, 8, 22, 64, 20, 30, 48
PAPER, INK, RIGHT, WRONG = "#ffffff", "#24292f", "#1a7f37", "#cf222e"


class Row(NamedTuple):
    """One query and its neighbours, nearest first."""

    query: int  # row of the queries
    found: Int[np.ndarray, " neighbours"]  # rows of the gallery
    distances: Float[np.ndarray, " neighbours"]  # cosine, 0 to 2


def search(
    embeddings: Float[np.ndarray, "images dim"], query: int, gallery: Float[np.ndarray, "others dim"] | None = None
) -> Row:
    """Finds the nearest images of a query by exact cosine distance.

    Args:
        embeddings: of the queries, of length 1.
        query: row of the query.
        gallery: the images to search, of length 1. None: the other queries.
    """
    if gallery is None:
        distances = 1 - embeddings @ embeddings[query]
        distances[query] = np.inf  # an image is no neighbour of itself
        count = len(embeddings) - 1
    else:
        distances, count = 1 - gallery @ embeddings[query], len(gallery)
    found = np.argsort(distances, kind="stable")[: min(NEIGHBOURS, count)]
    return Row(query, found, distances[found])


def choose_rows(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    *,
    rows: int,
    seed: int,
    gallery: LabelledVectors | None = None,
) -> list[Row]:
    """Draws queries of different classes, those with both right and wrong neighbours before all others.

    Args:
        embeddings: one vector of length 1 per image.
        labels: class of each image.
        rows: how many; there are fewer if there are fewer classes.
        seed: of the draw.
        gallery: vectors of length 1 and labels of the images to search. None: the other queries.

    Returns:
        The rows, those with the most right neighbours first.
    """
    others, found_labels = (None, labels) if gallery is None else gallery
    order = np.random.default_rng(seed).permutation(len(labels))
    _, firsts = np.unique(labels[order], return_index=True)
    mixed, rest = [], []
    for query in order[np.sort(firsts)].tolist():  # one of each class
        row = search(embeddings, query, others)
        right = found_labels[row.found] == labels[query]
        (mixed if 0 < right.sum() < len(right) else rest).append(row)
        if len(mixed) == rows:
            break
    return sorted([*mixed, *rest][:rows], key=lambda row: -(found_labels[row.found] == labels[row.query]).sum())


def draw(rows: Sequence[Row], evaluation: Evaluation, data: DataConfig, caption: str) -> Image.Image:
    """Draws the rows of `choose_rows`, as much of each image as the network sees, and the caption below them."""
    queries, gallery = evaluation.queries, evaluation.gallery or evaluation.queries
    resize_size = round(TILE * data.resize_size / data.image_size)
    shown = dataclasses.replace(data, image_size=TILE, resize_size=resize_size)
    lefts = [MARGIN, *(MARGIN + TILE + QUERY_GAP + place * (TILE + GAP) for place in range(NEIGHBOURS))]
    height = MARGIN + LINE + len(rows) * (TILE + LINE + GAP) + LINE
    canvas = Image.new("RGB", (lefts[-1] + TILE + MARGIN, height), PAPER)
    pen, font = ImageDraw.Draw(canvas), face("DejaVuSans").font_variant(size=TEXT)

    def write(left: int, top: int, text: str, colour: str, anchor: str = "lm") -> None:
        pen.text((left, top + LINE // 2), text, fill=colour, font=font, anchor=anchor)

    def put(split: Split, image: int, left: int, top: int, colour: str, text: str) -> None:
        pixels = eval_transform(load_image(split, image), shown)
        canvas.paste(Image.fromarray(pixels), (left, top))
        pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=colour, width=FRAME)
        write(left + TILE // 2, top + TILE, text, colour, "mm")

    write(lefts[0], MARGIN - GAP // 2, "query", INK)
    write(lefts[1], MARGIN - GAP // 2, "nearest images, with cosine distance", INK)
    for number, (query, found, distances) in enumerate(rows):
        top = MARGIN + LINE + number * (TILE + LINE + GAP)
        put(queries, query, lefts[0], top, INK, "")
        for image, distance, left in zip(found.tolist(), distances.tolist(), lefts[1:], strict=False):
            right = gallery.labels[image] == queries.labels[query]
            put(gallery, image, left, top, RIGHT if right else WRONG, f"{'✓' if right else '✗'} {distance:.2f}")
    write(lefts[0], height - LINE - GAP // 2, caption, INK)
    return canvas


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.neighbours", description=summary)
    parser.add_argument("--run", type=pathlib.Path, required=True, help="the folder of a training run")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    parser.add_argument("--rows", type=integer(COUNT), default=5, help="queries, each of another class (default: 5)")
    parser.add_argument("--seed", type=integer(SEEDS), default=0, help="of the draw of queries (default: 0)")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE", help=".png")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.output.suffix.lower() != ".png":
            raise UserError(f"--output is {str(options.output)!r}; it must end in .png.")
        network, config, step = load_network(options.run, options.checkpoint)
        evaluation = load_dataset(config.data).evaluation
        split, others = evaluation.queries, evaluation.gallery
        embeddings = embed(network, split, config)
        gallery = None if others is None else (embed(network, others, config), others.labels)
        recall = recall_at_k(ranks(embeddings, split.labels, gallery=gallery), (1,))[1]
        epochs = {record["step"]: f"{record['epoch'] + 1} epochs" for record in MetricLog(options.run).records()}
        caption = f"{len(split.labels):,} images of {len(split.class_names):,} classes that were not trained on; "
        caption += f"R@1 {100 * recall:.2f} after {epochs.get(step, f'step {step}')}"
        rows = choose_rows(embeddings, split.labels, rows=options.rows, seed=options.seed, gallery=gallery)
        content = io.BytesIO()
        picture = draw(rows, evaluation, config.data, caption).quantize(
            256, dither=Image.Dither.NONE
        )  # a third of the size
        picture.save(content, "PNG", optimize=True)
        replace_file(options.output, content.getvalue())
        print(f"{options.output}: {len(rows)} queries. {caption}")


if __name__ == "__main__":
    prepare_process()
    main()

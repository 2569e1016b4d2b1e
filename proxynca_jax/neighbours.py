"""Draws queries of a run's evaluation classes with their nearest neighbours, right and wrong ones marked.

    python -m proxynca_jax.neighbours --run runs/glyphs --output docs/neighbours.png
    python -m proxynca_jax.neighbours --run runs/glyphs --before --output before.png

A row is a query and its eight nearest other images by exact cosine distance. The seed draws one query per class; those
with both right and wrong neighbours come first. So the picture shows what the network confuses, and not how often: the
line below the rows has Recall@1 of all images.

With --before, each query has two rows: its nearest images before training and after. Then the seed draws from all
queries with equal chances, except those that have nothing to find. Neither network has a say in the draw.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import dataclasses
import io
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from proxynca_jax.config import COUNT, SEEDS, DataConfig, TrainConfig
from proxynca_jax.data.datasets.glyphs import face
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.data.transforms import eval_transform, load_image
from proxynca_jax.embedder import TrainedNetwork, before_training, embed, load_network
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import integer, path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.metrics.retrieval import NO_MATCH, LabelledVectors, ranks, recall_at_k
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.runs.image_list import evaluation_of_run
from proxynca_jax.runs.log import MetricLog

NEIGHBOURS = 8
# Pixels. Shown at half its size, the picture is sharp on screens of high density.
TILE, FRAME, GAP, QUERY_GAP, MARGIN, TEXT, LINE = 156, 8, 22, 64, 20, 30, 48
ROW = TILE + LINE + GAP
STATE_WIDTH, SMALL_TEXT, NAME_LETTERS = 158, 24, 14  # with --before: the column of states, and the queries' classes
PAPER, INK, RULE, RIGHT, WRONG = "#ffffff", "#24292f", "#d0d7de", "#1a7f37", "#cf222e"


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


class Searched(NamedTuple):
    """What one network finds."""

    embeddings: Float[np.ndarray, "images dim"]  # of the queries
    gallery: LabelledVectors | None  # None: the other queries
    ranks: Int[np.ndarray, " images"]  # of `retrieval.ranks`

    @property
    def recall(self) -> float:
        """Recall@1 in percent."""
        return 100 * recall_at_k(self.ranks, (1,))[1]

    def row(self, query: int) -> Row:
        """Finds the neighbours of one query."""
        return search(self.embeddings, query, None if self.gallery is None else self.gallery[0])


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


def draw_queries(ranks: Int[np.ndarray, " images"], *, count: int, seed: int) -> list[int]:
    """Draws different queries with equal chances from those that have an image of their class to find.

    Args:
        ranks: from `retrieval.ranks`. Only whether they are NO_MATCH matters, which no network changes.
        count: how many; there are fewer if there are fewer queries.
        seed: of the draw.
    """
    counted = np.flatnonzero(ranks != NO_MATCH)
    return np.random.default_rng(seed).permutation(counted)[:count].tolist()


class _Page:
    """A picture to write on, and the images that go on it."""

    def __init__(self, evaluation: Evaluation, data: DataConfig, *, width: int, height: int):
        self.queries, self.gallery = evaluation.queries, evaluation.gallery or evaluation.queries
        resize_size = round(TILE * data.resize_size / data.image_size)
        self.shown = dataclasses.replace(data, image_size=TILE, resize_size=resize_size)
        self.canvas = Image.new("RGB", (width, height), PAPER)
        self.pen, self.font = ImageDraw.Draw(self.canvas), face("DejaVuSans").font_variant(size=TEXT)

    def write(self, left: int, top: int, text: str, colour: str = INK, anchor: str = "lm") -> None:
        self.pen.text((left, top + LINE // 2), text, fill=colour, font=self.font, anchor=anchor)

    def put(self, split: Split, image: int, left: int, top: int, colour: str = INK, text: str = "") -> None:
        """Draws as much of an image as the network sees, in a frame, and a text below it."""
        pixels = eval_transform(load_image(split, image), self.shown)
        self.canvas.paste(Image.fromarray(pixels), (left, top))
        self.pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=colour, width=FRAME)
        self.write(left + TILE // 2, top + TILE, text, colour, "mm")

    def put_row(self, row: Row, first: int, top: int, state: str) -> None:
        """Draws the neighbours of a query, the nearest at `first`, after a state's name if it has one."""
        right = self.gallery.labels[row.found] == self.queries.labels[row.query]
        if state:
            text = f"{state}\n✓ {right.sum()} of {len(right)}"
            place = (first - STATE_WIDTH, top + TILE // 2)
            self.pen.multiline_text(place, text, fill=INK, font=self.font, anchor="lm", spacing=SMALL_TEXT // 3)
        for place, (image, distance, hit) in enumerate(
            zip(row.found.tolist(), row.distances.tolist(), right, strict=True)
        ):
            colour, mark = (RIGHT, "✓") if hit else (WRONG, "✗")
            self.put(self.gallery, image, first + place * (TILE + GAP), top, colour, f"{mark} {_short(distance)}")


def draw(
    groups: Sequence[Sequence[Row]],
    evaluation: Evaluation,
    data: DataConfig,
    *,
    states: Sequence[str] = ("",),
    heading: Sequence[str] = (),
    caption: str,
) -> Image.Image:
    """Draws queries and their neighbours.

    Args:
        groups: for each query one row per state.
        evaluation: the images.
        data: how much of an image the network sees; so much is drawn.
        states: names of the networks. If they are not empty, the queries' classes are written, too.
        heading: lines above the rows.
        caption: the line below the rows.
    """
    named = any(states)
    first, under = MARGIN + TILE + QUERY_GAP + named * STATE_WIDTH, MARGIN + (len(heading) + 1) * LINE
    group_height = len(states) * ROW
    width, height = first + NEIGHBOURS * (TILE + GAP) - GAP + MARGIN, under + len(groups) * group_height + LINE
    page = _Page(evaluation, data, width=width, height=height)
    for number, line in enumerate([*heading, "query"]):
        page.write(MARGIN, MARGIN - GAP // 2 + number * LINE, line)
    page.write(first, under - LINE - GAP // 2, "nearest images, with cosine distance")
    for number, group in enumerate(groups):
        top = under + number * group_height
        middle = top + (group_height - ROW) // 2
        (query, *_), *_ = group
        page.put(page.queries, query, MARGIN, middle)
        if named:
            name = _in_lines(page.queries.class_names[page.queries.labels[query]])
            small = page.font.font_variant(size=SMALL_TEXT)
            page.pen.multiline_text((MARGIN, middle + TILE + FRAME), name, fill=INK, font=small)
            page.pen.line((MARGIN, top - FRAME, width - MARGIN, top - FRAME), fill=RULE, width=2)
        for place, (row, state) in enumerate(zip(group, states, strict=True)):
            page.put_row(row, first, top + place * ROW, state)
    page.write(MARGIN, height - LINE - GAP // 2, caption)
    return page.canvas


def _short(distance: float) -> str:
    """Writes a distance with two decimals. Those of a network before training are so small that it takes more."""
    return f"{distance:.2f}" if distance >= 0.01 else f"{max(distance, 0):.1g}"


def _in_lines(name: str) -> str:
    """Breaks a class's name into lines that fit under the query."""
    return "\n".join(textwrap.wrap(name.replace("_", " "), NAME_LETTERS, max_lines=4, placeholder="…"))


def _search_all(network: TrainedNetwork, evaluation: Evaluation, config: TrainConfig) -> Searched:
    """Embeds queries and gallery, and ranks the queries."""
    (embeddings, labels), *others = [(embed(network, split, config), split.labels) for split in evaluation.splits()]
    gallery = others[0] if others else None
    return Searched(embeddings, gallery, ranks(embeddings, labels, gallery=gallery))


def _picture(options: argparse.Namespace) -> tuple[Image.Image, int, str]:
    """Returns the picture, the number of queries, and what the picture says of all images."""
    network, config, step = load_network(options.run, options.checkpoint)
    evaluation = evaluation_of_run(options.run, config.data)
    split = evaluation.queries
    images = f"{len(split.labels):,} images of {len(split.class_names):,} classes that were not trained on"
    epochs = {record["step"]: f"{record['epoch'] + 1} epochs" for record in MetricLog(options.run).records()}
    trained = _search_all(network, evaluation, config)
    score = f"R@1 {trained.recall:.2f} after {epochs.get(step, f'step {step}')}"
    if not options.before:
        rows = choose_rows(
            trained.embeddings, split.labels, rows=options.rows or 5, seed=options.seed, gallery=trained.gallery
        )
        caption = f"{images}; {score}"
        return draw([[row] for row in rows], evaluation, config.data, caption=caption), len(rows), caption
    start = _search_all(before_training(network, config), evaluation, config)
    chosen = draw_queries(trained.ranks, count=options.rows or 8, seed=options.seed)
    groups = [[searched.row(query) for searched in (start, trained)] for query in chosen]
    origin = pathlib.Path(config.model.weights).name or "random weights"
    score = f"R@1 {start.recall:.2f} before training, from {origin}; {score}"
    found_labels = evaluation.splits()[-1].labels
    states = zip(*groups, strict=True)
    right = [sum(found_labels[row.found[0]] == split.labels[row.query] for row in rows) for rows in states]
    drawn = f"{len(chosen)} queries drawn at random, seed {options.seed}: "
    drawn += f"the nearest image is right for {right[0]} before and {right[1]} after"
    picture = draw(groups, evaluation, config.data, states=("before", "after"), heading=(images, score), caption=drawn)
    return picture, len(chosen), f"{images}; {score}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.neighbours", description=summary)
    parser.add_argument("--run", type=path, required=True, help="the folder of a training run")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    parser.add_argument("--before", action="store_true", help="show each query's neighbours before training, too")
    parser.add_argument("--rows", type=integer(COUNT), help="queries (default: 5, each of another class; 8 at random)")
    parser.add_argument("--seed", type=integer(SEEDS), default=0, help="of the draw of queries (default: 0)")
    parser.add_argument("--output", type=path, required=True, metavar="FILE", help=".png")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.output.suffix.lower() != ".png":
            raise UserError(f"--output is {str(options.output)!r}; it must end in .png.")
        picture, queries, caption = _picture(options)
        content = io.BytesIO()
        # With a palette, the file has a third of the size.
        picture.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        replace_file(options.output, content.getvalue())
        print_line(f"{options.output}: {queries} queries. {caption}")


if __name__ == "__main__":
    prepare_process()
    main()

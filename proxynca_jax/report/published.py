"""Published results of other methods next to those of runs, with what differs in their protocols.

`published.json` has one entry per method and network, with the document that each was read from on 2026-11-27. Scores
are in percent. Most papers choose the epoch on the test classes.
"""

import json
import pathlib
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.datasets import DATASETS
from proxynca_jax.data.datasets.published import Counts
from proxynca_jax.data.split import SIDES
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.models import BACKBONES
from proxynca_jax.report.runs import Run
from proxynca_jax.report.summary import summarise
from proxynca_jax.report.text_table import LINE, NONE, align
from proxynca_jax.runs.image_list import read_list
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import score_title

# What chose the epoch, by evaluation.protocol, in the words of `published.json`.
PROTOCOLS = {"reference": "epoch chosen on the test classes", "validation": "epoch chosen on validation classes"}
REFERENCE_PIXELS = 227


class Published(NamedTuple):
    """Published scores of one method with one network."""

    method: str
    network: str
    dimensions: int | None  # of an embedding; None: the document does not state it
    protocol: str  # what chose the epoch: one of the values of `PROTOCOLS`, not trained, or not stated
    notes: str  # what else is special in its training or its evaluation
    source: str  # the document that has the figures
    scores: dict[str, Record]  # by data set


PUBLISHED = [
    Published(**fields) for fields in json.loads(pathlib.Path(__file__).with_name("published.json").read_text())
]
DATA_SETS = tuple(dict.fromkeys(name for entry in PUBLISHED for name in entry.scores))


def find_published(dataset: str) -> list[Published]:
    """Returns the published results on a data set.

    Args:
        dataset: its name, one of `DATA_SETS`.

    Raises:
        UserError: there are none.
    """
    if dataset not in DATA_SETS:
        raise UserError(
            f"no published results are known for data set {dataset!r}: {nearest(dataset, DATA_SETS)} "
            "If the run has one of these in another form, name it with --reference."
        )
    return [entry for entry in PUBLISHED if dataset in entry.scores]


def describe_published(runs: list[Run], dataset: str) -> str:
    """Returns a table of published results with the runs among them, the best first, and notes on the protocols.

    Args:
        runs: of one configuration.
        dataset: the name of the published data set.

    Raises:
        UserError: there are no published results on it.
    """
    config = runs[0].config
    metrics = config.evaluation.score_names()
    records = summarise(runs, None)[0].ours
    ours = {metric: float(np.mean([record[metric] for record in records])) for metric in metrics}
    rows = [(entry.scores[dataset], _title(entry), _differences(entry, config)) for entry in find_published(dataset)]
    title = f"> {'this run' if len(runs) == 1 else f'mean of {len(runs)} runs'}, {_network(config)}"
    rows = sorted([*rows, (ours, f"{title} {config.model.embedding_dim}", "")], key=lambda row: -row[0]["recall_at_1"])
    table = [
        ["published results, percent", *map(score_title, metrics)],
        *([title, *(_cell(scores, metric) for metric in metrics)] for scores, title, _ in rows),
    ]
    lines = align(table).splitlines()
    width = max(map(len, lines))
    ends = ["differs in", *(difference for *_, difference in rows)]
    parts = [
        "\n".join(f"{line:{width}}  {end}".rstrip() for line, end in zip(lines, ends, strict=True)),
        "\n".join(textwrap.fill(note, LINE) for note in _notes(runs[0], dataset)),
        "\n".join(textwrap.fill(line, LINE, subsequent_indent="    ") for line in _sources(dataset)),
    ]
    return "\n\n".join(parts)


def _cell(scores: Record, metric: str) -> str:
    return f"{scores[metric]:.2f}" if metric in scores else NONE


def _title(entry: Published) -> str:
    dimensions = "" if entry.dimensions is None else f" {entry.dimensions}"
    return f"[{PUBLISHED.index(entry) + 1}] {entry.method}, {entry.network}{dimensions}"


def _network(config: TrainConfig) -> str:
    return BACKBONES[config.model.backbone].title


def _differences(entry: Published, config: TrainConfig) -> str:
    """Names what makes the comparison with a run unfair, in a few words."""
    unknown = entry.dimensions is None
    differs = {
        "network": entry.network != _network(config),
        "dimensions not stated": unknown,
        "dimensions": not unknown and entry.dimensions != config.model.embedding_dim,
        "protocol": entry.protocol != PROTOCOLS[config.evaluation.protocol],
        "notes": bool(entry.notes),
    }
    return ", ".join(name for name, found in differs.items() if found)


def _notes(run: Run, dataset: str) -> Iterator[str]:
    config = run.config
    yield f"This run: {PROTOCOLS[config.evaluation.protocol]}."
    if not config.model.weights:
        yield "This run started from random weights, all published ones from pretrained weights."
    if config.data.image_size != REFERENCE_PIXELS:
        yield f"This run sees images of {config.data.image_size} pixels; the reference's have {REFERENCE_PIXELS}."
    published = DATASETS[dataset].published if dataset in DATASETS else None
    images = read_list(run.folder)
    if published and images:
        found = Counts(*(sum(image.side == side for image in images) for side in SIDES))
        if found != published:
            yield f"This run has {found}, the published data set {published}: the scores do not compare."


def _sources(dataset: str) -> Iterator[str]:
    numbers: dict[str, list[str]] = {}
    for entry in find_published(dataset):
        about = "; ".join(filter(None, [f"{entry.source}: {entry.protocol}", entry.notes]))
        numbers.setdefault(about, []).append(f"[{PUBLISHED.index(entry) + 1}]")
    yield from (f"{' '.join(entries)} {about}" for about, entries in numbers.items())

"""The page of two runs: which queries one gets right and the other wrong."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from proxynca_jax.config import flatten
from proxynca_jax.errors import UserError
from proxynca_jax.metrics.intervals import interval_over_classes
from proxynca_jax.report.run_page import plots
from proxynca_jax.report.run_page.findings import Findings, class_scores, draw_queries, find
from proxynca_jax.report.run_page.pictures import Pictures
from proxynca_jax.report.run_page.read import Scored, read_scored
from proxynca_jax.report.run_page.render import render
from proxynca_jax.report.run_page.rows import Row, Rows
from proxynca_jax.runs.folder import read_config

SHOWN = 30  # queries that only one run gets right, of each run
FIRST, SECOND, BOTH, NEITHER = "first", "second", "both", "neither"


class _Side(NamedTuple):
    scored: Scored
    found: Findings
    rows: Rows


def two_runs_page(run: pathlib.Path, other: pathlib.Path, kind: str) -> str:
    """Embeds the same evaluation images with two runs and makes a page of what differs.

    Args:
        run: the folder of the first run.
        other: the folder of the second one.
        kind: which of their states, one of `checkpoint.KINDS`.

    Returns:
        HTML.

    Raises:
        UserError: as for `read_scored`, or if the two have other evaluation images.
    """
    for folder in (run, other):
        read_config(folder)  # a wrong folder is an error before minutes of embedding
    pictures = Pictures()
    first, second = (_side(folder, kind, pictures) for folder in (run, other))
    _require_same_images(first.scored, second.scored)
    outcomes = _outcomes(first.found, second.found)
    seed = first.scored.config.seed
    differing: list[tuple[str, Row, Row]] = []
    for outcome in (FIRST, SECOND):
        chosen = draw_queries(outcomes == outcome, SHOWN, seed)
        pairs = zip(first.rows.rows(chosen), second.rows.rows(chosen), strict=True)
        differing += [(outcome, ours, theirs) for ours, theirs in pairs]
    counted = first.found.counted
    gains = second.found.right[counted].astype(np.float64) - first.found.right[counted]
    names, classes = _names(run, other), _classes(first, second)
    recalls = zip(*(row["recalls"] for row in classes), strict=True)
    return render(
        "two_runs.html",
        pictures,
        {"classes": [plots.recalls_of_two(*recalls, classes=[row["name"] for row in classes], names=names)]},
        names=names,
        recalls=[100 * float(side.found.right[counted].mean()) for side in (first, second)],
        gain=100 * float(gains.mean()),
        interval=_percent(interval_over_classes(gains, first.scored.evaluation.queries.labels[counted], seed=seed)),
        counts={name: int((outcomes == name).sum()) for name in (FIRST, SECOND, BOTH, NEITHER)},
        total=int(counted.sum()),
        differing=differing,
        classes=classes,
        settings=_other_settings(first.scored, second.scored),
        states=[
            f"{kind} checkpoint, step {side.scored.step}, weights {side.scored.weights}" for side in (first, second)
        ],
    )


def _side(run: pathlib.Path, kind: str, pictures: Pictures) -> _Side:
    scored = read_scored(run, kind)
    found = find(scored)
    return _Side(scored, found, Rows(scored, found, pictures))


def _require_same_images(first: Scored, second: Scored) -> None:
    ours, theirs = ([split.digests for split in side.evaluation.splits()] for side in (first, second))
    if ours != theirs:
        shared = len({*ours[0]} & {*theirs[0]})  # pyright: ignore[reportOptionalIterable]
        raise UserError(
            f"{first.folder} is evaluated on {len(first.embeddings):,} images and {second.folder} on "
            f"{len(second.embeddings):,}, of which {shared:,} are the same. Two runs are compared query by query, so "
            "they need the same evaluation images in the same order: the same data set, eval_fraction and split_seed."
        )


def _outcomes(first: Findings, second: Findings) -> np.ndarray:
    """Says of each query which run gets it right. Empty: it does not count."""
    outcomes = np.select(
        [first.right & second.right, first.right, second.right], [BOTH, FIRST, SECOND], default=NEITHER
    )
    return np.where(first.counted, outcomes, "")


def _names(run: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Names both runs: by their folders, or by their whole paths if these are called the same."""
    names = [folder.absolute().name for folder in (run, other)]
    return names if names[0] != names[1] else [str(run), str(other)]


def _percent(ends: tuple[float, float]) -> tuple[float, float]:
    return 100 * ends[0], 100 * ends[1]


def _classes(first: _Side, second: _Side) -> list[dict[str, Any]]:
    pairs = zip(class_scores(first.scored, first.found), class_scores(second.scored, second.found), strict=True)
    rows = [
        {
            "name": ours.name,
            "images": ours.images,
            "recalls": (ours.recall_at_1, theirs.recall_at_1),
            "gain": theirs.recall_at_1 - ours.recall_at_1,
        }
        for ours, theirs in pairs
    ]
    return sorted(rows, key=lambda row: row["gain"])


def _other_settings(first: Scored, second: Scored) -> list[tuple[str, Any, Any]]:
    ours, theirs = flatten(first.config), flatten(second.config)
    return [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]

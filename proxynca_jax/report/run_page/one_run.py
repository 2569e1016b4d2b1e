"""The page of one run: what was trained on what, how good it is, where it fails, and whether it is sound."""

import dataclasses
import pathlib
import platform
import shlex
from typing import Any

import numpy as np

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.data.split import sample
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.metrics.intervals import interval_over_classes
from proxynca_jax.models import BACKBONES
from proxynca_jax.report.metric_card import metric_card, versions
from proxynca_jax.report.model_card import PROTOCOLS, describe_start
from proxynca_jax.report.reference import REFERENCES, other_settings
from proxynca_jax.report.run_page import plots
from proxynca_jax.report.run_page.findings import (
    Findings,
    class_scores,
    confusions,
    draw_queries,
    find,
    worst_queries,
)
from proxynca_jax.report.run_page.health import examine
from proxynca_jax.report.run_page.pictures import Pictures
from proxynca_jax.report.run_page.projection import PCA, project
from proxynca_jax.report.run_page.read import Scored, read_scored, read_trained
from proxynca_jax.report.run_page.render import render
from proxynca_jax.report.run_page.rows import RIGHT, WRONG, Rows
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import score, score_at_r

DRAWN, WORST, RIGHT_ONES, PAIRS, PAIR_EXAMPLES = 10, 60, 30, 8, 3  # queries and pairs shown
ON_MAP = 900  # images; each has a picture


def one_run_page(run: pathlib.Path, kind: str, *, projection: str = PCA) -> str:
    """Embeds a run's images and makes its page.

    Args:
        run: the run's folder.
        kind: which of its states, one of `checkpoint.KINDS`.
        projection: of the map, one of `projection.METHODS`.

    Returns:
        HTML.

    Raises:
        UserError: as for `read_scored` and `project`.
    """
    scored = read_scored(run, kind)
    found = find(scored)
    trained = read_trained(scored)
    scores = _scores(scored)
    pictures = Pictures()
    rows = Rows(scored, found, pictures)
    labels, seed = scored.evaluation.queries.labels, scored.config.seed
    drawn = rows.rows(draw_queries(found.counted, DRAWN, seed))  # first, because pictures may not fit all
    worst = rows.rows(worst_queries(found, labels, WORST))
    right = rows.rows(draw_queries(found.right, RIGHT_ONES, seed))
    pairs = [
        {
            "names": [scored.evaluation.queries.class_names[label] for label in (pair.one, pair.other)],
            "times": pair.times,
            "examples": [(rows.query(query), rows.neighbour(query, 0)) for query in pair.queries[:PAIR_EXAMPLES]],
        }
        for pair in confusions(scored, found, PAIRS)
    ]
    classes = class_scores(scored, found)
    health = examine(scored, trained)
    twins = [(rows.query(twin.query), rows.trained(twin.train), twin) for twin in health.twins]
    embedding_map, map_text = _map(scored, found, rows, projection)
    card = metric_card(
        scores,
        scored.embeddings,
        labels,
        scored.config,
        gallery=scored.gallery,
        distance="cosine",
        precision=computed_in(scored.config.model.compute_dtype),
    )
    epoch = {record["step"]: record["epoch"] for record in scored.records}.get(scored.step)
    curves, curve_text, differing = _curves(scored, epoch)
    return render(
        "one_run.html",
        pictures,
        {"curves": curves, "histograms": plots.histograms(classes), "map": [embedding_map]},
        about=_about(scored, epoch),
        recall=100 * float(found.right[found.counted].mean()),
        interval=_interval(found, scored),
        scores=scores,
        before=_before(scored),
        curve_text=curve_text,
        differing=differing,
        drawn=drawn,
        failures=[*worst, *right],
        counts={WRONG: int(found.wrong.sum()), RIGHT: int(found.right.sum())},
        shown={WRONG: len(worst), RIGHT: len(right)},
        pairs=pairs,
        classes=classes,
        map_text=map_text,
        health=health,
        twins=twins,
        card=card,
        settings=_settings(scored.config),
        versions={"Python": platform.python_version()} | versions(),
        weights=scored.weights,
        state=f"{kind} checkpoint, step {scored.step}",
        command=_command(run),
    )


def _scores(scored: Scored) -> Record:
    """The scores of the metric card. NMI, which may take minutes, is that of the log if it has it."""
    config, labels = scored.config, scored.evaluation.queries.labels
    search: dict[str, Any] = {"gallery": scored.gallery}
    record = scored.record() or {}
    logged = {name: record[name] for name in ("nmi", "nmi_average", "kmeans", "kmeans_restarts") if name in record}
    if logged:
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, nmi=False))
    return score(scored.embeddings, labels, config, **search) | logged | score_at_r(scored.embeddings, labels, **search)


def _interval(found: Findings, scored: Scored) -> tuple[float, float]:
    right = found.right[found.counted].astype(np.float64)
    labels = scored.evaluation.queries.labels[found.counted]
    low, high = interval_over_classes(right, labels, seed=scored.config.seed)
    return 100 * low, 100 * high


def _before(scored: Scored) -> float | None:
    """Recall@1 of the test classes before training, in percent, if the log has it."""
    start = [record for record in scored.records if record["step"] == 0 and record["split"] == "test"]
    return start[0].get("recall_at_1") if start else None


def _about(scored: Scored, epoch: int | None) -> dict[str, Any]:
    config, queries = scored.config, scored.evaluation.queries
    protocol = PROTOCOLS[config.evaluation.protocol].format(share=config.evaluation.validation_fraction)
    if config.evaluation.protocol == "reference" and scored.kind == "latest":
        protocol = "This is the last epoch: scores did not choose it."
    return {
        "run": scored.folder.absolute().name,
        "network": f"{BACKBONES[config.model.backbone].title}, {config.model.embedding_dim} numbers for an image",
        "start": describe_start(config.model.weights).replace("`", ""),  # which is Markdown
        "loss": config.loss.name,
        "epochs": None if epoch is None else epoch + 1,
        "planned": config.optim.epochs,
        "data": config.data.dataset,
        "train": f"{len(scored.train.labels):,} images of {len(scored.train.class_names):,} classes",
        "test": f"{len(queries.labels):,} images of {len(np.unique(queries.labels)):,} other classes",
        "gallery": "" if scored.gallery is None else f"a gallery of {len(scored.gallery[1]):,} images",
        "protocol": protocol,
    }


def _curves(scored: Scored, epoch: int | None) -> tuple[Any, str, list[str]]:
    """Returns the plots, what they show, and the settings that differ from those of the reference."""
    config = scored.config
    split = "validation" if config.evaluation.protocol == "validation" else "test"
    records = [record for record in scored.records if record["split"] == split and "evaluation_seconds" in record]
    reference = REFERENCES.get(config.data.dataset) if split == "test" else None
    text = "The circle marks the state that this page is about." if records else "The log has no scores."
    if reference:
        text += " In grey: the PyTorch reference's own run, on all images of the data set, with its own settings."
    differing = other_settings(config, reference) if reference else []
    return plots.curves(records, reference, -2 if epoch is None else epoch, split), text, differing


def _map(scored: Scored, found: Findings, rows: Rows, projection: str) -> tuple[Any, str]:
    queries, places = scored.evaluation.queries, np.array(sample(scored.evaluation.queries, ON_MAP))
    tiles = [rows.query(place) for place in places.tolist()]
    has_picture = np.array([bool(tile.picture) for tile in tiles])
    places, tiles = places[has_picture], [tile for tile in tiles if tile.picture]
    points, text = project(scored.embeddings[places], projection, seed=scored.config.seed)
    plot = plots.embedding_map(
        points,
        queries.labels[places],
        found.right[places],
        names=[tile.class_name for tile in tiles],
        files=[tile.file for tile in tiles],
        pictures=[tile.picture for tile in tiles],
    )
    return plot, f"{len(places):,} of the {len(queries.labels):,} test images, evenly sampled; {text}"


def _settings(config: TrainConfig) -> list[tuple[str, Any, bool]]:
    """Every setting, and whether it differs from the default."""
    defaults = flatten(TrainConfig())
    return [(name, value, value != defaults[name]) for name, value in flatten(config).items()]


def _command(run: pathlib.Path) -> str:
    return f"proxynca train --config {shlex.quote(str(run / 'config.py'))} --run {shlex.quote(f'{run}-again')}"

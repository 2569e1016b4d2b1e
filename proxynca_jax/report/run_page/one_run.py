"""The page of one run: what was trained on what, how good it is, where it fails, and whether it is sound."""

import dataclasses
import pathlib
import platform
import shlex
from typing import Any

import numpy as np
from bokeh.models import LayoutDOM

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.data.split import sample
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.metrics.intervals import interval_over_classes
from proxynca_jax.models import BACKBONES
from proxynca_jax.report.metric_card import metric_card, versions
from proxynca_jax.report.model_card import PROTOCOLS, describe_start
from proxynca_jax.report.reference import REFERENCES, Reference, other_settings
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
    found, trained, scores = find(scored), read_trained(scored), _scores(scored)
    epoch = {record["step"]: record["epoch"] for record in scored.records}.get(scored.step)
    pictures = Pictures()
    rows = Rows(scored, found, pictures)
    # In this order, because pictures may not fit all.
    fields = _first_screen(scored, found, rows, scores, epoch) | _failures(scored, found, rows)
    health = examine(scored, trained)
    fields["twins"] = [(rows.query(twin.query), rows.trained(twin.train), twin) for twin in health.twins]
    embedding_map, fields["map_text"] = _map(scored, found, rows, projection)
    charts = {
        "curves": _curves(scored, epoch),
        "histograms": plots.histograms(fields["classes"]),
        "map": [embedding_map],
    }
    return render("one_run.html", pictures, charts, health=health, **fields, **_card(scored, scores))


def _first_screen(scored: Scored, found: Findings, rows: Rows, scores: Record, epoch: int | None) -> dict[str, Any]:
    """What was trained on what, how good it is, and queries drawn at random."""
    right, labels = found.right[found.counted], scored.evaluation.queries.labels[found.counted]
    ends = interval_over_classes(right.astype(np.float64), labels, seed=scored.config.seed)
    return {
        "about": _about(scored, epoch),
        "recall": 100 * float(right.mean()),
        "interval": [100 * end for end in ends],
        "scores": scores,
        "before": _before(scored),
        "differing": other_settings(scored.config, reference) if (reference := _reference(scored.config)) else None,
        "drawn": rows.rows(draw_queries(found.counted, DRAWN, scored.config.seed)),
    }


def _failures(scored: Scored, found: Findings, rows: Rows) -> dict[str, Any]:
    """The worst queries, the most confused classes, and the score of each class."""
    names = scored.evaluation.queries.class_names
    worst = rows.rows(worst_queries(found, scored.evaluation.queries.labels, WORST))
    right = rows.rows(draw_queries(found.right, RIGHT_ONES, scored.config.seed))
    pairs = [
        {
            "names": [names[pair.one], names[pair.other]],
            "times": pair.times,
            "examples": [(rows.query(query), rows.neighbour(query, 0)) for query in pair.queries[:PAIR_EXAMPLES]],
        }
        for pair in confusions(scored, found, PAIRS)
    ]
    return {
        "failures": [*worst, *right],
        "counts": {WRONG: int(found.wrong.sum()), RIGHT: int(found.right.sum())},
        "shown": {WRONG: len(worst), RIGHT: len(right)},
        "pairs": pairs,
        "classes": class_scores(scored, found),
    }


def _card(scored: Scored, scores: Record) -> dict[str, Any]:
    """The metric card, and what it takes to repeat the run."""
    config, labels = scored.config, scored.evaluation.queries.labels
    precision = computed_in(config.model.compute_dtype)
    search: dict[str, Any] = {"gallery": scored.gallery, "distance": "cosine"}
    defaults = flatten(TrainConfig())
    run = scored.folder
    return {
        "card": metric_card(scores, scored.embeddings, labels, config, precision=precision, **search),
        "state": f"{scored.kind} checkpoint, step {scored.step}",
        "weights": scored.weights,
        "versions": {"Python": platform.python_version()} | versions(),
        "command": shlex.join(["proxynca", "train", "--config", str(run / "config.py"), "--run", f"{run}-again"]),
        "settings": [(name, value, value != defaults[name]) for name, value in flatten(config).items()],
    }


def _scores(scored: Scored) -> Record:
    """The scores of the metric card. NMI, which may take minutes, is that of the log if it has it."""
    config, labels = scored.config, scored.evaluation.queries.labels
    search: dict[str, Any] = {"gallery": scored.gallery}
    record = scored.record() or {}
    logged = {name: record[name] for name in ("nmi", "nmi_average", "kmeans", "kmeans_restarts") if name in record}
    if logged:
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, nmi=False))
    return score(scored.embeddings, labels, config, **search) | logged | score_at_r(scored.embeddings, labels, **search)


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


def _reference(config: TrainConfig) -> Reference | None:
    """The run of the reference to compare with. There is none for validation classes: it scored the test classes."""
    return REFERENCES.get(config.data.dataset) if config.evaluation.protocol == "reference" else None


def _curves(scored: Scored, epoch: int | None) -> list[LayoutDOM]:
    split = "validation" if scored.config.evaluation.protocol == "validation" else "test"
    records = [record for record in scored.records if record["split"] == split and "evaluation_seconds" in record]
    return plots.curves(records, _reference(scored.config), -2 if epoch is None else epoch, split)


def _map(scored: Scored, found: Findings, rows: Rows, projection: str) -> tuple[LayoutDOM, str]:
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

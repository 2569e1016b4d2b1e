"""The comparison as text: tables of runs and scores, and notes."""

import textwrap

from proxynca_jax.report.notes import chance, notes
from proxynca_jax.report.reference import Reference
from proxynca_jax.report.runs import Run, best_epoch, finished_epochs
from proxynca_jax.report.summary import CONFIDENCE, Row, estimate, median_seconds, summarise
from proxynca_jax.report.text_table import LINE, NONE, align
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import score_title

PROTOCOLS = {
    "reference": "every epoch is scored on the test classes",
    "validation": "every epoch is scored on held-out training classes, only the best epoch on the test classes",
}
INTERVAL = f"{CONFIDENCE:.0%} interval"


def describe(runs: list[Run], reference: Reference | None) -> str:
    """Returns the text of the whole report.

    Args:
        runs: of one configuration.
        reference: what to compare them with. None: the report is about the runs alone.
    """
    config = runs[0].config
    metrics = config.evaluation.score_names()
    rows = summarise(runs, reference)
    protocol = config.evaluation.protocol
    parts = [
        f"{config.data.dataset}, protocol {protocol!r}: {PROTOCOLS[protocol]}",
        align(_run_table(runs, reference)),
        align(_score_table(rows, metrics, reference)),
        "\n".join(textwrap.fill(note, LINE) for note in notes(runs, reference)),
        textwrap.fill(chance(rows[0] if protocol == "validation" else rows[2], metrics), LINE),
    ]
    return "\n\n".join(parts)


def _run_table(runs: list[Run], reference: Reference | None) -> list[list[str]]:
    table = [["run", "seed", "epochs", "best epoch", "s/epoch"]]
    for run in runs:
        best = run.test or best_epoch(run.records)
        table.append([str(run.folder), str(run.config.seed), *_pace(run.records, best)])
    if reference:
        table.append([f"reference, {reference.log}", NONE, *_pace(reference.records, best_epoch(reference.records))])
    return table


def _pace(records: list[Record], best: Record) -> list[str]:
    seconds = median_seconds(records)
    return [str(len(finished_epochs(records))), str(best["epoch"]), NONE if seconds is None else f"{seconds:.1f}"]


def _score_table(rows: list[Row], metrics: list[str], reference: Reference | None) -> list[list[str]]:
    table = [["percent", *map(score_title, metrics)]]
    for name, ours, theirs in rows:
        table.append([name])
        columns = [[record[metric] for record in ours] for metric in metrics]
        if len(ours) > 1:
            estimates = [estimate(column) for column in columns]
            spreads = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation, _, _ in estimates]
            table.append([f"  {len(ours)} runs, mean ± sd", *spreads])
            table.append([f"  {INTERVAL}", *(f"{low:.2f} to {high:.2f}" for _, _, low, high in estimates)])
        else:
            table.append(["  this run", *(f"{column[0]:.2f}" for column in columns)])
        if theirs:
            table.append(["  reference", *_scores(theirs, metrics)])
    if reference:
        table.append(["paper (test classes)", *_scores(reference.paper, metrics)])
    return table


def _scores(record: Record, metrics: list[str]) -> list[str]:
    return [f"{record[metric]:.2f}" if metric in record else NONE for metric in metrics]

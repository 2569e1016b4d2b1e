"""Runs become rows of figures, and several runs' figures an interval."""

from typing import NamedTuple

import numpy as np
import scipy.special

from proxynca_jax.report.reference import Reference
from proxynca_jax.report.runs import Run, best_epoch, finished_epochs
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import score_names

LAST_EPOCHS = 5
CONFIDENCE = 0.95


class Row(NamedTuple):
    """One record for each run, and the reference's where it can be compared."""

    title: str
    ours: list[Record]
    reference: Record | None


class Estimate(NamedTuple):
    """A figure over several runs."""

    mean: float
    deviation: float  # standard deviation of a run
    low: float  # ends of the interval of the mean
    high: float


def summarise(runs: list[Run], reference: Reference | None) -> list[Row]:
    """Three rows: best epoch, last epoch and mean of the last five.

    Args:
        runs: of one configuration.
        reference: what to lay beside them.
    """
    titles = "best epoch", "last epoch", f"mean of the last {LAST_EPOCHS} epochs"
    theirs = _three_records(reference.records) if reference else (None, None, None)
    ours = [_three_records(run.records) for run in runs]
    if runs[0].config.evaluation.protocol == "validation":
        titles = "chosen epoch, test classes", *(f"{name}, validation classes" for name in titles[1:])
        theirs = theirs[0], None, None  # test classes are not to be compared with validation classes
        ours = [(run.test, *rest) for run, (_, *rest) in zip(runs, ours, strict=True)]
    columns = zip(*ours, strict=True)
    return [Row(name, list(records), beside) for name, records, beside in zip(titles, columns, theirs, strict=True)]


def estimate(values: list[float]) -> Estimate:
    """Mean, standard deviation and Student's 95 % interval of the mean.

    Args:
        values: one per run, two or more.
    """
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * deviation / len(values) ** 0.5
    return Estimate(mean, deviation, mean - reach, mean + reach)


def median_seconds(records: list[Record]) -> float:
    """Seconds of training of the middle epoch; an epoch that was interrupted counts little."""
    return float(np.median([record["train_seconds"] for record in finished_epochs(records)]))


def _three_records(records: list[Record]) -> tuple[Record, Record, Record]:
    last = finished_epochs(records)[-LAST_EPOCHS:]
    means = {name: float(np.mean([record[name] for record in last])) for name in score_names(last[0])}
    return best_epoch(records), last[-1], means

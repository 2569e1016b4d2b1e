"""Summary statistics of runs: scores of selected epochs, and confidence intervals over several runs."""

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
    """One record per run, and the reference's record if the two can be compared."""

    title: str
    ours: list[Record]
    reference: Record | None


class Estimate(NamedTuple):
    """A score over several runs: mean, spread and confidence interval."""

    mean: float
    deviation: float  # standard deviation between runs
    low: float  # lower end of the confidence interval of the mean
    high: float  # upper end


def summarise(runs: list[Run], reference: Reference | None) -> list[Row]:
    """Returns three rows: best epoch, last epoch and mean of the last five epochs.

    Args:
        runs: of one configuration.
        reference: what to compare them with. None: nothing.
    """
    titles = "best epoch", "last epoch", f"mean of the last {LAST_EPOCHS} epochs"
    theirs = _three_records(reference.records) if reference else (None, None, None)
    ours = [_three_records(run.records) for run in runs]
    if runs[0].config.evaluation.protocol == "validation":
        titles = "chosen epoch, test classes", *(f"{name}, validation classes" for name in titles[1:])
        theirs = theirs[0], None, None  # the reference scored test classes, which validation classes do not compare to
        ours = [(run.test, *rest) for run, (_, *rest) in zip(runs, ours, strict=True)]
    columns = zip(*ours, strict=True)
    return [Row(name, list(records), their) for name, records, their in zip(titles, columns, theirs, strict=True)]


def estimate(values: list[float]) -> Estimate:
    """Computes mean, standard deviation and Student's 95 % confidence interval of the mean.

    Args:
        values: one per run, at least two.
    """
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half_width = float(scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * deviation / len(values) ** 0.5
    return Estimate(mean, deviation, mean - half_width, mean + half_width)


def median_seconds(records: list[Record]) -> float | None:
    """Returns the median of the epochs' training seconds. An interrupted epoch hardly changes a median.

    An epoch that was stopped after its last step has none, as the process that scored it did not train it. None if that
    is so of all epochs.
    """
    seconds = [record["train_seconds"] for record in finished_epochs(records) if "train_seconds" in record]
    return float(np.median(seconds)) if seconds else None


def _three_records(records: list[Record]) -> tuple[Record, Record, Record]:
    last = finished_epochs(records)[-LAST_EPOCHS:]
    means = {name: float(np.mean([record[name] for record in last])) for name in score_names(last[0])}
    return best_epoch(records), last[-1], means

"""Reads training runs of one configuration and different seeds from their folders."""

import pathlib
from typing import NamedTuple

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.errors import UserError
from proxynca_jax.runs.folder import FREE_TO_CHANGE, read_config
from proxynca_jax.runs.log import MetricLog, Record

CHOSEN_BY = "recall_at_1"  # selects the best epoch, as in the reference's README
MAY_DIFFER = FREE_TO_CHANGE | {"seed"}


class Run(NamedTuple):
    """A run: its configuration and its records."""

    folder: pathlib.Path
    config: TrainConfig
    records: list[Record]  # one per epoch, from -1 on
    test: Record | None  # validation protocol: the chosen epoch, scored on the test classes


def finished_epochs(records: list[Record]) -> list[Record]:
    """Returns the records of epochs, without the record of the state before training."""
    return [record for record in records if record["epoch"] >= 0]


def best_epoch(records: list[Record]) -> Record:
    """Returns the record of the epoch with the highest Recall@1."""
    return max(finished_epochs(records), key=lambda record: record[CHOSEN_BY])


def read_runs(folders: list[pathlib.Path]) -> list[Run]:
    """Reads runs and checks that they can be averaged.

    Args:
        folders: of one run or more.

    Raises:
        UserError: a folder is not that of a run, a run has no scores to compare yet, runs differ in more than their
            seeds, or two runs have the same seed.
    """
    first, *others = runs = [_read_run(folder) for folder in folders]
    for other in others:
        if rows := _differences(first, other):
            raise UserError(
                "runs are averaged, so they may differ only in their seeds. These runs also differ in\n"
                f"{rows}\nCompare them one at a time."
            )
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"the runs have the seeds {seeds}; each run needs another seed. Leave out the duplicates.")
    return runs


def _differences(one: Run, other: Run) -> str:
    fields, others = flatten(one.config), flatten(other.config)
    return "\n".join(
        f"  {name}: {fields[name]!r} in {one.folder}, {others[name]!r} in {other.folder}"
        for name in fields
        if fields[name] != others[name] and name not in MAY_DIFFER
    )


def _read_run(folder: pathlib.Path) -> Run:
    config = read_config(folder)
    records = MetricLog(folder).records()
    validation = config.evaluation.protocol == "validation"
    test = None
    if validation:
        tests = [record for record in records if record["split"] == "test"]
        test = tests[-1] if tests else None  # an extended run also has an earlier one, of fewer epochs
        records = [record for record in records if record["split"] == "validation"]
    if not finished_epochs(records):
        raise UserError(f"{folder} has no finished epoch yet. Train it for at least one epoch.")
    if validation and test is None:
        raise UserError(f"{folder} has not been scored on its test classes yet. Let the run end.")
    if 1 not in config.evaluation.recall_at:
        raise UserError(f"{folder} has no Recall@1, which selects the best epoch: evaluation.recall_at needs 1.")
    return Run(folder, config, records, test)

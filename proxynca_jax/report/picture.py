"""Plots a comparison: loss, Recall@1 and NMI by epoch."""

import io
import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.report.reference import Reference
from proxynca_jax.report.runs import Run, best_epoch
from proxynca_jax.runs.log import Record

PANELS = {"train_loss": "Training loss (nats)", "recall_at_1": "Recall@1 (%)", "nmi": "NMI (%)"}
OURS, THEIRS = "#0067b1", "#444444"


def draw(runs: list[Run], reference: Reference | None, path: pathlib.Path) -> None:
    """Plots the runs, the reference and the paper into a PNG file.

    Args:
        runs: of one configuration.
        reference: what to compare them with. None: nothing.
        path: the PNG file to write.

    Raises:
        UserError: if it cannot be written.
    """
    panels = {metric: label for metric, label in PANELS.items() if metric in runs[0].records[-1]}
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharex=True)
    for axes, (metric, label) in zip(all_axes, panels.items(), strict=True):
        axes.set(xlabel="Epoch", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if reference:
            _draw_reference(axes, metric, reference, curve=runs[0].test is None)
        _draw_runs(axes, metric, runs)
    handles, labels = all_axes[1].get_legend_handles_labels()  # Recall@1 has every kind of line
    legend = dict(zip(labels, handles, strict=True))  # one entry for all runs
    place = {"loc": "outside upper center", "ncols": len(legend), "fontsize": "small", "frameon": False}
    figure.legend(legend.values(), legend.keys(), **place)
    content = io.BytesIO()
    figure.savefig(content, dpi=200, format="png")
    replace_file(path, content.getvalue())


def _draw_reference(axes: Axes, metric: str, reference: Reference, *, curve: bool) -> None:
    """Plots the paper and the reference. `curve` is False if the runs' curves are of other classes."""
    best = best_epoch(reference.records)
    if metric in reference.paper:
        axes.axhline(reference.paper[metric], color=THEIRS, linestyle=":", linewidth=1.2, label="paper")
    if curve and metric in best:
        axes.plot(*_curve(reference.records, metric), color=THEIRS, linewidth=1.5, label="reference")
    _mark(axes, metric, best, color=THEIRS, label="reference's best epoch")


def _draw_runs(axes: Axes, metric: str, runs: list[Run]) -> None:
    several, validation = len(runs) > 1, runs[0].test is not None
    curves = [_curve(run.records, metric) for run in runs]
    if several:
        for epochs, values in curves:
            axes.plot(epochs, values, color=OURS, linewidth=0.7, alpha=0.5, label="each run")
    shared = min((epochs for epochs, _ in curves), key=len)
    mean = np.mean([values[: len(shared)] for _, values in curves], axis=0)
    name = f"mean of {len(runs)} runs" if several else "this run"
    axes.plot(shared, mean, color=OURS, linewidth=1.8, label=name + ", validation" * validation)
    name = f"{'each' if several else 'this'} run's {'chosen epoch, test' if validation else 'best epoch'}"
    for run in runs:
        _mark(axes, metric, run.test or best_epoch(run.records), color=OURS, label=name)


def _curve(records: list[Record], metric: str) -> tuple[list[int], list[float]]:
    """Returns the epochs that have this metric, and its values. The state before training has scores but no loss."""
    shown = [record for record in records if metric in record]
    return [record["epoch"] for record in shown], [record[metric] for record in shown]


def _mark(axes: Axes, metric: str, best: Record, *, color: str, label: str) -> None:
    """Marks the best epoch. The loss gets no mark, because scores chose the epoch."""
    if metric in best and metric != "train_loss":
        axes.plot(best["epoch"], best[metric], "o", color=color, markeredgecolor="white", label=label)

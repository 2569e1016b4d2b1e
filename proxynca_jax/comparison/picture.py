"""The comparison as a picture: loss, Recall@1 and NMI of each epoch."""

import pathlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxynca_jax.comparison.reference import Reference
from proxynca_jax.comparison.runs import Run, best_epoch
from proxynca_jax.metric_log import Record

PANELS = {"train_loss": "Training loss (nats)", "recall_at_1": "Recall@1 (%)", "nmi": "NMI (%)"}
OURS, THEIRS = "#0067b1", "#444444"


def draw(runs: list[Run], reference: Reference | None, path: pathlib.Path) -> None:
    """Draws the runs over the reference and the paper.

    Args:
        runs: of one configuration.
        reference: what to draw them over.
        path: the PNG file to write.
    """
    panels = {metric: label for metric, label in PANELS.items() if metric in runs[0].records[-1]}
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.set(xlabel="Epoch", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if reference:
            _draw_reference(axes, metric, reference, curve=runs[0].test is None)
        _draw_runs(axes, metric, runs)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=200)


def _draw_reference(axes: Axes, metric: str, reference: Reference, *, curve: bool) -> None:
    """Draws the paper and the reference, its curve only beside curves on the same classes."""
    if metric in reference.paper:
        axes.axhline(reference.paper[metric], color=THEIRS, linestyle=":", linewidth=1.2, label="paper")
    best = best_epoch(reference.records)
    if metric not in best:
        return
    if curve:
        axes.plot(*_curve(reference.records, metric), color=THEIRS, linewidth=1.5, label="reference")
    _mark(axes, best, metric, color=THEIRS, label="reference, best epoch")


def _draw_runs(axes: Axes, metric: str, runs: list[Run]) -> None:
    classes = " on validation classes" if runs[0].test else ""
    curves = [_curve(run.records, metric) for run in runs]
    single = len(runs) == 1
    for run, (epochs, values) in zip(runs, curves, strict=True):
        label = f"this run{classes}" if single else f"each of {len(runs)} runs{classes}"
        axes.plot(
            epochs, values, color=OURS, linewidth=1.8 if single else 0.7, alpha=1 if single else 0.45, label=label
        )
    if not single:
        shared = min(len(epochs) for epochs, _ in curves)
        mean = np.mean([values[:shared] for _, values in curves], axis=0)
        axes.plot(curves[0][0][:shared], mean, color=OURS, linewidth=1.8, label="their mean")
    for run in runs:
        _mark(axes, run.test or best_epoch(run.records), metric, color=OURS, label=...)


def _curve(records: list[Record], metric: str) -> tuple[list[float], list[float]]:
    """Epochs and their values; the state before training has scores but no loss."""
    shown = [record for record in records if metric in record]
    return [record["epoch"] for record in shown], [record[metric] for record in shown]


def _mark(axes: Axes, record: Record, metric: str, *, color: str, label: str) -> None:
    axes.plot(record["epoch"], record[metric], "o", color=color, markeredgecolor="white", markersize=7, label=label)

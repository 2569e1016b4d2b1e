"""The interactive plots of a page, by Bokeh."""

import colorsys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource, CustomJSHover, DataRange1d, HoverTool, LayoutDOM
from bokeh.plotting import figure
from jaxtyping import Bool, Float32, Int

from proxynca_jax.report.reference import Reference
from proxynca_jax.report.run_page.findings import ClassScore
from proxynca_jax.runs.log import Record

OURS, OURS_TOO, THEIRS = "#0969da", "#bc4c00", "#8c959f"
BINS = 20
MAP_SOURCE = "map"  # the name by which the page's script finds the points
# Bokeh escapes what stands for @name. The picture comes from the page's own table.
HOVER = """<div class="hover"><img src="@picture{custom}" alt=""><br>@name<br>@file<br>@outcome</div>"""
PICTURE_OF = "return PICTURES[value] || ''"


def curves(records: Sequence[Record], reference: Reference | None, chosen: int, split: str) -> list[LayoutDOM]:
    """Plots Recall@1 and the training loss by epoch, in a plot each.

    Args:
        records: of the evaluations, one per epoch.
        reference: whose curve is behind the run's. None: there is none.
        chosen: the epoch of the state that the page is about.
        split: on which classes the run was scored.
    """
    plots = []
    for metric, title in (("recall_at_1", f"Recall@1 of the {split} classes, %"), ("train_loss", "training loss")):
        plot = _figure(title, "epoch (−1: before training)" if metric == "recall_at_1" else "epoch")
        plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
        if reference:
            _line(plot, reference.records, metric, "PyTorch reference", THEIRS)
        _line(plot, records, metric, "this run", OURS)
        marked = [record for record in records if record["epoch"] == chosen and metric in record]
        for record in marked:
            plot.scatter([record["epoch"]], [record[metric]], size=13, fill_alpha=0, line_width=2, color=OURS)
        plots.append(plot)
    return plots


def _line(plot: figure, records: Sequence[Record], metric: str, name: str, colour: str) -> None:
    shown = [record for record in records if metric in record]
    if shown:
        epochs, values = [record["epoch"] for record in shown], [record[metric] for record in shown]
        plot.line(epochs, values, color=colour, line_width=2, legend_label=name)
        points = plot.scatter(epochs, values, color=colour, size=6, legend_label=name)
        plot.add_tools(HoverTool(renderers=[points], tooltips=f"{name}, epoch @x: @y{{0.00}}"))
        plot.legend.location = "bottom_right" if metric == "recall_at_1" else "top_right"
        plot.legend.background_fill_alpha = 0.7


def histograms(classes: Sequence[ClassScore]) -> list[LayoutDOM]:
    """Plots how many classes have which Recall@1, and which MAP@R."""
    edges = np.linspace(0, 100, BINS + 1)
    plots = []
    for title, values, colour in (
        ("classes by Recall@1, %", [score.recall_at_1 for score in classes], OURS),
        ("classes by MAP@R, %", [score.map_at_r for score in classes], OURS_TOO),
    ):
        counts, _ = np.histogram(values, edges)
        plot = _figure(title, "")
        bars = plot.quad(left=edges[:-1], right=edges[1:], top=counts, bottom=0, color=colour, line_color="white")
        plot.add_tools(HoverTool(renderers=[bars], tooltips="@left to @right %: @top classes"))
        plot.y_range = DataRange1d(start=0)
        plots.append(plot)
    return plots


def recalls_of_two(
    first: Sequence[float], second: Sequence[float], *, classes: Sequence[str], names: Sequence[str]
) -> LayoutDOM:
    """Plots the Recall@1 of each class with two runs. Above the line the second one is better.

    Args:
        first: of the first run, in percent.
        second: of the second run.
        classes: the classes' names.
        names: of the runs.
    """
    plot = figure(height=420, sizing_mode="stretch_width", tools="", toolbar_location=None)
    plot.xaxis.axis_label, plot.yaxis.axis_label = names
    plot.line([0, 100], [0, 100], color=THEIRS, line_dash="dashed")
    source = ColumnDataSource({"x": list(first), "y": list(second), "name": list(classes)})
    points = plot.scatter("x", "y", source=source, size=9, color=OURS, alpha=0.5)
    plot.add_tools(HoverTool(renderers=[points], tooltips="@name: @x{0.0} and @y{0.0} %", limit=5))
    return plot


def embedding_map(
    points: Float32[np.ndarray, "images 2"],
    labels: Int[np.ndarray, " images"],
    right: Bool[np.ndarray, " images"],
    *,
    names: Sequence[str],
    files: Sequence[str],
    pictures: Sequence[str],
) -> LayoutDOM:
    """Plots the embeddings, coloured by class. Circles are right, crosses wrong.

    Args:
        points: from `projection.project`.
        labels: class of each image.
        right: whether the nearest image of each is of its class.
        names: the class's name of each image.
        files: the name of each image.
        pictures: the key of each image's picture.
    """
    source = ColumnDataSource(
        {
            "x": points[:, 0],
            "y": points[:, 1],
            "colour": _colours(labels.tolist()),
            "alpha": np.full(len(points), 0.75, np.float32),
            "marker": np.where(right, "circle", "x").tolist(),
            "outcome": np.where(right, "right", "wrong").tolist(),
            "name": list(names),
            "file": list(files),
            "picture": list(pictures),
        },
        name=MAP_SOURCE,
    )
    plot = figure(height=520, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset", match_aspect=True)
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.grid_line_color = None
    drawn = plot.scatter(
        "x", "y", source=source, marker="marker", size=8, fill_color="colour", line_color="colour", alpha="alpha"
    )
    formatters: dict[str, Any] = {"@picture": CustomJSHover(code=PICTURE_OF)}
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=HOVER, formatters=formatters, limit=3))
    return plot


def _colours(labels: Iterable[int]) -> list[str]:
    """A colour for each class. Neighbouring numbers get hues that are far apart."""
    colours = []
    for label in labels:
        parts = colorsys.hls_to_rgb(label * 0.618034 % 1, (0.38, 0.5, 0.62)[label % 3], 0.7)
        colours.append("#" + "".join(f"{round(255 * part):02x}" for part in parts))
    return colours


def _figure(title: str, x_title: str) -> figure:
    plot = figure(title=title, x_axis_label=x_title, height=230, sizing_mode="stretch_width", tools="")
    plot.toolbar_location = None
    return plot

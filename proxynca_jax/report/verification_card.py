"""The lines of verification and of open-set identification on the metric card, and the picture of the ROC curve."""

import pathlib
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxynca_jax.machine.atomic_file import replacing
from proxynca_jax.metrics.identification import Identification
from proxynca_jax.metrics.verification import OperatingPoint, Verification

COLOUR = "#0067b1"
Interval = tuple[float | None, float | None]


def verification_card(found: Verification) -> str:
    """Formats a verification as lines of the metric card, rates in percent."""
    return "\n".join(_verification(found))


def identification_card(found: Identification) -> str:
    """Formats an open-set identification as lines of the metric card, rates in percent."""
    return "\n".join(_identification(found))


def _verification(found: Verification) -> Iterator[str]:
    at_eer = f"threshold {found.eer_threshold:.4f}{_interval((found.eer_low, found.eer_high))}"
    yield f"{'EER':<12}{100 * found.eer:6.2f} %  {at_eer}"
    yield f"{'AUC':<12}{100 * found.auc:6.2f} %  of the curve of true and false accept rates"
    for point in found.operating_points:
        rates = _interval((point.tar_low, point.tar_high))
        threshold = f"threshold {point.threshold:.4f}{rates}; {point.false_accepts:,} false accepts"
        yield f"{f'TAR@{rate(point.far)}':<12}{100 * point.tar:6.2f} %  {threshold}"
    for far, needed in found.too_few.items():
        yield (
            f"{f'TAR@{rate(far)}':<12}   not measured: it needs {needed:,} pairs of two classes, and there are "
            f"{found.impostor_pairs:,}"
        )
    pairs = f"{found.genuine_pairs:,} of one class and {found.impostor_pairs:,} of two, by cosine similarity"
    yield f"{'pairs':<12}{pairs}; [ ]: 95 % interval over {found.classes:,} classes"


def _identification(found: Identification) -> Iterator[str]:
    for point in found.points:
        meaning = f"threshold {point.threshold:.4f}; {point.false_alarms:,} false alarms"
        yield f"{f'DIR@{rate(point.false_alarm_rate)}':<12}{100 * point.dir:6.2f} %  {meaning}"
    for false_alarm_rate, needed in found.too_few.items():
        yield (
            f"{f'DIR@{rate(false_alarm_rate)}':<12}   not measured: it needs {needed:,} probes of other classes, and "
            f"there are {found.unknown_probes:,}"
        )
    yield (
        f"{'open set':<12}{found.enrolled_images:,} images of {found.enrolled_classes:,} classes enrolled; probes: "
        f"{found.known_probes:,} of these classes ({100 * found.rank_1:.2f} % right without a threshold), "
        f"{found.unknown_probes:,} of others"
    )


def rate(value: float) -> str:
    """Formats a rate as `1e-3`."""
    return f"{value:.0e}".replace("e-0", "e-")


def _interval(ends: Interval) -> str:
    low, high = ends
    return "" if low is None or high is None else f" [{100 * low:.2f} to {100 * high:.2f}]"


def draw_roc(found: Verification, path: pathlib.Path) -> None:
    """Plots the ROC curve with its interval and the operating points into a PNG file.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    curve = found.curve
    kept = curve.far > 0
    far, tar, low, high = (100 * values[kept] for values in curve)
    axes.fill_between(far, low, high, color=COLOUR, alpha=0.2, linewidth=0, label="95 % interval over classes")
    axes.plot(far, tar, color=COLOUR, linewidth=1.8, label=f"EER {100 * found.eer:.2f} %, AUC {100 * found.auc:.2f} %")
    for number, point in enumerate(found.operating_points):
        _mark(axes, point, label=None if number else "operating points, with thresholds")
    axes.set(xscale="log", xlabel="False accept rate (%)", ylabel="True accept rate (%)", ylim=(0, 102))
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize="small", frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=200, format="png")


def _mark(axes: Axes, point: OperatingPoint, *, label: str | None) -> None:
    place = (100 * point.far, 100 * point.tar)
    axes.plot(*place, "o", color=COLOUR, markeredgecolor="white", label=label)
    text = f"{point.threshold:.3f}"
    axes.annotate(text, place, (-4, 5), textcoords="offset points", fontsize="x-small", ha="right")

"""What the figures of a comparison do not say by themselves."""

from collections.abc import Iterator

from proxynca_jax.report.reference import REFERENCES, Reference, other_settings
from proxynca_jax.report.runs import Run, best_epoch, finished_epochs
from proxynca_jax.report.summary import CONFIDENCE, LAST_EPOCHS, Row, estimate
from proxynca_jax.scores import score_title


def notes(runs: list[Run], reference: Reference | None) -> Iterator[str]:
    """Says how the epochs were chosen and what stands between the figures and a fair comparison.

    Args:
        runs: of one configuration.
        reference: what they are laid beside.
    """
    config = runs[0].config
    evaluation = config.evaluation
    who = "the reference and these runs alike" if reference else "these runs"
    if evaluation.protocol == "validation":
        yield (
            f"The epoch was chosen by {config.checkpoint.best_metric} on classes held out of training, "
            f"{evaluation.validation_fraction:.0%} of the training classes. The test classes had no part in it."
        )
        who = "the reference"
    if reference or evaluation.protocol == "reference":
        yield (
            f'"Best epoch" of {who}: the one of highest R@1 on the evaluation (test) classes. '
            "It was chosen on the classes that it is scored on, which flatters it."
        )
    if reference:
        yield from _reference_notes(runs, reference)
    else:
        known = ", ".join(REFERENCES)
        yield f"No reference is known for data set {config.data.dataset!r}; --reference names one: {known}."
    averaged = [min(LAST_EPOCHS, len(finished_epochs(run.records))) for run in runs]
    if min(averaged) < LAST_EPOCHS:
        yield f"Fewer than {LAST_EPOCHS} epochs are finished; epochs averaged: {', '.join(map(str, averaged))}."
    compared = [*runs, reference] if reference else runs
    if len({entry.records[-1]["epoch"] for entry in compared}) > 1:
        yield "The last epochs are not the same epoch: see the table of runs."
    if evaluation.nmi:
        definition = (
            f"{evaluation.nmi_average} mean of the entropies, best of {evaluation.kmeans_restarts} k-means runs"
        )
        theirs = "the geometric or arithmetic mean, depending on its scikit-learn version, and 10 k-means runs"
        whose = f" K-means here is that of {evaluation.kmeans!r}."
        yield f"NMI: {definition}." + f" The reference took {theirs}." * bool(reference) + whose


def _reference_notes(runs: list[Run], reference: Reference) -> Iterator[str]:
    best, quoted = best_epoch(reference.records), reference.records[reference.quoted_epoch + 1]
    if best is not quoted:
        yield (
            f"The reference's README quotes epoch {quoted['epoch']}, R@1 {quoted['recall_at_1']:.2f}; "
            f"its log is highest at epoch {best['epoch']}."
        )
    if not runs[0].config.model.weights:
        yield "The runs started from random weights, the reference from weights pretrained on ImageNet."
    if settings := other_settings(runs[0].config, reference):
        yield f"Settings other than the reference's: {', '.join(settings)}."


def chance(row: Row, metrics: list[str]) -> str:
    """Says whether chance may explain the distance to the reference.

    Args:
        row: the figures to judge.
        metrics: which of them.
    """
    runs = len(row.ours)
    if runs == 1:
        return "One run gives no interval: nothing can be said of chance."
    interval = f"{CONFIDENCE:.0%} interval: Student's t, of the mean of {runs} runs."
    if row.reference is None:
        return interval
    sides: dict[str, list[str]] = {"inside": [], "outside": []}
    for metric in metrics:
        if metric in row.reference:
            ours = estimate([record[metric] for record in row.ours])
            theirs = row.reference[metric]
            side = "inside" if ours.low <= theirs <= ours.high else "outside"
            sides[side].append(f"{score_title(metric)} {theirs:.2f}")
    found = "; ".join(f"{', '.join(figures)} {side}" for side, figures in sides.items() if figures)
    return (
        f"{interval} The reference's figures for the {row.title}: {found}. "
        "The reference is one run, whose own chance the interval leaves out."
    )

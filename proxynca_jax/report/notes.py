"""Notes under a comparison: how epochs were chosen, what differs from the reference, and the role of chance."""

from collections.abc import Iterator

from proxynca_jax.report.reference import REFERENCES, Reference, other_settings
from proxynca_jax.report.runs import Run, best_epoch, finished_epochs
from proxynca_jax.report.summary import CONFIDENCE, LAST_EPOCHS, Row, estimate
from proxynca_jax.scores import score_title


def notes(runs: list[Run], reference: Reference | None) -> Iterator[str]:
    """Yields notes: how the epochs were chosen, and what makes the comparison with the reference unfair.

    Args:
        runs: of one configuration.
        reference: what the runs are compared with. None: nothing.
    """
    config = runs[0].config
    evaluation = config.evaluation
    who = "the reference and of these runs" if reference else "these runs"
    if evaluation.protocol == "validation":
        yield (
            f"The epoch was chosen by {config.checkpoint.best_metric} on classes held out of training, "
            f"{evaluation.validation_fraction:.0%} of the training classes. The test classes were not used for it."
        )
        who = "the reference"
    if reference or evaluation.protocol == "reference":
        yield (
            f'"Best epoch" of {who}: the one of highest R@1 on the evaluation (test) classes. '
            "It was chosen on the classes that it is scored on, so its scores are optimistic."
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
        yield "The runs do not end at the same epoch: see the table of runs."
    if evaluation.nmi:
        definition = (
            f"{evaluation.nmi_average} mean of the entropies, best of {evaluation.kmeans_restarts} k-means runs"
        )
        theirs = "the geometric or arithmetic mean, depending on its scikit-learn version, and 10 k-means runs"
        implementation = f" K-means implementation: {evaluation.kmeans!r}."
        yield f"NMI: {definition}." + f" The reference took {theirs}." * bool(reference) + implementation


def _reference_notes(runs: list[Run], reference: Reference) -> Iterator[str]:
    best, quoted = best_epoch(reference.records), reference.records[reference.quoted_epoch + 1]
    if best is not quoted:
        yield (
            f"The reference's README quotes epoch {quoted['epoch']}, R@1 {quoted['recall_at_1']:.2f}; "
            f"in its log, R@1 is highest at epoch {best['epoch']}."
        )
    if not runs[0].config.model.weights:
        yield "The runs started from random weights, the reference from weights pretrained on ImageNet."
    if settings := other_settings(runs[0].config, reference):
        yield f"Settings that differ from the reference's: {', '.join(settings)}."


def chance(row: Row, metrics: list[str]) -> str:
    """Returns a note on whether chance may explain the difference from the reference.

    Args:
        row: scores of the runs and of the reference.
        metrics: the scores to test.
    """
    runs = len(row.ours)
    if runs == 1:
        return "One run gives no confidence interval, so a difference may be due to chance."
    interval = f"{CONFIDENCE:.0%} interval: Student's t, for the mean of {runs} runs."
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
        "The reference is a single run; the interval does not include its variation."
    )

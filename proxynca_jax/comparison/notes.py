"""What the figures of a comparison do not say by themselves."""

from collections.abc import Iterator

from proxynca_jax.comparison.reference import Reference, other_settings
from proxynca_jax.comparison.runs import Run, best_epoch, finished_epochs
from proxynca_jax.comparison.summary import CONFIDENCE, LAST_EPOCHS, Row, estimate, title


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
        yield f"No reference is known for data set {config.data.dataset!r}; --reference names one: cub, cars or sop."
    if short := [f"{len(epochs)} of {folder}" for folder, epochs in _epochs(runs) if len(epochs) < LAST_EPOCHS]:
        yield f"Fewer than {LAST_EPOCHS} epochs: the mean is over the {' and the '.join(short)}."
    if evaluation.nmi:
        definition = (
            f"{evaluation.nmi_average} mean of the entropies, best of {evaluation.kmeans_restarts} k-means runs"
        )
        theirs = "the geometric or arithmetic mean, depending on its scikit-learn version, and 10 k-means runs"
        yield f"NMI: {definition}." + f" The reference took {theirs}." * bool(reference)


def _reference_notes(runs: list[Run], reference: Reference) -> Iterator[str]:
    best, quoted = best_epoch(reference.records), reference.records[reference.quoted_epoch + 1]
    if best is not quoted:
        yield (
            f"The reference's README quotes epoch {quoted['epoch']}, R@1 {quoted['recall_at_1']:.2f}; "
            f"its log is highest at epoch {best['epoch']}."
        )
    if settings := other_settings(runs[0].config, reference):
        yield f"Settings other than the reference's: {', '.join(settings)}."
    lengths = {len(epochs) for _, epochs in _epochs(runs)}
    if lengths != {len(finished_epochs(reference.records))}:
        yield "The runs and the reference did not train for equally many epochs: see the table of runs."


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
            sides[side].append(f"{title(metric)} {theirs:.2f}")
    found = "; ".join(f"{side} {', '.join(figures) or 'none'}" for side, figures in sides.items())
    return f"{interval} The reference's {row.title}: {found}. It is one run, whose own chance the interval leaves out."

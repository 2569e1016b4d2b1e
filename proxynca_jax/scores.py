"""Scores of embeddings as a record: how they are computed, named and printed."""

import re
import warnings

import numpy as np
from jaxtyping import Float, Int

from proxynca_jax.config import TrainConfig, recall_name
from proxynca_jax.metrics.clustering import nmi
from proxynca_jax.metrics.retrieval import LabelledVectors, mean_precisions, precisions_at_r, ranks, recall_at_k
from proxynca_jax.metrics.vectors import spread
from proxynca_jax.runs.log import Record

COLLAPSED = 1e-4  # spread below this. BN-Inception with random weights has 0.02 on glyphs, trained networks above 0.5


def score(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    config: TrainConfig,
    *,
    gallery: LabelledVectors | None = None,
    distance: str = "cosine",
) -> Record:
    """Recall@K and, where asked for, NMI, in percent as the field quotes them, with what NMI depends on.

    With the cosine distance, the record also has the spread of the embeddings' directions, `spread`, from 0 to 1, and
    `collapsed` if it is as good as 0.

    Args:
        embeddings: one finite vector an image.
        labels: class of each image.
        config: which scores; its seed is that of k-means.
        gallery: vectors and labels of the images to search; None: the queries themselves. NMI is of the queries alone.
        distance: one of `vectors.DISTANCES`. NMI's k-means takes the Euclidean one of the vectors as they are.

    Raises:
        UserError: if a vector is not finite, or no image has another of its class to find.
    """
    evaluation = config.evaluation
    recalls = recall_at_k(ranks(embeddings, labels, gallery=gallery, distance=distance), evaluation.recall_at)
    record: Record = {recall_name(k): 100 * share for k, share in recalls.items()}
    if distance == "cosine":
        record |= _describe_spread(embeddings)
    if evaluation.nmi:
        average, restarts = evaluation.nmi_average, evaluation.kmeans_restarts
        kmeans = evaluation.kmeans
        options = {"restarts": restarts, "average": average, "seed": config.seed, "implementation": kmeans}
        share = nmi(embeddings, labels, **options)
        record |= {"nmi": 100 * share, "nmi_average": average, "kmeans": kmeans, "kmeans_restarts": restarts}
    return record


def _describe_spread(embeddings: Float[np.ndarray, "images dim"]) -> Record:
    """The embeddings' spread, and `collapsed` if it is that of a collapsed network, which is also said."""
    if (found := spread(embeddings)) >= COLLAPSED:
        return {"spread": found}
    warnings.warn(
        f"the embeddings have collapsed: their mean squared distance from their mean direction is {found:.1e}, so they "
        "hardly tell images apart. Training with lower learning rates, or from other weights, may help.",
        stacklevel=2,
    )
    return {"spread": found, "collapsed": True}


def score_at_r(
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    *,
    gallery: LabelledVectors | None = None,
    distance: str = "cosine",
) -> Record:
    """MAP@R and R-precision, in percent, and `left_out`, the number of images that have nothing to find.

    Args:
        embeddings: as for `score`.
        labels: as for `score`.
        gallery: as for `score`.
        distance: as for `score`.

    Raises:
        UserError: as for `score`.
    """
    average_precisions, r_precisions = precisions_at_r(embeddings, labels, gallery=gallery, distance=distance)
    scores = mean_precisions(average_precisions, r_precisions)
    return {name: 100 * share for name, share in scores.items()} | {"left_out": int(np.isnan(r_precisions).sum())}


def score_names(record: Record) -> list[str]:
    """Names of the scores that a record of training contains, in its order."""
    return [name for name in record if name == "nmi" or re.fullmatch(r"recall_at_\d+", name)]


def score_title(name: str) -> str:
    """The field's name of a score: `R@1`, `NMI`."""
    return name.replace("recall_at_", "R@").upper()


def describe_scores(record: Record) -> str:
    """The scores of a record as one line, in percent: `R@1 52.63  R@2 64.10  NMI 60.64`."""
    return "  ".join(f"{score_title(name)} {record[name]:.2f}" for name in score_names(record))


def describe_record(record: Record) -> str:
    """Formats a record in one line: the number of its epoch, loss, pace and scores, or scores on the test classes."""
    if "evaluation_seconds" not in record:  # scored once, at the end
        return f"test classes, at that epoch  {describe_scores(record)}"
    parts = [f"epoch {record['epoch']}"]
    if "backbone_frozen" in record:
        parts.append("backbone frozen")
    if "train_loss" in record:
        parts.append(f"loss {record['train_loss']:.4f}")
    if "train_seconds" in record:
        parts.append(f"{record['train_seconds']:.1f} s  {record['images_per_second']:.1f} img/s")
        parts.append(f"data wait {record['data_wait_share']:.0%}")
    return "  ".join([*parts, describe_scores(record), f"evaluated in {record['evaluation_seconds']:.1f} s"])

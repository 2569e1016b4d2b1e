"""The metric card: scores, the definition of each, and the settings that they depend on.

Papers define Recall@K and NMI differently under the same names. The card states the definitions used here.
"""

import importlib.metadata
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from proxynca_jax.config import TrainConfig, recall_name
from proxynca_jax.metrics.retrieval import LabelledVectors
from proxynca_jax.runs.log import Record
from proxynca_jax.version import __version__

SPREAD = "{:.2g}, the mean squared distance of unit vectors from their mean; 0 is a collapse"
KMEANS = {"device": "proxynca_jax's k-means", "scikit-learn": "scikit-learn's k-means"}


def versions() -> dict[str, str]:
    """Returns the versions of this package and of the packages that compute the scores."""
    packages = ("jax", "numpy", "scikit-learn")
    return {"proxynca_jax": __version__} | {name: importlib.metadata.version(name) for name in packages}


def metric_card(
    scores: Record,
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    config: TrainConfig,
    *,
    gallery: LabelledVectors | None,
    distance: str,
    precision: str | None,
) -> str:
    """Formats the metric card as text.

    Args:
        scores: from `scores.score` and `scores.score_at_r`, computed from the other arguments.
        embeddings: of the scored images.
        labels: class of each image.
        config: the evaluation's settings and seed.
        gallery: vectors and labels of the images that the queries search; None: the queries, each without itself.
            NMI is of the queries alone.
        distance: one of `vectors.DISTANCES`.
        precision: of the network that computed the embeddings, one of `precision.PRECISIONS`, perhaps with the library
            that computed it. None: unknown.

    Returns:
        The card, several lines.
    """
    facts = {
        "R": "for each image: the number of other images of its class in the gallery",
        **_describe_images(scores, embeddings, labels, gallery),
        **({"spread": SPREAD.format(scores["spread"])} if "spread" in scores else {}),
        **({"network": f"convolutions in {precision}"} if precision else {}),
        "neighbours": f"exact, by {distance.replace('_', ' ')} distance; ties go against the query",
        **(_describe_clusters(scores, labels, config, gallery) if config.evaluation.nmi else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    rows = [f"{name:<12}{value:6.2f} %  {meaning}" for name, value, meaning in defined_scores(scores, config)]
    return "\n".join([*rows, "", *(f"{name:<12}{fact}" for name, fact in facts.items())])


def defined_scores(scores: Record, config: TrainConfig) -> Iterator[tuple[str, float, str]]:
    """Yields the name of each score, its value in percent and its definition.

    Source of MAP@R and R-precision: arXiv 2003.08505, section 3.2.

    Args:
        scores: of `scores.score`. MAP@R and R-precision are left out if it lacks those of `scores.score_at_r`, as the
            records of a run's log do.
        config: the evaluation's settings.
    """
    for k in config.evaluation.recall_at:
        yield f"R@{k}", scores[recall_name(k)], f"share of images with one of their class among the {k} nearest"
    if "map_at_r" in scores:
        meaning = "sum of the precisions at those ranks up to R with an image of the class, / R"
        yield "MAP@R", scores["map_at_r"], meaning
        yield "R-precision", scores["r_precision"], "number of images of the class among the R nearest, / R"
    if config.evaluation.nmi:
        mean = f"{scores['nmi_average']} mean"
        yield "NMI", scores["nmi"], f"mutual information of clusters and classes / {mean} of their entropies"


def _describe_images(
    scores: Record,
    embeddings: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, " images"],
    gallery: LabelledVectors | None,
) -> dict[str, str]:
    images, dim = embeddings.shape
    searched = "the same images, each without itself"
    if gallery is not None:
        searched = f"{len(gallery[1]):,} others, of {len(np.unique(gallery[1])):,} classes"
    what = _searching(gallery)
    return {
        what: f"{images:,} of {len(np.unique(labels)):,} classes, {dim} dimensions",
        "gallery": searched,
        "left out": f"{scores['left_out']:,} of the {what}, which have none of their class to find; NMI counts them",
    }


def _searching(gallery: LabelledVectors | None) -> str:
    """What the card calls the images that search."""
    return "images" if gallery is None else "queries"


def _describe_clusters(
    scores: Record, labels: Int[np.ndarray, " images"], config: TrainConfig, gallery: LabelledVectors | None
) -> dict[str, str]:
    clusters, kmeans = len(np.unique(labels)), KMEANS[scores["kmeans"]]
    return {
        "clusters": f"{clusters:,} of the {_searching(gallery)}, by {kmeans} on the embeddings as they are",
        "k-means": f"lowest inertia of {scores['kmeans_restarts']}, k-means++ and Lloyd, seed {config.seed}",
    }

"""A network and a split become embeddings, and embeddings become scores."""

import contextlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int32

from proxynca_jax import steps
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.datasets import Split
from proxynca_jax.data.pipeline import evaluation_batches, prefetch_to_device
from proxynca_jax.interrupt import never
from proxynca_jax.metric_log import Progress, Record
from proxynca_jax.metrics.clustering import nmi
from proxynca_jax.metrics.retrieval import ranks, recall_at_k


def embed(
    embed_step: steps.EmbedStep,
    network: steps.Tree,
    batch_stats: steps.Tree,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
) -> Float[np.ndarray, "images dim"]:
    """Embeds every image of a split.

    Args:
        embed_step: from `steps.make_embed_step`.
        network: the embedder's parameters.
        batch_stats: its running statistics.
        split: the images.
        config: pixels and batch size.
        check: called before each batch; raises to stop.

    Raises:
        UserError: if an image cannot be decoded.
    """
    images, batch_size = len(split.labels), config.evaluation.batch_size
    batches = prefetch_to_device(evaluation_batches(split, config.data, batch_size=batch_size))
    rows = []
    with contextlib.closing(batches), Progress("embedding", images=images) as progress:
        for batch in batches:
            check()
            rows.append(embed_step(network, batch_stats, batch["image"]))
            progress.advance(batch_size)
    return np.concatenate(rows)[:images]


def score(
    embeddings: Float[np.ndarray, "images dim"], labels: Int32[np.ndarray, " images"], config: TrainConfig
) -> Record:
    """Recall@K and, where asked for, NMI, in percent as the field quotes them, with what NMI depends on.

    Args:
        embeddings: vectors of length 1.
        labels: class of each image.
        config: which scores; its seed is that of k-means.
    """
    evaluation = config.evaluation
    recalls = recall_at_k(ranks(embeddings, labels), evaluation.recall_at)
    record: Record = {name: 100 * share for name, share in recalls.items()}
    if evaluation.nmi:
        average, restarts = evaluation.nmi_average, evaluation.kmeans_restarts
        share = nmi(embeddings, labels, restarts=restarts, average=average, seed=config.seed)
        record |= {"nmi": 100 * share, "nmi_average": average, "kmeans_restarts": restarts}
    return record

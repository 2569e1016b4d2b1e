"""Reads what a page is about from a run's folder: its network, and the embeddings of its images."""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.split import GALLERY, QUERY, TRAIN, Evaluation, Split, hold_out
from proxynca_jax.embedder import TrainedNetwork, embed, load_network
from proxynca_jax.errors import UserError
from proxynca_jax.metrics.retrieval import LabelledVectors
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.digests import digest
from proxynca_jax.runs.image_list import inspect_as_trained
from proxynca_jax.runs.log import MetricLog, Record
from proxynca_jax.sharding import Layout
from proxynca_jax.steps import init_state

Vectors = Float32[np.ndarray, "images dim"]


class Scored(NamedTuple):
    """A run's network on its evaluation images."""

    folder: pathlib.Path
    kind: str  # of the state, one of `checkpoint.KINDS`
    config: TrainConfig
    step: int
    records: list[Record]  # of the log
    network: TrainedNetwork
    weights: str  # digest of the network
    train: Split  # the images of the classes that were trained on
    evaluation: Evaluation
    embeddings: Vectors  # of the queries
    gallery: LabelledVectors | None  # None: the other queries

    @property
    def searched(self) -> Split:
        """The images that the queries search."""
        return self.evaluation.splits()[-1]

    def record(self) -> Record | None:
        """The log's scores of this state on these images, or None."""
        found = [record for record in self.records if record["step"] == self.step and record["split"] == "test"]
        return found[-1] if found else None


class Trained(NamedTuple):
    """What the network and the proxies made of the training images."""

    embeddings: Vectors
    proxies: Float32[np.ndarray, "classes dim"] | None  # of length 1; None: they cannot be read
    why_not: str  # the reason


def read_scored(run: pathlib.Path, kind: str) -> Scored:
    """Embeds the evaluation images of a run.

    Args:
        run: the run's folder.
        kind: which of its states, one of `checkpoint.KINDS`.

    Raises:
        UserError: as for `load_network`, or if the run's images are not what they were.
    """
    network, config, step = load_network(run, kind)
    dataset = load_dataset(config.data)
    sides = inspect_as_trained(run, dataset, dataset.sides(), config.data)
    train, evaluation = sides[TRAIN], Evaluation(sides[QUERY], sides.get(GALLERY))
    if config.evaluation.protocol == "validation":
        train, _ = hold_out(train, config.evaluation, config.seed)
    queries, *others = [(embed(network, split, config), split.labels) for split in evaluation.splits()]
    gallery = others[0] if others else None
    records, weights = MetricLog(run, writes=False).records(), digest(network.variables)
    about = (run, kind, config, step, records, network, weights)
    return Scored(*about, train, evaluation, queries[0], gallery)


def read_trained(scored: Scored) -> Trained:
    """Embeds the training images of a run, and reads its proxies."""
    embeddings = embed(scored.network, scored.train, scored.config)
    try:
        return Trained(embeddings, _read_proxies(scored), "")
    except UserError as error:
        return Trained(embeddings, None, str(error))


def _read_proxies(scored: Scored) -> Float32[np.ndarray, "classes dim"]:
    config, classes = scored.config, len(scored.train.class_names)
    layout = Layout(sharded_classes=classes if config.optim.shard_proxies else None)
    optimizer = make_optimizer(config.optim, steps_per_epoch=1)
    options = {"classes": classes, "seed": config.seed, "loss": config.loss.name, "layout": layout}
    _, state = init_state(config.model, optimizer, **options)
    with Checkpoints(scored.folder, writes=False) as checkpoints:
        proxies = np.asarray(checkpoints.restore(state, scored.kind).params["proxies"])[:classes]
    return proxies / np.maximum(np.linalg.norm(proxies, axis=1, keepdims=True), 1e-12)

"""A run's embeddings beside what training did not make: raw pixels, and the network that the run started from."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from proxynca_jax import steps
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.evaluation_images import DeviceBatch, Source, choose_place, evaluation_source
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.embedder import TrainedNetwork, before_training, embed
from proxynca_jax.models.network import Variables, abstract_network, unit_vectors
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import score, score_at_r, score_names, score_title
from proxynca_jax.sharding import Layout

PIXELS, FROZEN, LINEAR = "raw pixels", "features before training", "embeddings before training"
TRAINED, TRAINED_FEATURES = "embeddings after training", "features after training"
THUMBNAIL = 32  # pixels, side of the images whose pixels are compared
Vectors = Float[np.ndarray, "images dim"]


class Row(NamedTuple):
    """The scores of one kind of vectors."""

    name: str
    dim: int
    scores: Record  # in percent: each Recall@K, and map_at_r

    def cells(self, names: list[str]) -> list[str]:
        return [self.name, f"{self.dim:,}", *(f"{self.scores[name]:.2f}" for name in (*names, "map_at_r"))]


def baselines(
    network: TrainedNetwork, config: TrainConfig, evaluation: Evaluation, *, distance: str, graphs: bool = True
) -> list[Row]:
    """Scores a run's network and what to compare it with, all on the same crops.

    Args:
        network: of the run, trained.
        config: of the run.
        evaluation: its queries and, if it has one, its gallery.
        distance: one of `vectors.DISTANCES`.
        graphs: as for `steps.compiler_options`.

    Returns:
        Raw pixels; features and embeddings before training; embeddings and features after it. Features are the
        backbone's output and the embedding layer's input. Before training, the embedding layer is a random linear map.

    Raises:
        UserError: if the weights that the run started from are not there any more.
    """
    options = steps.embedding_options(jax.default_backend(), graphs=graphs)
    graph, _ = abstract_network(dataclasses.replace(config.model, embedding_dim=0))
    headless_step = steps.make_embed_step(graph, Layout(), options=options)
    place, _ = choose_place(evaluation, config)
    splits = [(split, evaluation_source(split, config, place)) for split in evaluation.splits()]
    recalls_only = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, nmi=False))

    def row(name: str, vectors_of: Callable[[Split, Source[DeviceBatch]], Vectors]) -> Row:
        (vectors, labels), *others = [(vectors_of(split, source), split.labels) for split, source in splits]
        search = {"gallery": others[0] if others else None, "distance": distance}
        scores = score(vectors, labels, recalls_only, **search) | score_at_r(vectors, labels, **search)
        return Row(name, vectors.shape[1], scores)

    def of(network: TrainedNetwork) -> Callable[[Split, Source[DeviceBatch]], Vectors]:
        return lambda split, source: embed(network, split, config, source=source)

    def features(variables: Variables) -> TrainedNetwork:
        backbone = {"backbone": variables.params["backbone"]}
        return TrainedNetwork(headless_step, Variables(backbone, variables.batch_stats))

    before = before_training(network, config)
    return [
        row(PIXELS, _pixels),
        row(FROZEN, of(features(before.variables))),
        row(LINEAR, of(before)),
        row(TRAINED, of(network)),
        row(TRAINED_FEATURES, of(features(network.variables))),
    ]


def describe_baselines(rows: list[Row]) -> str:
    """Formats the rows as a table, and says whether training was better than the features that it started from."""
    names = score_names(rows[0].scores)
    titles = ["", "dimensions", *map(score_title, names), "MAP@R"]
    first, *rest = zip(titles, *(row.cells(names) for row in rows), strict=True)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in rest]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    frozen, trained = (next(row for row in rows if row.name == name) for name in (FROZEN, TRAINED))
    return "\n".join([*lines, "", *(_verdict(frozen, trained, score) for score in (names[0], "map_at_r"))])


def _verdict(frozen: Row, trained: Row, name: str) -> str:
    gain = trained.scores[name] - frozen.scores[name]
    title = "MAP@R" if name == "map_at_r" else score_title(name)
    return (
        f"{title} of the {trained.dim:,} trained dimensions is {abs(gain):.2f} {'above' if gain > 0 else 'below'} "
        f"that of the {frozen.dim:,} features before training."
    )


def _pixels(split: Split, source: Source[DeviceBatch]) -> Vectors:
    """The crops as vectors of their pixels."""
    with contextlib.closing(source()) as batches:
        rows = [np.asarray(_thumbnails(batch["image"])) for batch in batches]
    return np.concatenate(rows)[: len(split.labels)]


@jax.jit
def _thumbnails(images: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch dim"]:
    small = jax.image.resize(images.astype(jnp.float32), (len(images), THUMBNAIL, THUMBNAIL, 3), "linear")
    return unit_vectors(small.reshape(len(images), -1))

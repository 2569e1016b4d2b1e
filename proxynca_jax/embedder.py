"""Embeds images with a trained network."""

import contextlib
import pathlib
from collections.abc import Callable, Generator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from proxynca_jax import steps
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.evaluation_images import DeviceBatch, Source, evaluation_source
from proxynca_jax.data.split import Split
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.progress import Progress
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import read_config
from proxynca_jax.sharding import Layout


class TrainedNetwork(NamedTuple):
    """What embeds images, first arguments of `embed` and `embed_batches`."""

    embed_step: steps.EmbedStep
    params: steps.Tree
    batch_stats: steps.Tree


def load_network(run: pathlib.Path, kind: str, *, graphs: bool = True) -> tuple[TrainedNetwork, TrainConfig, int]:
    """Reads a run's network.

    Args:
        run: the run's folder.
        kind: which of its states, one of `checkpoint.KINDS`.
        graphs: as for `steps.compiler_options`.

    Returns:
        The network, the run's configuration and the step of the state.

    Raises:
        UserError: if the folder is not that of a run, or holds no such state.
    """
    config = read_config(run)
    layout = Layout()
    graph, *network = steps.init_network(config.model, np.random.default_rng(config.seed))
    params, batch_stats = layout.place(network)
    with Checkpoints(run) as checkpoints:
        params, batch_stats = checkpoints.restore_network(kind, params, batch_stats)
        step = checkpoints.latest_step(kind)
    assert step is not None  # or there would have been nothing to restore
    options = steps.compiler_options(jax.default_backend(), graphs=graphs)
    embed_step = steps.make_embed_step(graph, layout, options=options)
    return TrainedNetwork(embed_step, params, batch_stats), config, step


def embed_batches(
    embed_step: steps.EmbedStep,
    params: steps.Tree,
    batch_stats: steps.Tree,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
    source: Source[DeviceBatch] | None = None,
) -> Generator[Float[np.ndarray, "batch dim"], None, None]:
    """Embeds a split on all devices, a batch at a time, in memory that does not grow with the number of images.

    Args:
        embed_step: from `steps.make_embed_step`.
        params: the embedder's parameters.
        batch_stats: its running statistics.
        split: one image or more.
        config: pixels and batch size.
        check: called before each batch; raises to stop.
        source: the split's batches, from `evaluation_source`; by default the images are decoded for this call.

    Returns:
        The embeddings of `evaluation.batch_size` images after the other, or as many more as the devices need to get
        the same number each; of fewer at the end. Every process receives all of them. Close it to stop early.

    Raises:
        UserError: while iterating: if an image cannot be decoded.
    """
    images = len(split.labels)
    batches = (source or evaluation_source(split, config))()
    network, computed = embed_step.fold(params, batch_stats), None
    with contextlib.closing(batches), Progress("embedding", images=images) as progress:
        for batch in batches:
            check()
            ahead = embed_step.embed(network, batch["image"])
            if computed is not None:  # the host takes a batch while the device computes the next
                yield np.asarray(computed)
            computed = ahead
            progress.advance(len(batch["image"]))
        last = np.asarray(computed)
        yield last[: (images - 1) % len(last) + 1]


def embed(
    embed_step: steps.EmbedStep,
    params: steps.Tree,
    batch_stats: steps.Tree,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
    source: Source[DeviceBatch] | None = None,
) -> Float[np.ndarray, "images dim"]:
    """All that `embed_batches` gives for the same arguments, in one array."""
    with contextlib.closing(embed_batches(embed_step, params, batch_stats, split, config, check, source)) as batches:
        return np.concatenate(list(batches))

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
from proxynca_jax.models.network import Variables, abstract_network
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import read_config
from proxynca_jax.sharding import Layout


class TrainedNetwork(NamedTuple):
    """A network's arrays and the programs that embed images with them."""

    embed_step: steps.EmbedStep
    variables: Variables


def load_network(run: pathlib.Path, kind: str, *, graphs: bool = True) -> tuple[TrainedNetwork, TrainConfig, int]:
    """Reads a run's network.

    Args:
        run: the run's folder.
        kind: which of its states, one of `checkpoint.KINDS`.
        graphs: as for `steps.compiler_options`.

    Returns:
        The network, the run's configuration and the step of the state.

    Raises:
        UserError: if the folder is not that of a run, or has no such state.
    """
    config = read_config(run)
    layout = Layout()
    graph, shapes = abstract_network(config.model)
    with Checkpoints(run) as checkpoints:
        variables = checkpoints.restore_network(kind, layout.describe(shapes))
        step = checkpoints.latest_step(kind)
    assert step is not None  # or there would have been nothing to restore
    options = steps.compiler_options(jax.default_backend(), graphs=graphs)
    embed_step = steps.make_embed_step(graph, layout, options=options)
    return TrainedNetwork(embed_step, variables), config, step


def embed_batches(
    network: TrainedNetwork,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
    source: Source[DeviceBatch] | None = None,
) -> Generator[Float[np.ndarray, "batch dim"], None, None]:
    """Embeds a split on all devices, batch by batch. Memory does not grow with the number of images.

    Args:
        network: embeds the images.
        split: at least one image.
        config: of the images and the batch size.
        check: called before each batch; raises to stop.
        source: the split's batches, from `evaluation_source`; by default the images are decoded for this call.

    Returns:
        A generator of embeddings, `evaluation.batch_size` images at a time, rounded up to a multiple of the number of
        devices. The last batch may be smaller. Every process receives all embeddings. Close it to stop early.

    Raises:
        UserError: while iterating, if an image cannot be decoded.
    """
    images = len(split.labels)
    batches = (source or evaluation_source(split, config))()
    embed_step = network.embed_step
    folded, computed = embed_step.fold(network.variables), None
    with contextlib.closing(batches), Progress("embedding", images=images) as progress:
        for batch in batches:
            check()
            ahead = embed_step.embed(folded, batch["image"])
            if computed is not None:  # the host receives a batch while the device computes the next
                yield np.asarray(computed)
            computed = ahead
            progress.advance(len(batch["image"]))
        last = np.asarray(computed)
        yield last[: (images - 1) % len(last) + 1]


def embed(
    network: TrainedNetwork,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
    source: Source[DeviceBatch] | None = None,
) -> Float[np.ndarray, "images dim"]:
    """Embeds a split into one array. The arguments are those of `embed_batches`."""
    with contextlib.closing(embed_batches(network, split, config, check, source)) as batches:
        return np.concatenate(list(batches))

"""The jitted programs of the main job, a training step and an embedding step, and the state that they carry."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, UInt8

from proxynca_jax.config import LossConfig, ModelConfig
from proxynca_jax.layout import Layout
from proxynca_jax.losses import negative_squared_distances, proxy_nca, proxy_nca_without_positive
from proxynca_jax.models.embedder import Embedder

Tree = dict[str, Any]
Batch = dict[str, Array]  # "label" and what its images are made from, as the input pipeline gives it
ImagesOf = Callable[[Batch], UInt8[Array, "batch size size 3"]]
TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Array]]
Network = tuple[nnx.GraphDef, Tree]

# Bytes of gradients that several GPUs add up at a time. By default XLA waits for up to 30 MB of them, by when next to
# nothing is left to compute meanwhile.
REDUCED_TOGETHER = 5_000_000


@struct.dataclass
class TrainState:
    """All that training changes, as plain dicts: an order of magnitude less host time a step than `nnx.State`."""

    step: Int[Array, ""]  # optimiser steps taken
    params: Tree  # {"network": the embedder's, "proxies": Float[Array, "classes dim"], or more rows: see Layout}
    batch_stats: Tree  # BatchNorm's running statistics
    opt_state: Any
    loss_sum: Float[Array, ""]  # sum of the batches' mean losses since the epoch began


@dataclasses.dataclass(frozen=True)
class EmbedStep:
    """Embeds images in two compiled programs, of which the first serves a whole evaluation."""

    fold: Callable[
        [Tree, Tree], Network
    ]  # the embedder's parameters and batch statistics to a network without BatchNorm
    embed: Callable[[Network, Array | np.ndarray], Array]  # that network and images to embeddings of length 1

    def __call__(self, params: Tree, batch_stats: Tree, images: Array | np.ndarray) -> Array:
        """Both for one batch."""
        return self.embed(self.fold(params, batch_stats), images)


def init_network(config: ModelConfig, rng: np.random.Generator) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Builds the embedder with random weights: its graph, parameters and batch statistics."""
    model = Embedder(
        config.embedding_dim,
        batch_norm_momentum=config.batch_norm_momentum,
        compute_dtype=config.compute_dtype,
        rng=rng,
    )
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    classes: int,
    seed: int,
    layout: Layout | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """Builds the network and the state of step 0 from random weights.

    Args:
        config: the network.
        optimizer: from `optim.make_optimizer`.
        classes: C, training classes, each with one proxy.
        seed: of the initial weights and proxies.
        layout: where it goes; by default each device holds all of it.
    """
    layout = layout or Layout()
    rng = np.random.default_rng(seed)
    graph, network, batch_stats = init_network(config, rng)
    proxies = rng.standard_normal((classes, config.embedding_dim), np.float32) / 8
    params = layout.place({"network": network, "proxies": layout.pad_proxies(proxies)})
    opt_state = jax.jit(lambda params: layout.constrain(optimizer.init(params)))(params)
    step, batch_stats, loss_sum = layout.place((jnp.int32(0), batch_stats, jnp.float32(0)))
    return graph, TrainState(step, params, batch_stats, opt_state, loss_sum)


def make_loss(config: LossConfig) -> Callable[[Array, Array, Array], Float[Array, " batch"]]:
    """Binds the configured loss to a function of embeddings, proxies and labels."""

    def loss(embeddings: Array, proxies: Array, labels: Array) -> Array:
        logits = negative_squared_distances(
            embeddings, proxies, embedding_scale=config.embedding_scale, proxy_scale=config.proxy_scale
        )
        if config.exclude_positive:
            return proxy_nca_without_positive(logits, labels)
        return proxy_nca(logits, labels, label_smoothing=config.label_smoothing)

    return loss


def make_train_step(
    graph: nnx.GraphDef,
    config: LossConfig,
    optimizer: optax.GradientTransformation,
    images_of: ImagesOf = operator.itemgetter("image"),
    layout: Layout | None = None,
    *,
    platform: str | None = None,
) -> TrainStep:
    """Compiles on first call: (state, batch) to (state, mean loss of the batch).

    The state is donated, but on GPUs, where XLA would first copy every parameter in hundreds of kernels to save 124 MB.
    Divided proxies, which may be far larger, are donated there too.

    Args:
        graph: of the embedder.
        config: of the loss.
        optimizer: from `optim.make_optimizer`.
        images_of: makes a batch's images, inside the compiled program; by default they are there already.
        layout: that of the state.
        platform: to compile for, as `jax.default_backend` names it, which is also the default.
    """
    layout = layout or Layout()
    loss_per_example = make_loss(config)
    on_gpu = (platform or jax.default_backend()) == "gpu"
    donate = not on_gpu or layout.divided_classes is not None
    options = {"xla_gpu_all_reduce_combine_threshold_bytes": REDUCED_TOGETHER} if on_gpu else None

    def mean_loss(params: Tree, batch_stats: Tree, images: Array, labels: Array) -> tuple[Array, Tree]:
        model = nnx.merge(graph, params["network"], batch_stats)
        embeddings = model(images, train=True)
        if layout.divided_classes is not None:
            # The logits are then divided as the proxies are. The embeddings of a batch are little to send around.
            embeddings, labels = layout.gather((embeddings, labels))
        loss = jnp.mean(loss_per_example(embeddings, params["proxies"][: layout.divided_classes], labels))
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @jax.jit(donate_argnums=0 if donate else (), compiler_options=options)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Float[Array, ""]]:
        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, batch_stats), grads = gradient(state.params, state.batch_stats, images_of(batch), batch["label"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, state.loss_sum + loss)
        return layout.constrain((state, loss))

    return train_step


def make_embed_step(graph: nnx.GraphDef, layout: Layout | None = None) -> EmbedStep:
    """Compiles on first call.

    Args:
        graph: of the embedder.
        layout: that of the parameters. Every device gets all embeddings of the batch.
    """
    layout = layout or Layout()

    @jax.jit
    def fold(params: Tree, batch_stats: Tree) -> Network:
        model = nnx.merge(graph, params, batch_stats)
        model.fold()
        folded_graph, state = nnx.split(model)
        return folded_graph, nnx.to_pure_dict(state)

    @jax.jit
    def embed(network: Network, images: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch dim"]:
        return layout.gather(nnx.merge(*network)(images, train=False))

    return EmbedStep(fold, embed)

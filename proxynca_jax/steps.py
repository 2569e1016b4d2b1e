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
from jaxtyping import Array, Float, UInt8

from proxynca_jax.config import LossConfig, ModelConfig
from proxynca_jax.losses import LOSSES
from proxynca_jax.models.network import Embedder
from proxynca_jax.packing import Packed, pack, unpack
from proxynca_jax.sharding import Layout

Tree = dict[str, Any]
Batch = dict[str, Array]  # "label" and what its images are made from, as the input pipeline gives it
ImagesOf = Callable[[Batch], UInt8[Array, "batch size size 3"]]
TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Array]]
Network = tuple[nnx.GraphDef, Tree]

# Bytes of gradients in one all-reduce of several GPUs. XLA's default bucket is 30 MB; when it is full, next to nothing
# is left to compute during the all-reduce.
REDUCED_TOGETHER = 5_000_000
# What goes into CUDA graphs: XLA's default, convolutions and collectives. Without convolutions, the 131 of a training
# step cut it into hundreds of pieces, and the host launches each kernel by itself. Without collectives, the 60 that
# several GPUs need do the same.
IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION,CONVOLUTION,COLLECTIVES"


@struct.dataclass
class TrainState:
    """All that training changes, in few arrays. These, or what stands for them while a program is compiled."""

    step: Any  # Int[Array, ""], optimiser steps taken
    params: Tree  # {"network": Packed, "proxies": Float[Array, "classes dim"], or more rows: see Layout}
    batch_stats: Packed  # BatchNorm's running statistics
    opt_state: Any
    loss_sum: Any  # Float[Array, ""], sum of the batches' mean losses since the epoch began

    def network(self) -> tuple[Tree, Tree]:
        """The embedder's parameters and batch statistics."""
        return unpack(self.params["network"]), unpack(self.batch_stats)

    def with_network(self, params: Tree, batch_stats: Tree) -> "TrainState":
        """The same state with other parameters and batch statistics of the embedder."""
        return dataclasses.replace(self, params=self.params | {"network": pack(params)}, batch_stats=pack(batch_stats))


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

    def compile(self, params: Tree, batch_stats: Tree, images: jax.ShapeDtypeStruct, layout: Layout) -> "EmbedStep":
        """The same, compiled for these shapes. `layout` is that of `make_embed_step`."""
        fold: Any = self.fold
        embed: Any = self.embed

        def describe(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = layout.replicated if layout.mesh.size > 1 else None
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        network = jax.tree.map(describe, jax.eval_shape(fold, params, batch_stats))
        return EmbedStep(fold.lower(params, batch_stats).compile(), embed.lower(network, images).compile())


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
    loss: str = "proxy_nca",
    layout: Layout | None = None,
) -> tuple[nnx.GraphDef, TrainState]:
    """Builds the network and the state of step 0 from random weights.

    Args:
        config: the network.
        optimizer: from `optim.make_optimizer`.
        classes: C, training classes, each with one proxy.
        seed: of the initial weights and proxies.
        loss: a key of `LOSSES`, which decides how the proxies start.
        layout: where it goes; by default each device holds all of it.
    """
    layout = layout or Layout()
    rng = np.random.default_rng(seed)
    graph, network, batch_stats = init_network(config, rng)
    proxies = LOSSES[loss].initial_proxies(rng, classes, config.embedding_dim)
    params = layout.place({"network": pack(network), "proxies": layout.pad_proxies(proxies)})
    opt_state = jax.jit(lambda params: layout.constrain(optimizer.init(params)))(params)
    step, batch_stats, loss_sum = layout.place((jnp.int32(0), pack(batch_stats), jnp.float32(0)))
    return graph, TrainState(step, params, batch_stats, opt_state, loss_sum)


def compiler_options(platform: str, *, graphs: bool = True) -> dict[str, Any]:
    """XLA's options for both programs.

    Args:
        platform: to compile for, as `jax.default_backend` names it.
        graphs: on a GPU, launch a whole program as one CUDA graph. False: leave convolutions out, as XLA does.
    """
    if platform != "gpu":
        return {}
    options: dict[str, Any] = {"xla_gpu_all_reduce_combine_threshold_bytes": REDUCED_TOGETHER}
    return options | {"xla_gpu_enable_command_buffer": IN_GRAPHS} if graphs else options


def make_train_step(
    graph: nnx.GraphDef,
    config: LossConfig,
    optimizer: optax.GradientTransformation,
    images_of: ImagesOf = operator.itemgetter("image"),
    layout: Layout | None = None,
    *,
    options: dict[str, Any] | None = None,
) -> TrainStep:
    """Compiles on first call: (state, batch) to (state, mean loss of the batch).

    The state is donated, so its addresses repeat from step to step, as CUDA graphs need them to.

    Args:
        graph: of the embedder.
        config: of the loss.
        optimizer: from `optim.make_optimizer`.
        images_of: makes a batch's images, inside the compiled program; by default they are there already.
        layout: that of the state.
        options: from `compiler_options`; by default those of JAX's default platform.
    """
    layout = layout or Layout()
    loss_of_batch = LOSSES[config.name].of_batch
    options = compiler_options(jax.default_backend()) if options is None else options

    def mean_loss(params: Tree, batch_stats: Tree, images: Array, labels: Array) -> tuple[Array, Tree]:
        model = nnx.merge(graph, params["network"], batch_stats)
        embeddings = model(images, train=True)
        if layout.sharded_classes is not None:
            # The logits are then divided as the proxies are. The embeddings of a batch are little to send around.
            embeddings, labels = layout.gather((embeddings, labels))
        loss = loss_of_batch(embeddings, params["proxies"][: layout.sharded_classes], labels, config)
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @jax.jit(donate_argnums=0, compiler_options=options)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Float[Array, ""]]:
        network, batch_stats = state.network()
        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, batch_stats), grads = gradient(
            state.params | {"network": network}, batch_stats, images_of(batch), batch["label"]
        )
        grads["network"] = pack(grads["network"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, pack(batch_stats), opt_state, state.loss_sum + loss)
        return layout.constrain((state, loss))

    return train_step


def make_embed_step(
    graph: nnx.GraphDef, layout: Layout | None = None, *, options: dict[str, Any] | None = None
) -> EmbedStep:
    """Compiles on first call.

    Args:
        graph: of the embedder.
        layout: that of the parameters. Every device gets all embeddings of the batch.
        options: as for `make_train_step`.
    """
    layout = layout or Layout()
    options = compiler_options(jax.default_backend()) if options is None else options

    @jax.jit
    def fold(params: Tree, batch_stats: Tree) -> Network:
        model = nnx.merge(graph, params, batch_stats)
        model.fold()
        folded_graph, state = nnx.split(model)
        return folded_graph, layout.gather(nnx.to_pure_dict(state))

    @jax.jit(compiler_options=options)
    def embed(network: Network, images: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch dim"]:
        return layout.gather(nnx.merge(*network)(images, train=False))

    return EmbedStep(fold, embed)

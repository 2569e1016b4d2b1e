"""The two jitted programs, a training step and an embedding step, and the training state."""

import dataclasses
import functools
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
from proxynca_jax.machine.cudnn import start_cudnn
from proxynca_jax.models.network import Tree, Variables, init_network
from proxynca_jax.packing import Packed, pack, unpack
from proxynca_jax.sharding import Layout

Batch = dict[str, Array]  # "label", and "image" or what `ImagesOf` computes the images from
ImagesOf = Callable[[Batch], UInt8[Array, "batch size size 3"]]
TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Array]]
Folded = tuple[nnx.GraphDef, Tree]  # a network whose BatchNorm is part of its convolutions

# Bytes of gradients per all-reduce of several GPUs. XLA's default bucket is 30 MB. When that is full, almost nothing is
# left to compute that could overlap with its all-reduce.
ALL_REDUCE_BUCKET = 5_000_000
# What CUDA graphs contain: XLA's default, convolutions and collectives. Without convolutions, the 131 of a training
# step split it into hundreds of pieces, and the host launches every kernel by itself. Without collectives, the 60 that
# several GPUs need do the same.
IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION,CONVOLUTION,COLLECTIVES"
# On a CPU, convolutions of an embedding step are faster without YNNPACK: Eigen computes them then. A training step is
# slower without it.
WITHOUT_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}


@struct.dataclass
class TrainState:
    """All that training changes, in few arrays; or their shapes, while a program is compiled."""

    step: Any  # Int[Array, ""], optimiser steps taken
    # {"backbone": Packed, "embedding_layer": Tree, "proxies": Float[Array, "classes dim"], or more rows: see Layout}
    params: Tree
    batch_stats: Packed  # BatchNorm's running statistics
    opt_state: Any
    loss_sum: Any  # Float[Array, ""], sum of the batches' mean losses since the epoch began

    def network(self) -> Variables:
        """Unpacks the network's arrays."""
        backbone, embedding_layer = unpack(self.params["backbone"]), self.params["embedding_layer"]
        return Variables({"backbone": backbone, "embedding_layer": embedding_layer}, unpack(self.batch_stats))

    def with_network(self, variables: Variables) -> "TrainState":
        """The same state with other arrays of the network."""
        params = self.params | _pack_backbone(variables.params)
        return dataclasses.replace(self, params=params, batch_stats=pack(variables.batch_stats))


def _pack_backbone(params: Tree) -> Tree:
    return params | {"backbone": pack(params["backbone"])}


@dataclasses.dataclass(frozen=True)
class EmbedStep:
    """Two compiled programs: `fold` runs once per evaluation, `embed` once per batch."""

    fold: Callable[[Variables], Folded]
    embed: Callable[[Folded, Array | np.ndarray], Array]  # images to vectors of length 1

    def __call__(self, variables: Variables, images: Array | np.ndarray) -> Array:
        """Runs both for one batch."""
        return self.embed(self.fold(variables), images)

    def compile(self, variables: Variables, images: jax.ShapeDtypeStruct, layout: Layout) -> "EmbedStep":
        """Compiles both for these shapes. `layout` is that of `make_embed_step`."""
        fold: Any = self.fold
        embed: Any = self.embed
        folded = layout.describe(jax.eval_shape(fold, variables))
        return EmbedStep(fold.lower(variables).compile(), embed.lower(folded, images).compile())


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
        layout: of the state; by default each device has all of it.
    """
    layout = layout or Layout()
    rng = np.random.default_rng(seed)
    graph, network = init_network(config, rng)
    proxies = LOSSES[loss].initial_proxies(rng, classes, config.embedding_dim)
    params = layout.place(_pack_backbone(network.params) | {"proxies": layout.pad_proxies(proxies)})
    opt_state = jax.jit(lambda params: layout.constrain(optimizer.init(params)))(params)
    step, batch_stats, loss_sum = layout.place((jnp.int32(0), pack(network.batch_stats), jnp.float32(0)))
    return graph, TrainState(step, params, batch_stats, opt_state, loss_sum)


def compiler_options(platform: str, *, graphs: bool = True) -> dict[str, Any]:
    """Returns XLA's options for a training step. On a GPU this also starts cuDNN, before any graph is recorded.

    Args:
        platform: to compile for, as `jax.default_backend` names it.
        graphs: on a GPU, launch a whole program as one CUDA graph. False leaves convolutions out, as XLA does.
    """
    if platform != "gpu":
        return {}
    start_cudnn()
    options: dict[str, Any] = {"xla_gpu_all_reduce_combine_threshold_bytes": ALL_REDUCE_BUCKET}
    return options | {"xla_gpu_enable_command_buffer": IN_GRAPHS} if graphs else options


def embedding_options(platform: str, *, graphs: bool = True) -> dict[str, Any]:
    """Returns XLA's options for an embedding step. Arguments are those of `compiler_options`."""
    options = compiler_options(platform, graphs=graphs)
    return options | WITHOUT_YNNPACK if platform == "cpu" and _is_known(*WITHOUT_YNNPACK) else options


@functools.cache
def _is_known(option: str) -> bool:
    """Whether this version of XLA has an option. The experimental ones come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={option: ""}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def make_train_step(
    graph: nnx.GraphDef,
    config: LossConfig,
    optimizer: optax.GradientTransformation,
    images_of: ImagesOf = operator.itemgetter("image"),
    layout: Layout | None = None,
    *,
    fixed_batch_norm: bool = False,
    frozen: bool = False,
    options: dict[str, Any] | None = None,
) -> TrainStep:
    """Makes a function of a state and a batch that returns the next state and the batch's mean loss.

    It compiles on the first call. The state is donated. Its addresses then repeat from step to step, so a CUDA graph
    can be launched again unchanged.

    Args:
        graph: of the network.
        config: of the loss.
        optimizer: from `optim.make_optimizer`.
        images_of: computes a batch's images inside the compiled program; by default the batch contains them.
        layout: of the state.
        fixed_batch_norm: normalise by the running statistics, as inference does, and leave them as they are.
        frozen: train only the embedding layer and the proxies. The backbone runs as in inference, its gradients are not
            computed, and its parameters, statistics and moments stay.
        options: from `compiler_options`; by default those of JAX's default platform.
    """
    layout = layout or Layout()
    loss_of_batch = LOSSES[config.name].of_batch
    options = compiler_options(jax.default_backend()) if options is None else options

    def mean_loss(params: Tree, fixed: Tree, batch_stats: Tree, batch: Batch) -> tuple[Array, Tree]:
        proxies, labels = params["proxies"], batch["label"]
        model = nnx.merge(graph, fixed | {name: params[name] for name in params if name != "proxies"}, batch_stats)
        if frozen or fixed_batch_norm:
            # The gradients of BatchNorm's scale and bias go through the folded kernels, which are far smaller than the
            # activations.
            model.fold()
            embeddings = model(images_of(batch), train=False)
        else:
            embeddings = model(images_of(batch), train=True)
            batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        if layout.sharded_classes is not None:
            # Then the logits are sharded as the proxies are. Gathering is cheap: the embeddings of a batch are small.
            embeddings, labels = layout.gather((embeddings, labels))
        return loss_of_batch(embeddings, proxies[: layout.sharded_classes], labels, config), batch_stats

    @jax.jit(donate_argnums=0, compiler_options=options)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Float[Array, ""]]:
        network = state.network()
        params = network.params | {"proxies": state.params["proxies"]}
        fixed = {"backbone": params.pop("backbone")} if frozen else {}
        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, batch_stats), grads = gradient(params, fixed, network.batch_stats, batch)
        grads = grads if frozen else _pack_backbone(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updated: Any = optax.apply_updates({name: state.params[name] for name in grads}, updates)
        state = TrainState(state.step + 1, state.params | updated, pack(batch_stats), opt_state, state.loss_sum + loss)
        return layout.constrain((state, loss))

    return train_step


def make_embed_step(
    graph: nnx.GraphDef, layout: Layout | None = None, *, options: dict[str, Any] | None = None
) -> EmbedStep:
    """Makes both programs, which compile on their first call.

    Args:
        graph: of the network.
        layout: of the network. Every device gets all embeddings of the batch.
        options: from `embedding_options`; by default those of JAX's default platform.
    """
    layout = layout or Layout()
    options = embedding_options(jax.default_backend()) if options is None else options

    @jax.jit
    def fold(variables: Variables) -> Folded:
        model = nnx.merge(graph, *variables)
        model.fold()
        folded_graph, state = nnx.split(model)
        return folded_graph, layout.gather(nnx.to_pure_dict(state))

    @jax.jit(compiler_options=options)
    def embed(folded: Folded, images: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch dim"]:
        return layout.gather(nnx.merge(*folded)(images, train=False))

    return EmbedStep(fold, embed)

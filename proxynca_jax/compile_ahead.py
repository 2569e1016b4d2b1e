"""Ahead-of-time compilation of a run's programs, while images are listed, decoded or uploaded."""

from typing import Any

import jax
import jax.numpy as jnp

from proxynca_jax import steps
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.resident import ResidentImages
from proxynca_jax.models.network import Tree
from proxynca_jax.sharding import Layout

# JAX reports the seconds that it spends on these events, for every program.
COMPILING = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


def compile_train_step(
    train_step: steps.TrainStep,
    state: steps.TrainState,
    config: TrainConfig,
    layout: Layout,
    resident: ResidentImages | None = None,
) -> steps.TrainStep:
    """Compiles a training step for the batches of a run.

    Args:
        train_step: from `steps.make_train_step`.
        state: a state of the run's shapes; its values do not matter.
        config: sizes of batches and images.
        layout: shardings of the batches.
        resident: the training images if they are in device memory. None: batches come from the host.
    """
    rows, size = config.optim.batch_size, config.data.image_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {"label": ((rows,), jnp.int32)}
    if resident is None:
        shapes["image"] = ((rows, size, size, 3), jnp.uint8)
    else:
        shapes |= {"row": ((rows,), jnp.int32), "box": ((rows, 4), jnp.int32), "mirror": ((rows,), jnp.bool)}
    batch: Tree = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.batches) for name, (shape, dtype) in shapes.items()
    }
    if resident is not None:
        batch["pixels"] = resident.pixels
    lowered: jax.stages.Lowered = train_step.lower(state, batch)  # pyright: ignore[reportFunctionMemberAccess]
    return lowered.compile()


def compile_embed_step(
    embed_step: steps.EmbedStep, state: steps.TrainState, config: TrainConfig, layout: Layout
) -> steps.EmbedStep:
    """Compiles both programs of an embedding step for the evaluation batches of a run.

    Args:
        embed_step: from `steps.make_embed_step`.
        state: a state of the run's shapes; its values do not matter.
        config: sizes of batches and images.
        layout: shardings of the batches.
    """
    rows, size = layout.round_up(config.evaluation.batch_size), config.data.image_size
    images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8, sharding=layout.batches)
    return embed_step.compile(state.network(), images, layout)


class CompileClock:
    """Counts the seconds that this process spends compiling. A record's times can then exclude them."""

    def __enter__(self) -> "CompileClock":
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._count)

    def _count(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in COMPILING:
            self.seconds += duration_secs

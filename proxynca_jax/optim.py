"""Adam per parameter group, both learning rates falling each epoch."""

import itertools
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from proxynca_jax.config import OptimConfig


def learning_rate_schedule(initial: float, *, decay_per_epoch: float, steps_per_epoch: int) -> optax.Schedule:
    """Step to learning rate: `initial`, multiplied by `decay_per_epoch` after each epoch of `steps_per_epoch`."""
    # Not optax.exponential_decay: its division in float32 starts some epochs a step late.
    return lambda step: initial * decay_per_epoch ** jnp.floor_divide(step, steps_per_epoch)


def make_optimizer(config: OptimConfig, *, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser of a tree `{"network": ..., "proxies": ...}`.

    Args:
        config: rates, moments and decay.
        steps_per_epoch: optimiser steps between two decays.
    """

    def adam(learning_rate: float) -> optax.GradientTransformation:
        schedule = learning_rate_schedule(
            learning_rate, decay_per_epoch=config.decay_per_epoch, steps_per_epoch=steps_per_epoch
        )
        return optax.adam(schedule, b1=config.beta1, b2=config.beta2, eps=config.epsilon)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "network": _gather_vectors(adam(config.learning_rate)),
        "proxies": adam(config.proxy_learning_rate),
    }
    return optax.partition(groups, {group: group for group in groups})


def _gather_vectors(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Hands the gradients of biases and scales on as parts of one vector; values, state and updates stay the same.

    On a GPU, XLA then updates several hundred of them in two dozen kernels, and else in one or two each.
    """

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(updates)
        places = [place for place, leaf in enumerate(leaves) if leaf.ndim == 1]
        if places:
            ends = itertools.accumulate(leaves[place].size for place in places)
            vector = jax.lax.optimization_barrier(jnp.concatenate([leaves[place] for place in places]))
            for place, values in zip(places, jnp.split(vector, list(ends)[:-1]), strict=True):
                leaves[place] = values
        return inner.update(jax.tree.unflatten(tree, leaves), state, params)

    return optax.GradientTransformation(inner.init, update)

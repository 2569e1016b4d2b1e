"""Adam per parameter group: the backbone, the embedding layer and the proxies, each with its own learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from proxynca_jax.config import OptimConfig


def learning_rate_schedule(initial: float, config: OptimConfig, *, steps_per_epoch: int) -> optax.Schedule:
    """Returns a function from a step of a run, from 0, to its learning rate.

    "exponential" multiplies the rate by `config.decay_per_epoch` after each epoch. "cosine" is
    initial · (1 + cos(π · step / steps)) / 2 for a run of `steps` steps (arXiv 1608.03983, equation 5, no restarts).
    It would be 0 at the step after the last one, so the last step still trains.

    Args:
        initial: the rate at step 0.
        config: schedule, decay and epochs.
        steps_per_epoch: optimiser steps in an epoch.
    """
    if config.schedule == "cosine":
        steps = config.epochs * steps_per_epoch
        return lambda step: initial * (1 + jnp.cos(jnp.pi * step / steps)) / 2
    # optax.exponential_decay divides in float32, so some epochs would begin a step late.
    return lambda step: initial * config.decay_per_epoch ** jnp.floor_divide(step, steps_per_epoch)


def _backbone_schedule(config: OptimConfig, *, steps_per_epoch: int) -> optax.Schedule:
    """The backbone's rate at its own steps, of which the first one follows the frozen epochs."""
    schedule = learning_rate_schedule(config.learning_rate, config, steps_per_epoch=steps_per_epoch)
    start, warmup = config.frozen_epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    if not warmup:
        return lambda count: schedule(count + start)
    return lambda count: schedule(count + start) * jnp.minimum((count + 1) / warmup, 1)


def make_optimizer(config: OptimConfig, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """Builds the optimiser of a tree `{"backbone": ..., "embedding_layer": ..., "proxies": ...}`.

    Gradients may lack a group. Then there are no updates for it, and its moments and its count of steps stay.

    Args:
        config: rates, schedule, weight decay, betas, epsilon, and the epochs that freeze the backbone or warm it up.
        steps_per_epoch: optimiser steps in an epoch.
    """

    def rate(initial: float) -> optax.GradientTransformation:
        return optax.scale_by_learning_rate(learning_rate_schedule(initial, config, steps_per_epoch=steps_per_epoch))

    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    # Moments in one array: fewer arguments for a step.
    of_network: list[optax.GradientTransformation] = [optax.flatten(adam)]
    if config.weight_decay:
        of_network.append(optax.add_decayed_weights(config.weight_decay, _which_are_kernels))
    of_backbone = optax.scale_by_learning_rate(_backbone_schedule(config, steps_per_epoch=steps_per_epoch))
    groups = {
        "backbone": optax.chain(*of_network, of_backbone),
        "embedding_layer": optax.chain(*of_network, rate(config.embedding_learning_rate or config.learning_rate)),
        "proxies": optax.chain(adam, rate(config.proxy_learning_rate)),
    }

    def init(params: Any) -> dict[str, optax.OptState]:
        return {name: group.init(params[name]) for name, group in groups.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = dict(updates), dict(state)
        for name, gradients in updates.items():
            updates[name], state[name] = groups[name].update(gradients, state[name], params[name])
        return updates, state

    return optax.GradientTransformation(init, update)


def _which_are_kernels(params: Any) -> Any:
    """Weight decay leaves vectors as they are: biases, and the scales of BatchNorm."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

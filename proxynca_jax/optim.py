"""Adam with one learning rate for the network and one for the proxies; both decay after each epoch."""

from collections.abc import Hashable

import jax.numpy as jnp
import optax

from proxynca_jax.config import OptimConfig


def learning_rate_schedule(initial: float, *, decay_per_epoch: float, steps_per_epoch: int) -> optax.Schedule:
    """Returns a schedule that starts at `initial` and multiplies it by `decay_per_epoch` after each epoch."""
    # optax.exponential_decay divides in float32, so some epochs would begin a step late.
    return lambda step: initial * decay_per_epoch ** jnp.floor_divide(step, steps_per_epoch)


def make_optimizer(config: OptimConfig, *, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Builds the optimiser of a tree `{"network": ..., "proxies": ...}`.

    Args:
        config: learning rates, betas, epsilon and decay.
        steps_per_epoch: optimiser steps between two decays.
    """

    def adam(learning_rate: float) -> optax.GradientTransformation:
        schedule = learning_rate_schedule(
            learning_rate, decay_per_epoch=config.decay_per_epoch, steps_per_epoch=steps_per_epoch
        )
        return optax.adam(schedule, b1=config.beta1, b2=config.beta2, eps=config.epsilon)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "network": optax.flatten(adam(config.learning_rate)),  # moments in one array: fewer arguments for a step
        "proxies": adam(config.proxy_learning_rate),
    }
    return optax.partition(groups, {group: group for group in groups})

"""Activations that clamp: ReLU, ReLU6 and none."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Activation(NamedTuple):
    """Limits between which values pass unchanged."""

    low: float
    high: float


RELU = Activation(0.0, math.inf)
RELU6 = Activation(0.0, 6.0)
IDENTITY = Activation(-math.inf, math.inf)


def clamp(x: Float[Array, "..."], activation: Activation) -> Float[Array, "..."]:
    """min(max(x, low), high)."""
    if activation.low > -math.inf:
        x = jnp.maximum(x, activation.low)
    return jnp.minimum(x, activation.high) if activation.high < math.inf else x


def passed(x: Float[Array, "..."], activation: Activation) -> Bool[Array, "..."] | bool:
    """Where low < x < high, which is where the gradient of `clamp` is 1. At a limit it is 0, as in PyTorch."""
    above = x > activation.low if activation.low > -math.inf else True
    return above & (x < activation.high) if activation.high < math.inf else above


# `clamp`, whose only residual is its result. That is kept anyway, because the next layer needs it.
activate = jax.custom_vjp(clamp, nondiff_argnums=(1,))


def _activate_forward(x: Array, activation: Activation) -> tuple[Array, Array]:
    y = clamp(x, activation)
    return y, y


def _activate_backward(activation: Activation, y: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(passed(y, activation), gradient, 0),)


activate.defvjp(_activate_forward, _activate_backward)

"""Depthwise convolution: the definition by brute force, and the CPU's algorithm against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxynca_jax.models.convolution import same_padding
from proxynca_jax.models.depthwise import (
    IMAGES_AT_A_TIME,
    LARGE_MAP,
    depthwise_convolve,
    depthwise_on_cpu,
    plain_depthwise_convolution,
)


def drawn(*shape: int) -> jax.Array:
    return jnp.array(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("size", "side", "stride", "padding"),
    [
        ((8, 7), 3, 2, ((0, 1), (1, 1))),  # of an even side nothing before, the rest after
        ((8, 7), 5, 2, ((1, 2), (2, 2))),
        ((8, 7), 5, 1, ((2, 2), (2, 2))),
        ((2, 1), 1, 2, ((0, 0), (0, 0))),
    ],
)
def test_padding_is_tensorflows(size, side, stride, padding):
    assert same_padding(size, side, stride) == padding


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_definition_by_brute_force(side, stride):
    x, kernel = np.asarray(drawn(2, 7, 8, 3)), np.asarray(drawn(side, side, 1, 3))
    padded = np.pad(x, ((0, 0), *same_padding((7, 8), side, stride), (0, 0)))
    expected = np.empty((2, -(-7 // stride), -(-8 // stride), 3), np.float32)
    for i, j in np.ndindex(expected.shape[1:3]):
        window = padded[:, stride * i : stride * i + side, stride * j : stride * j + side]
        expected[:, i, j] = np.einsum("buvc,uvc->bc", window, kernel[:, :, 0])
    found = plain_depthwise_convolution(jnp.array(x), jnp.array(kernel), stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# Large and small maps, and batches that the loops over images divide and do not divide.
@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [(1, 1, 3), (2, 2, 2), (16, 4, 5), (2 * IMAGES_AT_A_TIME, 2 * LARGE_MAP + 1, 20), (3, 2 * LARGE_MAP + 2, 9)],
)
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("algorithm", [depthwise_on_cpu, depthwise_convolve])
def test_cpu_computes_the_definition(algorithm, stride, side, batch, height, width):
    x, kernel = drawn(batch, height, width, 6), drawn(side, side, 1, 6)

    def value_and_gradients(function):
        value, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, stride), x, kernel)
        return value, *pull_back(drawn(*value.shape))

    expected = jax.jit(value_and_gradients, static_argnums=0)(plain_depthwise_convolution)
    found = jax.jit(value_and_gradients, static_argnums=0)(algorithm)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_bfloat16_sums_in_float32():
    x, kernel = jnp.ones((1, 9, 9, 2), jnp.bfloat16), jnp.full((5, 5, 1, 2), 1.0078125, jnp.bfloat16)
    found = depthwise_on_cpu(x, kernel, 1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[0, 4, 4].astype(jnp.float32), 25 * 1.0078125, rtol=4e-3)

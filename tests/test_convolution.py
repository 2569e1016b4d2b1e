"""Convolution: the definition by brute force, and each platform's algorithm against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxynca_jax.models.convolution import (
    LARGE_MAP,
    PIXELS_A_TURN,
    SMALL_MAP,
    centred_padding,
    convolution_of_blocks_on_gpu,
    convolution_on_cpu,
    convolve,
    plain_convolution,
)

HIGHEST = jax.lax.Precision.HIGHEST


def drawn(*shape: int) -> jax.Array:
    return jnp.array(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_definition_by_brute_force(side, stride):
    x, kernel = np.asarray(drawn(2, 7, 8, 3)), np.asarray(drawn(4, side, side, 3))
    pad = side // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.empty((2, -(-7 // stride), -(-8 // stride), 4), np.float32)
    for i, j in np.ndindex(expected.shape[1:3]):
        window = padded[:, stride * i : stride * i + side, stride * j : stride * j + side]
        expected[:, i, j] = np.einsum("buvc,ouvc->bo", window, kernel)
    found = plain_convolution(jnp.array(x), jnp.array(kernel), stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def assert_as_defined(algorithm, x, kernel, stride, padding=None):
    padding = padding or centred_padding(kernel.shape[1])

    def value_and_gradients(function):
        value, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding=padding), x, kernel)
        return value, *pull_back(drawn(*value.shape))

    expected = jax.jit(value_and_gradients, static_argnums=0)(plain_convolution)
    found = jax.jit(value_and_gradients, static_argnums=0)(algorithm)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_of_one_pixel(side, stride):
    """Only one place of the kernel meets a pixel, and the gradient of the others is 0."""
    x, kernel = drawn(2, 1, 1, 3), drawn(4, side, side, 3)
    assert_as_defined(convolve, x, kernel, stride)


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [1, 7, SMALL_MAP, SMALL_MAP + 1, LARGE_MAP + 1])
@pytest.mark.parametrize("algorithm", [convolution_on_cpu, convolve])
def test_cpu_computes_the_definition(algorithm, side, stride, height):
    assert_as_defined(algorithm, drawn(2, height, 10, 3), drawn(4, side, side, 3), stride)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (2, 0))])
@pytest.mark.parametrize(("batch", "images_a_turn"), [(6, 2), (5, 2), (9, 4)])
def test_kernel_gradients_by_turns_of_several_images(batch, images_a_turn, padding):
    """Batches of several turns, also those that the wanted number of images does not divide."""
    height, width = 16, PIXELS_A_TURN // images_a_turn // 16
    x, kernel = drawn(batch, height, width, 3), drawn(4, 3, 3, 3)
    assert_as_defined(convolution_on_cpu, x, kernel, 1, padding)


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 7), (8, 9), (10, 33)])
def test_gpu_computes_the_definition(side, height, width):
    algorithm = functools.partial(convolution_of_blocks_on_gpu, precision=HIGHEST)
    assert_as_defined(algorithm, drawn(2, height, width, 3), drawn(4, side, side, 3), 2)

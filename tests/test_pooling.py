"""Pooling: the definitions by brute force, and each platform's gradient against PyTorch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from proxynca_jax.models.pooling import average_pool, max_pool, max_pool_on_cpu, max_pool_on_gpu, plain_max_pool


def drawn(*shape: int) -> jax.Array:
    return jnp.array(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (3, 4), (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_by_brute_force(height, width, stride):
    x = np.asarray(drawn(2, height, width, 3)) - 10  # all negative: padding must never be the maximum
    pad = 1 if stride == 1 else 0
    rows, columns = (math.ceil((size + 2 * pad - 3) / stride) + 1 for size in (height, width))
    expected = np.empty((2, rows, columns, 3), np.float32)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride - pad, j * stride - pad
            expected[:, i, j] = x[:, max(top, 0) : top + 3, max(left, 0) : left + 3].max((1, 2))
    np.testing.assert_array_equal(plain_max_pool(jnp.array(x), stride), expected)
    np.testing.assert_array_equal(max_pool(jnp.array(x), stride=stride), expected)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [max_pool_on_cpu, max_pool_on_gpu])
def test_each_platform_computes_the_definition(height, width, stride, pool):
    x = drawn(2, height, width, 3)  # no two pixels are equal, so there is one gradient only
    expected, plain_pull_back = jax.vjp(lambda x: plain_max_pool(x, stride), x)
    found, pull_back = jax.vjp(lambda x: pool(x, stride), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(pull_back(expected)[0], plain_pull_back(expected)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [max_pool_on_cpu, max_pool_on_gpu])
def test_the_first_of_equal_pixels_gets_the_gradient(height, width, stride, pool):
    x = np.maximum(drawn(2, height, width, 3), 0)  # as after a ReLU: half of the pixels are 0
    y, pull_back = jax.vjp(lambda x: pool(x, stride), jnp.array(x))
    gradient = drawn(*y.shape)
    images, pixels = (torch.from_numpy(np.array(a).transpose(0, 3, 1, 2)) for a in (x, gradient))
    images.requires_grad_()
    pooled = torch.nn.functional.max_pool2d(images, 3, stride, padding=1 if stride == 1 else 0, ceil_mode=True)
    pooled.backward(pixels)
    expected = images.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pull_back(gradient)[0], expected, rtol=0, atol=1e-6)


def test_average_pool_counts_the_border_as_zeros():
    ones = average_pool(jnp.ones((1, 3, 4, 1)))[0, :, :, 0]
    np.testing.assert_allclose(ones, np.array([[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]) / 9, rtol=1e-6)
    x = drawn(2, 5, 4, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 5, j : j + 4] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(average_pool(x), expected, rtol=1e-5, atol=1e-6)

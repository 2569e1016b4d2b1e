"""BatchNorm and ReLU: worked by hand, against the definition, and gradients against PyTorch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from proxynca_jax.models.activation import RELU
from proxynca_jax.models.batch_norm import EPSILON, BatchNorm, batch_norm_act, normalise_batch, plain_batch_norm_act

# Two channels over four pixels.
VALUES = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 4.0]]).reshape(2, 1, 2, 2)
MEANS = np.array([3, 1])
BIASED = np.array([(4 + 1 + 0 + 9) / 4, (1 + 1 + 1 + 9) / 4])
UNBIASED = np.array([14 / 3, 12 / 3])
NO_SHIFT = jnp.zeros(2)


def drawn(*shape: int) -> jax.Array:
    return jnp.array(np.random.default_rng(0).standard_normal(shape, np.float32))


def norm(momentum: float) -> BatchNorm:
    layer = BatchNorm(2, momentum=momentum)
    layer.scale[...], layer.bias[...] = jnp.array([2.0, 1.0]), jnp.array([0.0, 0.5])
    return layer


def test_training_worked_by_hand():
    layer = norm(momentum=0.1)
    found = batch_norm_act(VALUES, NO_SHIFT, [layer], train=True)
    expected = (VALUES - MEANS[None, None, None]) / np.sqrt(BIASED + 1e-5)[None, None, None]
    np.testing.assert_allclose(found[..., 0], np.maximum(2 * expected[..., 0], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.maximum(expected[..., 1] + 0.5, 0), rtol=1e-5, atol=1e-6)
    # 0.1 of the old values, 0 and 1, and 0.9 of the batch's.
    np.testing.assert_allclose(layer.mean[...], 0.1 * 0 + 0.9 * MEANS, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], 0.1 * 1 + 0.9 * UNBIASED, rtol=1e-6)


def test_inference_worked_by_hand():
    layer = norm(momentum=0.1)
    layer.mean[...], layer.var[...] = jnp.array([2.0, -1.0]), jnp.array([4.0, 0.25])
    found = batch_norm_act(VALUES, NO_SHIFT, [layer], train=False)
    first, second = 2 * (VALUES[..., 0] - 2) / math.sqrt(4 + 1e-5), (VALUES[..., 1] + 1) / math.sqrt(0.25 + 1e-5) + 0.5
    np.testing.assert_allclose(found[..., 0], np.maximum(first, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.maximum(second, 0), rtol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], [2, -1])
    np.testing.assert_array_equal(layer.var[...], [4, 0.25])


def test_training_is_the_definition_with_the_statistics_of_the_batch():
    x, scale, bias, weights = drawn(4, 5, 3, 6), drawn(6) + 1, drawn(6) / 4, drawn(4, 5, 3, 6)[::-1]
    shift, guess = jnp.full(6, 0.1), jnp.full(6, 0.3)

    def fast(x, scale, bias):
        return normalise_batch(RELU, EPSILON, x, shift, scale, bias, guess)[0]

    def plain(x, scale, bias):
        return plain_batch_norm_act(x, scale, bias, jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2)))

    ours, pull_back = jax.vjp(fast, x, scale, bias)
    expected, plain_pull_back = jax.vjp(plain, x, scale, bias)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    for gradient, theirs in zip(pull_back(weights), plain_pull_back(weights), strict=True):
        np.testing.assert_allclose(gradient, theirs, rtol=1e-4, atol=1e-5)


def test_inference_is_the_definition_with_running_statistics():
    x, layer = drawn(4, 5, 3, 2), norm(momentum=0.1)
    layer.mean[...], layer.var[...] = jnp.array([0.5, -1.0]), jnp.array([2.0, 0.25])
    expected = plain_batch_norm_act(x, layer.scale[...], layer.bias[...], layer.mean[...], layer.var[...])
    found = batch_norm_act(x, NO_SHIFT, [layer], train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_against_torch():
    x, scale, bias, mask = drawn(4, 5, 3, 6), drawn(6) + 1, drawn(6) / 4, drawn(4, 5, 3, 6)[::-1]

    def loss(x, scale, bias):
        y, _, _ = normalise_batch(RELU, EPSILON, x, jnp.full(6, 0.1), scale, bias, jnp.full(6, 0.3))
        return jnp.sum(y * mask)

    theirs = [torch.from_numpy(np.array(a)).requires_grad_() for a in (jnp.moveaxis(x, 3, 1), scale, bias)]
    normalised = torch.nn.functional.batch_norm(theirs[0], None, None, *theirs[1:], training=True)
    (torch.relu(normalised) * torch.from_numpy(np.moveaxis(np.array(mask), 3, 1).copy())).sum().backward()
    expected = [np.moveaxis(theirs[0].grad.numpy(), 1, 3), *(each.grad.numpy() for each in theirs[1:])]
    for ours, reference in zip(jax.grad(loss, (0, 1, 2))(x, scale, bias), expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_a_single_value_stays_finite():
    layer = norm(momentum=0.5)
    found = batch_norm_act(jnp.full((1, 1, 1, 2), 7.0), NO_SHIFT, [layer], train=True)
    np.testing.assert_allclose(found, [[[[0, 0.5]]]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.var[...], [0.5, 0.5])


@pytest.mark.parametrize("train", [True, False])
def test_the_bias_of_the_convolution_is_added(train):
    x, bias = drawn(4, 3, 3, 2), jnp.array([1.0, -2.0])
    added, given = norm(momentum=0.5), norm(momentum=0.5)
    expected = batch_norm_act(x + bias[None, None, None], NO_SHIFT, [added], train=train)
    np.testing.assert_allclose(batch_norm_act(x, bias, [given], train=train), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(given.mean[...], added.mean[...], rtol=0, atol=1e-6)
    np.testing.assert_allclose(given.var[...], added.var[...], rtol=1e-6)


def test_values_far_from_zero_keep_their_variance():
    # The square of 3000 leaves float32 no digit of a variance of 1. The running mean is near enough to subtract.
    x = 3000 + drawn(8, 5, 5, 2)
    layer = norm(momentum=0.0)
    layer.mean[...] = jnp.array([2990.0, 3005.0])
    batch_norm_act(x, NO_SHIFT, [layer], train=True)
    np.testing.assert_allclose(layer.var[...], np.var(np.asarray(x, np.float64), (0, 1, 2), ddof=1), rtol=1e-3)

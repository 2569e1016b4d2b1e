"""The backbone's parts, worked by hand or by brute force, and its keys and sizes."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from golden_cub import FOLDER, as_torch

from proxynca_jax.models import layers
from proxynca_jax.models.bn_inception import (
    BLOCKS,
    FEATURES,
    MAX_POOLED,
    BNInception,
    invalid_image_size,
    is_valid_image_size,
)
from proxynca_jax.models.layers import (
    LARGE_MAP,
    SMALL_MAP,
    BatchNorm,
    average_pool,
    batch_norm_relu,
    convolve,
    max_pool,
)

# Two channels over four places.
VALUES = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 4.0]]).reshape(2, 1, 2, 2)
MEANS = np.array([3, 1])
BIASED = np.array([(4 + 1 + 0 + 9) / 4, (1 + 1 + 1 + 9) / 4])
UNBIASED = np.array([14 / 3, 12 / 3])


@pytest.fixture(scope="module")
def network() -> BNInception:
    return BNInception(batch_norm_momentum=0.1, rng=np.random.default_rng(0))


def drawn(*shape: int) -> jax.Array:
    return jnp.array(np.random.default_rng(0).standard_normal(shape, np.float32))


def norm(momentum: float) -> BatchNorm:
    layer = BatchNorm(2, momentum=momentum)
    layer.scale[...], layer.bias[...] = jnp.array([2.0, 1.0]), jnp.array([0.0, 0.5])
    return layer


NO_SHIFT = jnp.zeros(2)


def test_batch_norm_in_training_worked_by_hand():
    layer = norm(momentum=0.1)
    found = batch_norm_relu(VALUES, NO_SHIFT, [layer], train=True)
    expected = (VALUES - MEANS[None, None, None]) / np.sqrt(BIASED + 1e-5)[None, None, None]
    np.testing.assert_allclose(found[..., 0], np.maximum(2 * expected[..., 0], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.maximum(expected[..., 1] + 0.5, 0), rtol=1e-5, atol=1e-6)
    # 0.1 of the old values, 0 and 1, and 0.9 of the batch's.
    np.testing.assert_allclose(layer.mean[...], 0.1 * 0 + 0.9 * MEANS, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], 0.1 * 1 + 0.9 * UNBIASED, rtol=1e-6)


def test_batch_norm_in_inference_worked_by_hand():
    layer = norm(momentum=0.1)
    layer.mean[...], layer.var[...] = jnp.array([2.0, -1.0]), jnp.array([4.0, 0.25])
    found = batch_norm_relu(VALUES, NO_SHIFT, [layer], train=False)
    first, second = 2 * (VALUES[..., 0] - 2) / math.sqrt(4 + 1e-5), (VALUES[..., 1] + 1) / math.sqrt(0.25 + 1e-5) + 0.5
    np.testing.assert_allclose(found[..., 0], np.maximum(first, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.maximum(second, 0), rtol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], [2, -1])
    np.testing.assert_array_equal(layer.var[...], [4, 0.25])


def test_batch_norm_of_a_single_value_stays_finite():
    layer = norm(momentum=0.5)
    found = batch_norm_relu(jnp.full((1, 1, 1, 2), 7.0), NO_SHIFT, [layer], train=True)
    np.testing.assert_allclose(found, [[[[0, 0.5]]]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.var[...], [0.5, 0.5])


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_adds_the_bias_of_the_convolution(train):
    x, bias = drawn(4, 3, 3, 2), jnp.array([1.0, -2.0])
    added, given = norm(momentum=0.5), norm(momentum=0.5)
    expected = batch_norm_relu(x + bias[None, None, None], NO_SHIFT, [added], train=train)
    np.testing.assert_allclose(batch_norm_relu(x, bias, [given], train=train), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(given.mean[...], added.mean[...], rtol=0, atol=1e-6)
    np.testing.assert_allclose(given.var[...], added.var[...], rtol=1e-6)


def test_batch_norm_far_from_zero_keeps_its_variance():
    # The square of 3000 leaves float32 no digit of a variance of 1; the running mean is near enough to take away.
    x = 3000 + drawn(8, 5, 5, 2)
    layer = norm(momentum=0.0)
    layer.mean[...] = jnp.array([2990.0, 3005.0])
    batch_norm_relu(x, NO_SHIFT, [layer], train=True)
    np.testing.assert_allclose(layer.var[...], np.var(np.asarray(x, np.float64), (0, 1, 2), ddof=1), rtol=1e-3)


def test_gradients_of_batch_norm_against_torch():
    x, scale, bias, mask = drawn(4, 5, 3, 6), drawn(6) + 1, drawn(6) / 4, drawn(4, 5, 3, 6)[::-1]

    def loss(x, scale, bias):
        y, _, _ = layers._normalise_batch(x, jnp.full(6, 0.1), scale, bias, jnp.full(6, 0.3))
        return jnp.sum(y * mask)

    theirs = [torch.from_numpy(np.array(a)).requires_grad_() for a in (jnp.moveaxis(x, 3, 1), scale, bias)]
    normalised = torch.nn.functional.batch_norm(theirs[0], None, None, *theirs[1:], training=True)
    (torch.relu(normalised) * torch.from_numpy(np.moveaxis(np.array(mask), 3, 1).copy())).sum().backward()
    expected = [np.moveaxis(theirs[0].grad.numpy(), 1, 3), *(each.grad.numpy() for each in theirs[1:])]
    for ours, reference in zip(jax.grad(loss, (0, 1, 2))(x, scale, bias), expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["inception_3a", "inception_3c", "inception_5b"])  # each kind of pool
def test_a_block_is_its_convolutions_one_by_one(network, block):
    x = drawn(2, 8, 8, BLOCKS[block][0])
    apart, merged = nnx.clone(network), nnx.clone(network)

    def unit(name, x):
        convolution = getattr(apart, name)
        y = convolve(x, convolution.kernel[...], convolution.stride)
        return batch_norm_relu(y, convolution.bias[...], [getattr(apart, f"{name}_bn")], train=True)

    def chain(x, *names):
        return functools.reduce(lambda x, name: unit(f"{block}_{name}", x), names, x)

    keeps_size = block != "inception_3c"
    branches = [chain(x, "1x1")] if keeps_size else []
    branches += [chain(x, "3x3_reduce", "3x3"), chain(x, "double_3x3_reduce", "double_3x3_1", "double_3x3_2")]
    if keeps_size:
        pool = functools.partial(max_pool, stride=1) if block == MAX_POOLED else average_pool
        branches.append(chain(pool(x), "pool_proj"))
    else:
        branches.append(max_pool(x, stride=2))
    found = merged._block(block, keeps_size, x, train=True)
    np.testing.assert_allclose(found, jnp.concatenate(branches, -1), rtol=0, atol=2e-5)
    statistics = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(each, nnx.BatchStat))) for each in (merged, apart))
    for ours, theirs in zip(*statistics, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


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
    np.testing.assert_array_equal(max_pool(jnp.array(x), stride=stride), expected)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7), (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [layers._max_pool, layers._max_pool_on_cpu])
def test_max_pool_gives_the_gradient_to_the_first_of_equals(height, width, stride, pool):
    x = np.maximum(drawn(2, height, width, 3), 0)  # as a ReLU leaves it: half of the pixels are 0
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


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [1, 7, SMALL_MAP, SMALL_MAP + 1, LARGE_MAP + 1])
def test_convolution_against_jax(side, stride, height):
    x, kernel = drawn(2, height, 10, 3), drawn(4, side, side, 3)
    pads, numbers = (side // 2, side // 2), ("NHWC", "OHWI", "NHWC")

    def jax_convolution(x, kernel, stride):
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (pads, pads), dimension_numbers=numbers)

    def value_and_gradients(function):
        value, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, stride), x, kernel)
        return value, *pull_back(drawn(*value.shape))

    expected = jax.jit(value_and_gradients, static_argnums=0)(jax_convolution)
    found = jax.jit(value_and_gradients, static_argnums=0)(convolve)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_leaves_are_the_state_dicts(network):
    shapes = json.loads((FOLDER / "bn_inception_state_dict.json").read_text())
    expected = {
        key: tuple(shape)
        for key, shape in shapes.items()
        if not key.startswith("last_linear.") and not key.endswith(".num_batches_tracked")
    }
    flat = nnx.to_flat_state(nnx.state(network))
    leaves = [as_torch(*path, np.asarray(leaf[...])) for path, leaf in flat]
    found = {key: value.shape for key, value in leaves}
    assert found == expected
    assert len(leaves) == len(found)


def test_convolutions_start_he_normal_with_biases_zero(network):
    kernel = network.inception_4e_double_3x3_1.kernel[...]
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / (3 * 3 * 192)), rel=0.01)
    assert abs(np.mean(kernel)) < 1e-3
    assert not np.any(network.inception_4e_double_3x3_1.bias[...])


def test_sizes_that_fit():
    fit = [size for size in range(-5, 232) if is_valid_image_size(size)]
    assert fit == [size for first in (31, 63, 95, 127, 159, 191, 223) for size in range(first, first + 8)]
    assert {32, 64, 96, 128, 224, 227} < set(fit)


def closes(network: BNInception, size: int) -> bool:
    """Whether the branches of every block can be concatenated."""

    def features(images: jax.Array) -> jax.Array:
        *_, (_, last) = network.stages(images, train=False)
        return last

    try:
        found = jax.eval_shape(features, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    except TypeError as error:
        if "concatenate" not in str(error):
            raise
        return False
    return found.shape == (1, FEATURES)


def test_sizes_by_brute_force(network):
    # The stem's output grows by a pixel at every eighth size: both sides of each step.
    sizes = [size for step in range(1, 17) for size in (8 * step - 2, 8 * step - 1)]
    assert [size for size in sizes if closes(network, size)] == [size for size in sizes if is_valid_image_size(size)]


@pytest.mark.parametrize(
    ("size", "nearest"), [(48, "38 or 63"), (0, "are 31"), (-7, "are 31"), (39, "38 or 63"), (222, "198 or 223")]
)
def test_message_names_the_nearest_sizes(size, nearest):
    message = invalid_image_size(size)
    assert f"image size {size} " in message
    assert nearest in message


def test_network_refuses_a_size_that_does_not_fit(network):
    with pytest.raises(ValueError, match="38 or 63"):
        network(jnp.zeros((1, 48, 48, 3)), train=False)

"""The operations of oneDNN against their definitions. Its behaviour in processes: `test_onednn_in_processes.py`."""

import functools
import itertools
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxynca_jax.models.activation import IDENTITY, RELU, RELU6
from proxynca_jax.models.batch_norm import _sums_of_distances, _sums_of_gradients
from proxynca_jax.models.convolution import centred_padding, convolve, plain_convolution, same_padding, then_activate
from proxynca_jax.models.depthwise import plain_depthwise_convolution
from proxynca_jax.models.efficientnet_lite import EFFICIENTNET_LITE0
from proxynca_jax.models.pooling import max_pool_on_cpu, plain_average_pool
from proxynca_jax.onednn import library, operations, probe
from proxynca_jax.onednn.library import Unavailable, register
from proxynca_jax.onednn.operations import Window
from proxynca_jax.onednn.way import uses_onednn, way, without_onednn

try:
    register()
except Unavailable as reason:
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        raise  # the extra `test` installs it there, so a skip would hide a fault
    pytest.skip(str(reason), allow_module_level=True)


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.array(np.random.default_rng(seed).standard_normal(shape, np.float32))


def value_and_gradients(function, *arrays):
    value, pull_back = jax.vjp(function, *arrays)
    return value, *pull_back(drawn(*value.shape, seed=1).astype(value.dtype))


def assert_equal(ours, theirs, *arrays, tolerance=2e-5):
    """Value and gradients, relative to the largest entry of each."""
    for found, expected in zip(
        jax.jit(functools.partial(value_and_gradients, ours))(*arrays),
        jax.jit(functools.partial(value_and_gradients, theirs))(*arrays),
        strict=True,
    ):
        scale = np.abs(np.asarray(expected, np.float32)).max()
        difference = np.abs(np.asarray(found, np.float32) - np.asarray(expected, np.float32)).max()
        assert difference <= tolerance * scale


@pytest.mark.parametrize("activation", [IDENTITY, RELU, RELU6])
@pytest.mark.parametrize(
    ("side", "stride", "size", "inputs", "outputs"),
    [(1, 1, 7, 5, 9), (3, 1, 8, 16, 32), (3, 2, 9, 8, 16), (7, 2, 23, 3, 8), (3, 1, 1, 4, 4)],
)
def test_convolution(side, stride, size, inputs, outputs, activation):
    padding = centred_padding(side)

    def ours(x, kernel, bias):
        return operations.convolution(x, kernel, bias, Window(stride, padding, activation))

    definition = functools.partial(plain_convolution, stride=stride, padding=padding)
    arrays = drawn(2, size, size + 1, inputs), drawn(outputs, side, side, inputs), drawn(outputs)
    assert_equal(ours, then_activate(definition, activation), *arrays)


@pytest.mark.parametrize("activation", [IDENTITY, RELU])
def test_convolution_with_an_addend(activation):
    window = Window(2, centred_padding(3), activation)

    def ours(x, kernel, bias, addend):
        return operations.convolution(x, kernel, bias, window, addend)

    definition = functools.partial(plain_convolution, stride=2, padding=window.padding)
    arrays = drawn(2, 9, 7, 8), drawn(16, 3, 3, 8), drawn(16), drawn(2, 5, 4, 16, seed=2)
    assert_equal(ours, then_activate(definition, activation), *arrays)


def test_convolution_without_a_bias_and_with_uneven_padding():
    padding = same_padding((8, 11), 3, 2)
    assert padding == ((0, 1), (1, 1))

    def ours(x, kernel):
        return operations.convolution(x, kernel, None, Window(2, padding, IDENTITY))

    def theirs(x, kernel):
        return plain_convolution(x, kernel, 2, padding=padding)

    assert_equal(ours, theirs, drawn(3, 8, 11, 6), drawn(10, 3, 3, 6))


@pytest.mark.parametrize("activation", [IDENTITY, RELU6])
@pytest.mark.parametrize(("side", "stride", "size"), [(3, 1, 7), (3, 2, 8), (5, 1, 4), (5, 2, 9), (7, 1, 6)])
@pytest.mark.parametrize("channels", [16, 24])
def test_depthwise_convolution(side, stride, size, channels, activation):
    padding = same_padding((size, size + 1), side, stride)

    def ours(x, kernel, bias):
        return operations.convolution(x, kernel, bias, Window(stride, padding, activation, depthwise=True))

    theirs = then_activate(functools.partial(plain_depthwise_convolution, stride=stride), activation)
    assert_equal(ours, theirs, drawn(2, size, size + 1, channels), drawn(side, side, 1, channels), drawn(channels))


BLOCK = (
    Window(1, ((0, 0), (0, 0)), RELU6),
    Window(2, same_padding((9, 8), 5, 2), RELU6, depthwise=True),
    Window(1, ((0, 0), (0, 0)), IDENTITY),
)


def block_weights(dtype=jnp.float32) -> list[tuple[jax.Array, jax.Array]]:
    kernels = drawn(48, 1, 1, 12), drawn(5, 5, 1, 48), drawn(20, 1, 1, 48)
    return [(kernel.astype(dtype), drawn(outputs)) for kernel, outputs in zip(kernels, (48, 48, 20), strict=True)]


def layer_by_layer(x, weights):
    expand, depthwise, project = weights
    x = then_activate(functools.partial(plain_convolution, stride=1), RELU6)(x, *expand)
    x = then_activate(functools.partial(plain_depthwise_convolution, stride=2), RELU6)(x, *depthwise)
    return then_activate(functools.partial(plain_convolution, stride=1), IDENTITY)(x, *project)


def image_by_image(x, weights):
    layers = [(kernel, bias, operations.fingerprint_of(kernel.astype(jnp.float32))) for kernel, bias in weights]
    return operations.convolutions_image_by_image(x, layers, BLOCK, adds_images=False)


@pytest.mark.parametrize(
    ("batch", "dtype", "tolerance"), [(5, jnp.float32, 2e-5), (1, jnp.float32, 2e-5), (3, jnp.bfloat16, 2e-2)]
)
def test_convolutions_image_by_image(batch, dtype, tolerance):
    x, weights = drawn(batch, 9, 8, 12).astype(dtype), block_weights(dtype)
    found, expected = jax.jit(image_by_image)(x, weights), jax.jit(layer_by_layer)(x, weights)
    assert found.dtype == dtype
    difference = np.abs(np.asarray(found - expected, np.float32)).max()
    assert difference <= tolerance * np.abs(np.asarray(expected, np.float32)).max()


def test_convolutions_image_by_image_have_gradients():
    x, weights = drawn(2, 9, 8, 12), block_weights()

    def gradients(function):
        return jax.grad(lambda x, weights: jnp.sum(jnp.square(function(x, weights))), (0, 1))(x, weights)

    ours, theirs = gradients(image_by_image), gradients(layer_by_layer)
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_convolutions_image_by_image_add_the_images():
    x, weights = drawn(3, 8, 8, 32), (drawn(5, 5, 1, 32), drawn(32))
    window = Window(1, centred_padding(5), IDENTITY, depthwise=True)

    def ours(x, *weights):
        return operations.convolutions_image_by_image(x, [(*weights, None)], [window], adds_images=True)

    def theirs(x, kernel, bias):
        return x + then_activate(functools.partial(plain_depthwise_convolution, stride=1), IDENTITY)(x, kernel, bias)

    assert_equal(ours, theirs, x, *weights)
    np.testing.assert_allclose(ours(x, *weights), theirs(x, *weights), atol=1e-4)  # without gradients


def test_convolutions_image_by_image_of_no_image():
    assert image_by_image(drawn(0, 9, 8, 12), block_weights()).shape == (0, 5, 4, 20)


def test_network_computes_image_by_image_what_fits_the_caches():
    network = EFFICIENTNET_LITE0.build(batch_norm_momentum=0.9, rng=np.random.default_rng(0))
    network.fold()
    images = drawn(3, 64, 64, 3)
    step = jax.jit(lambda images: network(images, train=False))
    # Blocks 0 to 4 read at least as many pixels as they have channels: 32², 32², 16², 16² and 8².
    assert step.lower(images).as_text().count(library.target("convolutions_image_by_image")) == 4
    with without_onednn():
        expected = jax.jit(lambda images: network(images, train=False))(images)
    np.testing.assert_allclose(step(images), expected, atol=1e-4 * np.abs(expected).max())


def test_bfloat16():
    x, kernel, bias = drawn(2, 9, 9, 32).astype(jnp.bfloat16), drawn(64, 3, 3, 32).astype(jnp.bfloat16), drawn(64)
    padding = centred_padding(3)

    def ours(x, kernel, bias):
        return operations.convolution(x, kernel, bias, Window(1, padding, RELU))

    definition = functools.partial(plain_convolution, stride=1, padding=padding)
    assert_equal(ours, then_activate(definition, RELU), x, kernel, bias, tolerance=1e-2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("channels", [5, 16, 40])
def test_max_pool(stride, size, channels):
    x = jnp.floor(drawn(2, size + 3, size + 2, channels) * 2)  # whole numbers, so that windows have equal pixels
    assert_equal(
        functools.partial(operations.max_pool, stride), lambda x: max_pool_on_cpu(x, stride), x, tolerance=1e-6
    )


def test_max_pool_keeps_what_is_not_a_number():
    x = drawn(1, 5, 5, 16).at[0, 2, 2, 3].set(jnp.nan)
    found = operations.max_pool(1, x)
    assert np.isnan(found).sum() == 9  # one in each window that contains it


def test_average_pool():
    assert_equal(operations.average_pool, plain_average_pool, drawn(2, 6, 5, 7), tolerance=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 5, 7), (4, 40, 40, 16)])
def test_sums_of_batch_norm(shape):
    x, gradient, channels = drawn(*shape), drawn(*shape, seed=1), [drawn(shape[-1], seed=seed) for seed in range(2, 5)]
    for activation in (RELU, RELU6, IDENTITY):
        ours = _sums_of_gradients(x, gradient, *channels, activation)
        with without_onednn():
            theirs = _sums_of_gradients(x, gradient, *channels, activation)
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.prod(shape[:3]) ** 0.5)
    ours = _sums_of_distances(x, *channels[:2])
    with without_onednn():
        theirs = _sums_of_distances(x, *channels[:2])
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.prod(shape[:3]) ** 0.5)


def test_sums_are_exact_far_from_zero():
    """The mean of a million values near 1,000 to seven digits: blocks are added in float64."""
    x = 1000 + drawn(4, 512, 512, 1)
    sums, _ = operations.sums_of_distances(x, jnp.zeros(1))
    np.testing.assert_allclose(sums, np.asarray(x, np.float64).sum((0, 1, 2)), rtol=1e-7)


@pytest.mark.parametrize("size", [(0, 4, 4, 3), (2, 1, 1, 3)])
def test_nothing_to_compute(size):
    """A batch without images, and a kernel larger than the image."""
    definition = jax.eval_shape(
        functools.partial(plain_convolution, stride=1, padding=((0, 0), (0, 0))), drawn(*size), drawn(5, 3, 3, 3)
    )
    found = operations.convolution(drawn(*size), drawn(5, 3, 3, 3), None, Window(1, ((0, 0), (0, 0)), IDENTITY))
    assert found.shape == definition.shape


def test_shapes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="conv_general_dilated"):
        operations.convolution(drawn(1, 4, 4, 3), drawn(5, 3, 3, 4), None, Window(1, centred_padding(3), IDENTITY))


def test_failure_in_a_handler_is_an_exception():
    """The library refuses a kernel of another shape than the images have. The process goes on."""
    result = jax.ShapeDtypeStruct((1, 4, 4, 5), jnp.float32)
    attributes = operations._geometry(Window(1, ((1, 1), (1, 1)), IDENTITY)) | {
        "low": np.float32(0),
        "high": np.float32(1),
    }
    call = jax.ffi.ffi_call(library.target("convolution"), result)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match="oneDNN: dnnl_convolution_forward_primitive_desc_create failed with status"
    ):
        jax.block_until_ready(
            call(drawn(1, 4, 4, 3), drawn(5, 3, 3, 4), *[jnp.zeros(0)] * 2, jnp.zeros(0, jnp.uint32), **attributes)
        )


@pytest.mark.parametrize("fingerprint_of", [operations.fingerprint_of, lambda kernel: None])
def test_changed_kernel_is_used(fingerprint_of):
    x, bias, window = drawn(1, 8, 8, 32), jnp.zeros(32), Window(1, centred_padding(3), RELU)
    step = jax.jit(
        lambda kernel: operations.convolution(x, kernel, bias, window, fingerprint=fingerprint_of(kernel)),
        donate_argnums=(),
    )
    first, second = drawn(32, 3, 3, 32), drawn(32, 3, 3, 32, seed=1)
    for kernel in (first, second, first):
        expected = jnp.maximum(plain_convolution(x, kernel, 1), 0)
        np.testing.assert_allclose(step(kernel), expected, atol=1e-3)


def test_a_kernel_is_known_by_its_fingerprint():
    """Its copy in oneDNN's layout is used again, whatever the kernel is. A gradient uses the kernel.

    oneDNN has a layout of its own for these channels on every processor with AVX2.
    """
    x, window = drawn(1, 8, 8, 32), Window(1, centred_padding(3), IDENTITY)
    first, second = drawn(32, 3, 3, 32), drawn(32, 3, 3, 32, seed=1)

    def ours(x, kernel):
        return operations.convolution(x, kernel, None, window, fingerprint=operations.fingerprint_of(first))

    np.testing.assert_array_equal(ours(x, first), ours(x, second))
    assert_equal(ours, functools.partial(plain_convolution, stride=1), x, second)


@pytest.mark.parametrize(("side", "kept"), [(1, True), (3, False)])
def test_on_one_pixel_a_fingerprint_is_of_the_whole_kernel(side, kept, monkeypatch):
    """Of a larger kernel only the middle is used, which the fingerprint does not describe."""
    assert uses_onednn()  # its test runs before the operation is replaced
    seen = []

    def record(x, kernel, bias, window, addend, fingerprint):
        seen.append((kernel.shape[1], fingerprint is not None))
        return x

    monkeypatch.setattr(operations, "convolution", record)
    jax.eval_shape(
        lambda x, kernel, fingerprint: convolve(x, kernel, 1, fingerprint=fingerprint),
        *(drawn(2, 1, 1, 8), drawn(8, side, side, 8), jnp.zeros(4, jnp.uint32)),
    )
    assert seen == [(1, kept)]


@pytest.mark.parametrize("shape", [(1,), (3, 3, 1, 3), (2, 3, 3, 2)])
def test_each_bit_changes_a_fingerprint(shape):
    kernel = np.asarray(drawn(*shape)).ravel()
    of = jax.jit(operations.fingerprint_of)
    seen, changed = {bytes(of(jnp.array(kernel)))}, list(itertools.product(range(kernel.size), range(32)))
    for place, bit in changed:
        bits = kernel.copy().view(np.uint32)
        bits[place] ^= np.uint32(1 << bit)
        seen.add(bytes(of(jnp.array(bits.view(np.float32)))))
    assert len(seen) == len(changed) + 1
    assert bytes(of(jnp.zeros(8))) != bytes(of(jnp.zeros(9)))


def test_repeats_to_the_last_bit():
    x, kernel = drawn(4, 28, 28, 32), drawn(48, 3, 3, 32)
    step = jax.jit(
        functools.partial(
            value_and_gradients,
            lambda x, k: operations.convolution(x, k, None, Window(1, centred_padding(3), IDENTITY)),
        )
    )
    first = step(x, kernel)
    for _ in range(3):
        for one, other in zip(first, step(x, kernel), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_way_is_named_and_tested():
    assert way().onednn
    assert way().name.startswith("oneDNN (2023.2")
    assert uses_onednn()
    with without_onednn():
        assert not uses_onednn()
    probe.check()


def test_probe_refuses_a_wrong_result(monkeypatch):
    monkeypatch.setattr(operations, "average_pool", lambda x: x)
    with pytest.raises(Unavailable, match="its average differs from the definition"):
        probe.check()

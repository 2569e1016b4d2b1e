"""From bytes to unit vectors: an embedding by hand, unit length, and the initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from proxynca_jax.models import BACKBONES
from proxynca_jax.models.batch_norm import BatchNorm
from proxynca_jax.models.network import Linear, Network, unit_vectors


def network(embedding_dim: int, rng: np.random.Generator, compute_dtype: str = "float32") -> Network:
    options = {"batch_norm_momentum": 0.1, "compute_dtype": compute_dtype, "rng": rng}
    return Network(BACKBONES["bn_inception"], embedding_dim, **options)


def leaves(seed: int) -> dict[tuple, jax.Array]:
    model = network(64, np.random.default_rng(seed))
    return dict(nnx.to_flat_state(nnx.state(model)))


def test_unit_vectors_worked_by_hand():
    rows = jnp.array([[3.0, -4.0], [0.0, 2e-8], [0.0, 0.0], [3e-13, 4e-13]])
    # The last row is shorter than 1e-12, by which it is divided.
    np.testing.assert_allclose(unit_vectors(rows), [[0.6, -0.8], [0, 1], [0, 0], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(unit_vectors(rows), functional.normalize(torch.tensor(np.asarray(rows))), rtol=1e-6)


def test_pixels_to_embedding_worked_by_hand():
    model = network(2, np.random.default_rng(0))
    model.backbone = lambda pixels, train: pixels[:, 0, 0]  # the features are the first pixel
    model.embedding_layer = Linear(3, 2, rng=np.random.default_rng(0))
    model.embedding_layer.kernel[...] = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    model.embedding_layer.bias[...] = jnp.array([0.0, 5.0])
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8).at[0, 0, 0].set(jnp.array([0, 120, 110], jnp.uint8))
    # Blue and green less their means are 110 − 104 = 6 and 120 − 117 = 3, and with the bias 6 and 8.
    np.testing.assert_allclose(model(images, train=False), [[0.6, 0.8]], rtol=1e-6)


def test_size_on_which_the_network_does_not_close():
    model = network(16, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"image_size is 48.* 38 or 63"):
        model(jnp.zeros((1, 48, 48, 3), jnp.uint8), train=False)


def test_embedding_layer_starts_as_the_references():
    layer = Linear(1024, 64, rng=np.random.default_rng(0))
    assert layer.kernel.shape == (1024, 64)
    sigmas = np.asarray(layer.kernel[...]) / 0.001
    assert 1.99 < abs(sigmas).max() <= 2.00001
    assert abs(sigmas.mean()) < 0.015  # four standard errors
    # Of a normal variable, 68.27 % lie within 1 σ and 95.45 % within 2 σ, where this one is cut.
    assert (abs(sigmas) < 1).mean() == pytest.approx(0.6827 / 0.9545, abs=0.007)

    assert 0.9 / 32 < abs(np.asarray(layer.bias[...])).max() <= 1 / 32


def test_bias_starts_uniform():
    bias = Linear(4, 20000, rng=np.random.default_rng(0)).bias[...]
    np.testing.assert_allclose(np.quantile(bias, [0, 0.2, 0.5, 1]), [-0.5, -0.3, 0, 0.5], rtol=0, atol=0.02)


def test_linear_worked_by_hand():
    layer = Linear(2, 3, rng=np.random.default_rng(0))
    layer.kernel[...] = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 10.0]])
    layer.bias[...] = jnp.array([0.5, 0.0, -1.0])
    np.testing.assert_array_equal(layer(jnp.array([[3.0, 4.0]])), [[3.5, 4, 45]])


def test_seed_decides_the_weights():
    first, again, other = leaves(0), leaves(0), leaves(1)
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf[...], again[path][...])
    drawn = [path for path in first if path[-1] == "kernel"] + [("embedding_layer", "bias")]
    assert len(drawn) == 71  # 69 convolutions and the embedding layer's two
    for path in drawn:
        assert not np.array_equal(first[path][...], other[path][...]), path


def test_folded_network_embeds_as_the_network_does():
    rng = np.random.default_rng(0)
    model = network(8, rng)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("bias", "scale", "mean", "var"):  # which start as 0 or 1, where nothing would show
            factor = 1 if path[-1] in ("scale", "var") else 0.1
            leaf[...] = jnp.array(factor * (0.5 + rng.random(leaf.shape)), jnp.float32)
    images = jnp.array(rng.integers(0, 256, (3, 32, 32, 3), np.uint8))
    expected = model(images, train=False)
    norms = sum(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(model))
    model.fold()
    assert norms > 60
    assert not any(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(model))
    np.testing.assert_allclose(model(images, train=False), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_embeds_about_as_float32_and_keeps_float32(train):
    images = jnp.array(np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), np.uint8))
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = network(32, np.random.default_rng(0), dtype)
        graph, state = nnx.split(model)

        @jax.jit
        def embed(state, graph=graph):
            merged = nnx.merge(graph, state)
            return merged(images, train=train), nnx.state(merged)

        found[dtype], after = embed(state)
        assert found[dtype].dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    cosines = jnp.sum(found["float32"] * found["bfloat16"], -1)
    assert jnp.min(cosines) > 0.98, cosines
    assert not np.array_equal(found["float32"], found["bfloat16"])  # else the option does nothing

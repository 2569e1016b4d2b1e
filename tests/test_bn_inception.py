"""BN-Inception: its blocks against their definition, its leaves, its image sizes and its FLOP."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from golden_cub import FOLDER, as_torch
from torch.utils.flop_counter import FlopCounterMode

from convert.bn_inception import TorchBNInception
from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models.bn_inception import BLOCKS, BN_INCEPTION, FEATURES, BNInception, is_valid_image_size
from proxynca_jax.models.network import forward_flops


@pytest.fixture(scope="module")
def network() -> BNInception:
    return BNInception(batch_norm_momentum=0.1, rng=np.random.default_rng(0))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("block", ["inception_3a", "inception_3c", "inception_5b"])  # each kind of pool
def test_a_block_is_what_it_is_defined_as(network, block, train):
    x = jnp.array(np.random.default_rng(0).standard_normal((2, 8, 8, BLOCKS[block].inputs), np.float32))
    plain, fast = nnx.clone(network), nnx.clone(network)
    expected = plain.plain_block(block, x, train=train)
    np.testing.assert_allclose(fast.block(block, x, train=train), expected, rtol=0, atol=2e-5)
    statistics = (jax.tree.leaves(nnx.to_pure_dict(nnx.state(each, nnx.BatchStat))) for each in (fast, plain))
    for ours, theirs in zip(*statistics, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


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
    """Whether the branches of every block can be concatenated, and no output is empty."""

    def outputs(images: jax.Array) -> list[jax.Array]:
        return [output for _, output in network.stages(images, train=False)]

    try:
        found = jax.eval_shape(outputs, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    except TypeError as error:
        if "concatenate" not in str(error):
            raise
        return False
    return found[-1].shape == (1, FEATURES) and all(0 not in output.shape for output in found)


def test_sizes_by_brute_force(network):
    # The stem's output grows by a pixel at every eighth size: both sides of each step.
    sizes = [size for step in range(1, 17) for size in (8 * step - 2, 8 * step - 1)]
    assert [size for size in sizes if closes(network, size)] == [size for size in sizes if is_valid_image_size(size)]


@pytest.mark.parametrize(
    ("size", "nearest"), [(48, "38 or 63"), (0, "fit: 31"), (-7, "fit: 31"), (39, "38 or 63"), (222, "198 or 223")]
)
def test_message_names_the_nearest_sizes(size, nearest):
    with pytest.raises(UserError) as error:
        BN_INCEPTION.check_image_size(size)
    assert str(error.value).startswith(f"data.image_size is {size}, which does not fit BN-Inception: the inputs of ")
    assert nearest in str(error.value)


def test_network_refuses_a_size_that_does_not_fit(network):
    with pytest.raises(ValueError, match="38 or 63"):
        network(jnp.zeros((1, 48, 48, 3)), train=False)


@pytest.mark.parametrize("image_size", [64, 227])
def test_forward_flops_are_what_pytorch_counts(image_size):
    network = TorchBNInception({"embedding_layer": 64}).to("meta").eval()
    images = torch.empty(1, image_size, image_size, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert forward_flops(ModelConfig(embedding_dim=64), image_size) == counter.get_total_flops()

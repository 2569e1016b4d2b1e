"""A tree in few arrays, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxynca_jax import steps
from proxynca_jax.config import ModelConfig, OptimConfig
from proxynca_jax.optim import make_optimizer
from proxynca_jax.packing import pack, unpack

TREE = {
    "b": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.array([7.0])},
    "a": {"scale": jnp.array([8.0, 9.0]), "kernel": jnp.arange(4.0).reshape(1, 2, 2, 1)},
}


def test_vectors_are_concatenated_in_the_order_of_the_tree_and_kernels_are_not():
    packed = pack(TREE)
    np.testing.assert_array_equal(packed.vectors, [8, 9, 7])
    assert [leaf.shape for leaf in packed.others] == [(1, 2, 2, 1), (2, 3)]


@pytest.mark.parametrize("tree", [TREE, {"kernel": jnp.ones((2, 3))}, {}])
def test_a_tree_comes_back_whole(tree):
    found = unpack(pack(tree))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_training_step_gets_few_arrays():
    """The host hands them over one by one, twice in each step."""
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=1)
    _, state = steps.init_state(ModelConfig(), optimizer, classes=100, seed=0)
    assert len(jax.tree.leaves(state)) == 88

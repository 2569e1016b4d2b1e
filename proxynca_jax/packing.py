"""Packs a network's arrays into fewer: all vectors are concatenated into one, kernels stay separate.

The host handles the arguments and results of a program one by one. The training state has a thousand arrays, most of
them biases, scales and statistics of some hundred numbers. They would cost several milliseconds per step. Kernels are
not packed, because cuDNN would need a copy of each.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Packed:
    """A tree of arrays of one dtype, with fewer leaves; or their shapes, while a program is compiled."""

    vectors: Any  # Array, the tree's vectors in the tree's order
    others: tuple[Any, ...]  # the tree's other arrays
    tree: Any = struct.field(pytree_node=False)  # jax.tree_util.PyTreeDef
    lengths: tuple[int | None, ...] = struct.field(pytree_node=False)  # of the vectors; None for another array


@jax.jit
def pack(tree: Any) -> Packed:
    """Packs a tree that has at least one vector."""
    leaves, structure = jax.tree.flatten(tree)
    vectors = jnp.concatenate([leaf for leaf in leaves if leaf.ndim == 1])
    others = tuple(leaf for leaf in leaves if leaf.ndim != 1)
    return Packed(vectors, others, structure, tuple(leaf.size if leaf.ndim == 1 else None for leaf in leaves))


def unpack(packed: Packed) -> Any:
    """Returns the tree that was packed. Arrays other than vectors are shared with `packed`, not copied."""
    lengths = tuple(length for length in packed.lengths if length is not None)
    vectors, others = iter(_split(packed.vectors, lengths)), iter(packed.others)
    leaves = (next(others if length is None else vectors) for length in packed.lengths)
    return jax.tree.unflatten(packed.tree, leaves)


@jax.jit(static_argnums=1)
def _split(vectors: jax.Array, lengths: tuple[int, ...]) -> list[jax.Array]:
    return jnp.split(vectors, list(itertools.accumulate(lengths))[:-1])

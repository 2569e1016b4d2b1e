"""Packs a network's vectors into one array. Kernels stay separate.

JAX passes a program's arguments and results one by one. The training state is a thousand arrays, and passing them takes
the host several milliseconds per step. Nearly all are vectors: biases, scales and statistics of some hundred numbers.
Packed kernels would have to be copied out for cuDNN.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Packed:
    """A packed tree of arrays of one dtype. It is a pytree itself, with fewer leaves."""

    vectors: Any  # Array: the tree's vectors, concatenated in the tree's order; or its shape, while JAX compiles
    others: tuple[Any, ...]  # the tree's other arrays, or their shapes
    tree: Any = struct.field(pytree_node=False)  # jax.tree_util.PyTreeDef
    lengths: tuple[int | None, ...] = struct.field(pytree_node=False)  # per leaf: its length, or None if no vector


@jax.jit
def pack(tree: Any) -> Packed:
    """Packs a tree of arrays. A network without BatchNorm has no running statistics, so a tree may have no vector."""
    leaves, structure = jax.tree.flatten(tree)
    vectors = [leaf for leaf in leaves if leaf.ndim == 1]
    vectors = jnp.concatenate(vectors) if vectors else jnp.zeros(0)
    others = tuple(leaf for leaf in leaves if leaf.ndim != 1)
    return Packed(vectors, others, structure, tuple(leaf.size if leaf.ndim == 1 else None for leaf in leaves))


def unpack(packed: Packed) -> Any:
    """Returns the original tree. Arrays other than vectors are shared with `packed`, not copied."""
    lengths = tuple(length for length in packed.lengths if length is not None)
    vectors, others = iter(_split(packed.vectors, lengths)), iter(packed.others)
    leaves = (next(others if length is None else vectors) for length in packed.lengths)
    return jax.tree.unflatten(packed.tree, leaves)


@jax.jit(static_argnums=1)
def _split(vectors: jax.Array, lengths: tuple[int, ...]) -> list[jax.Array]:
    return jnp.split(vectors, list(itertools.accumulate(lengths))[:-1])

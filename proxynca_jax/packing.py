"""A network's arrays in few: its vectors lie end to end in one array, its kernels stay by themselves.

A program's arguments and results are handed over one by one. Of the training state that is a thousand arrays, nearly
all of them biases, scales and statistics of some hundred numbers, and several milliseconds of the host's time a step.
Kernels in one array with the rest would have to be copied out of it for cuDNN.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Packed:
    """A tree of arrays of one dtype. It is a tree itself, whose leaves are fewer."""

    vectors: Any  # Array, the tree's vectors in the tree's order; or what stands for it while a program is compiled
    others: tuple[Any, ...]  # the tree's other arrays, likewise
    tree: Any = struct.field(pytree_node=False)  # jax.tree_util.PyTreeDef
    lengths: tuple[int | None, ...] = struct.field(pytree_node=False)  # of the vectors; None stands for another array


@jax.jit
def pack(tree: Any) -> Packed:
    """Packs a tree of which one array or more is a vector."""
    leaves, structure = jax.tree.flatten(tree)
    vectors = jnp.concatenate([leaf for leaf in leaves if leaf.ndim == 1])
    others = tuple(leaf for leaf in leaves if leaf.ndim != 1)
    return Packed(vectors, others, structure, tuple(leaf.size if leaf.ndim == 1 else None for leaf in leaves))


def unpack(packed: Packed) -> Any:
    """The tree that was packed. Arrays other than vectors are shared with `packed`, not copied."""
    lengths = tuple(length for length in packed.lengths if length is not None)
    vectors, others = iter(_split(packed.vectors, lengths)), iter(packed.others)
    leaves = (next(others if length is None else vectors) for length in packed.lengths)
    return jax.tree.unflatten(packed.tree, leaves)


@jax.jit(static_argnums=1)
def _split(vectors: jax.Array, lengths: tuple[int, ...]) -> list[jax.Array]:
    return jnp.split(vectors, list(itertools.accumulate(lengths))[:-1])

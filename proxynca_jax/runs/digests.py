"""Digests of arrays, computed where the arrays are. They notice damage of files; they do not keep out an attacker."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

SEEDS = (0x9E3779B9, 0x7F4A7C15)  # two sums of 32 bits
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes of a number


def digests(tree: Any) -> dict[str, str]:
    """Computes the digest of each leaf.

    Each number's bits and its place are mixed into 32 bits, as MurmurHash3 ends, and all are added up. So one changed
    bit always changes the digest, and devices that share an array add up their parts.

    Args:
        tree: of arrays of 1, 2 or 4 bytes per number, sharded in any way.

    Returns:
        By the leaf's path: its dtype, its shape and 64 bits in hexadecimal digits.
    """
    leaves = named_leaves(tree)
    sums = np.asarray(_sums([leaf for _, leaf in leaves])).tolist()
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {high:08x}{low:08x}"
        for (name, leaf), (high, low) in zip(leaves, sums, strict=True)
    }


def digest(tree: Any) -> str:
    """Computes one digest of a whole tree, such as a network's arrays: 32 hexadecimal digits.

    Args:
        tree: as for `digests`. How it is sharded makes no difference.
    """
    lines = sorted(f"{name} {found}" for name, found in digests(tree).items())
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree with their paths, such as `network/params/embedding_layer/bias`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


@jax.jit
def _sums(leaves: list[Array]) -> UInt32[Array, "leaves 2"]:
    return jnp.stack([jnp.stack([_sum(leaf, seed) for seed in SEEDS]) for leaf in leaves])


def _sum(leaf: Array, seed: int) -> UInt32[Array, ""]:
    if leaf.dtype == jnp.bool:
        leaf = leaf.astype(jnp.uint8)
    mixed = jax.lax.bitcast_convert_type(leaf, UNSIGNED[leaf.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis, length in enumerate(leaf.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed ^= (place + 1) * jnp.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)

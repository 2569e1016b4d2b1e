"""Digests of arrays. They notice damage of files; they do not keep out an attacker."""

import hashlib
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt32

from proxynca_jax.machine import processes

SEEDS = (0x9E3779B9, 0x7F4A7C15)  # two sums of 32 bits
CHUNK = 2**15  # numbers that stay in a core's cache while they are mixed


def digests(tree: Any) -> dict[str, str]:
    """Computes the digest of each leaf.

    Each number's bits and its place are mixed into 32 bits, as MurmurHash3 ends, and all are added up. So one changed
    bit always changes the digest, and processes that share an array add up their parts. NumPy computes them, in a sixth
    of a second for the state of BN-Inception: a program of XLA would take many seconds to compile for its shapes.

    Args:
        tree: of JAX's arrays with 1, 2 or 4 bytes per number, whole or sharded by rows. If one is sharded, all
            processes must call this.

    Returns:
        By the leaf's path: its dtype, its shape and 64 bits in hexadecimal digits.
    """
    leaves = named_leaves(tree)
    sums = {name: _sums(leaf) for name, leaf in leaves}
    shared = [name for name, leaf in leaves if not leaf.is_fully_replicated]
    if shared:
        sums |= zip(shared, processes.sum_of_all(np.stack([sums[name] for name in shared])), strict=True)
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {''.join(f'{each:08x}' for each in sums[name].tolist())}"
        for name, leaf in leaves
    }


def digest(tree: Any) -> str:
    """Computes one digest of a whole tree, such as a network's arrays: 32 hexadecimal digits.

    Args:
        tree: as for `digests`. Whether arrays are sharded makes no difference.
    """
    lines = sorted(f"{name} {found}" for name, found in digests(tree).items())
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Lists the leaves of a tree with their paths, such as `network/params/embedding_layer/bias`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _sums(leaf: Array) -> UInt32[np.ndarray, "2"]:
    """The sums of a whole leaf or, if it is sharded, of this process's rows."""
    shards = leaf.addressable_shards
    shards = shards[:1] if leaf.is_fully_replicated else [shard for shard in shards if shard.replica_id == 0]
    sums = np.zeros(len(SEEDS), np.uint32)
    assert leaf.dtype.itemsize <= 4
    for shard in shards:
        assert shard.data.shape[1:] == leaf.shape[1:]
        first_row = shard.index[0].start or 0 if leaf.ndim else 0
        place = first_row * math.prod(leaf.shape[1:])
        bits = np.ascontiguousarray(shard.data).reshape(-1).view(f"uint{8 * leaf.dtype.itemsize}")
        for start in range(0, bits.size, CHUNK):
            sums += _mixed(bits[start : start + CHUNK].astype(np.uint32), place + start)
    return sums


def _mixed(bits: UInt32[np.ndarray, " numbers"], place: int) -> UInt32[np.ndarray, "2"]:
    """The sums of neighbouring numbers, of which the first has this place in its array."""
    places = np.arange(1, bits.size + 1, dtype=np.uint32) + np.uint32(place % 2**32)
    sums = []
    for seed in SEEDS:
        mixed = bits ^ (places * np.uint32(seed))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            mixed ^= mixed >> shift
            mixed *= np.uint32(factor)
        mixed ^= mixed >> 16
        sums.append(mixed.sum(dtype=np.uint32))
    return np.array(sums, np.uint32)

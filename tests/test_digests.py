"""Digests of arrays: known ones, what changes them, and arrays that devices share."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np

from proxynca_jax.runs.digests import CHUNK, digests

# On eight devices: the digests of an array whose rows are shared, and of the same array on every device.
PROGRAM = """
import json
import jax
import numpy as np
from proxynca_jax.runs.digests import digests
from proxynca_jax.sharding import Layout

rows = np.random.default_rng(0).standard_normal((16, 5), np.float32)
placed = Layout(sharded_classes=16).place({"proxies": rows, "other": rows})
shards = {name: len(set(map(str, array.sharding.devices_indices_map(rows.shape).values())))
          for name, array in placed.items()}
print(json.dumps([digests(placed), shards]))
"""


def test_known_digests():
    """Those that checkpoints were written with must not change."""
    rng = np.random.default_rng(0)
    large = rng.standard_normal((40, 1001), np.float32)
    assert large.size > CHUNK
    arrays = {
        "large": jnp.array(large),
        "scalar": jnp.int32(7),
        "logical": jnp.array([True, False]),
        "half": jnp.array([1.5, -2.0], jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
    }
    assert digests({"a": arrays}) == {
        "a/large": "float32[40, 1001] 69255e088ab848e8",
        "a/scalar": "int32[] 582531c17b72f644",
        "a/logical": "bool[2] 73b598f6b9d6ab9b",
        "a/half": "bfloat16[2] 338e70df29ebf8d5",
        "a/empty": "float32[0, 3] 0000000000000000",
    }


def test_one_changed_bit_changes_a_digest_and_so_do_exchanged_numbers():
    rng = np.random.default_rng(0)
    for array in (rng.standard_normal((5, 7), np.float32), np.arange(6, dtype=np.int32), np.array([True, False, True])):
        before = digests({"x": jnp.array(array)})["x"]
        seen = {before}
        for place in range(array.size):
            bits = array.copy().view(np.uint8).reshape(array.size, -1)
            bits[place, -1] ^= 1
            seen.add(digests({"x": jnp.array(bits.reshape(-1).view(array.dtype).reshape(array.shape))})["x"])
        seen.add(digests({"x": jnp.array(np.roll(array, 1))})["x"])
        assert len(seen) == array.size + 2
        assert before.startswith(f"{array.dtype}{list(array.shape)} ")
    assert digests({"a": {"b": jnp.zeros(3)}}).keys() == {"a/b"}


def test_an_array_that_devices_share_has_the_digest_of_the_whole():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    found, shards = json.loads(done.stdout)
    assert shards == {"other": 1, "proxies": 8}
    assert found["proxies"] == found["other"]

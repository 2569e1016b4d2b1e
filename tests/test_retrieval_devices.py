"""Retrieval scores are bit-identical on one, two and eight devices."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from proxynca_jax.metrics.retrieval import precisions_at_r, ranks

REPOSITORY = Path(__file__).parents[1]
# JAX counts its devices once, when it starts, so this runs in a process of its own.
PROGRAM = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh
from proxynca_jax.metrics.retrieval import precisions_at_r, ranks
from tests.test_retrieval_devices import searches

devices = np.array(jax.devices())
assert len(devices) == 8
meshes = {"default": None, "two": Mesh(devices[:2], ("x",)), "grid": Mesh(devices.reshape(2, 4), ("x", "y"))}
scores = {}
for name, mesh in meshes.items():
    for kind, (images, options) in searches().items():
        scores[f"{name}/{kind}/ranks"] = ranks(*images, **options, mesh=mesh)
        scores[f"{name}/{kind}/precisions"] = precisions_at_r(*images, **options, mesh=mesh)
np.savez(sys.argv[1], **scores)
"""


def searches() -> dict[str, tuple[tuple[np.ndarray, np.ndarray], dict]]:
    """Returns searches whose sizes are not multiples of the devices or the block, one with more devices than blocks."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 60, 301)
    embeddings = rng.standard_normal((60, 16), np.float32)[labels] + rng.standard_normal((301, 16), np.float32)
    queries, gallery = (embeddings[:101], labels[:101]), (embeddings[101:], labels[101:])
    return {
        "itself": ((embeddings, labels), {"block_size": 16}),
        "gallery": (queries, {"gallery": gallery, "block_size": 16, "distance": "squared_euclidean"}),
        "one_block": ((embeddings, labels), {"block_size": 512}),
    }


@pytest.fixture(scope="module")
def scores_of_more_devices(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "scores.npz"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(path)], cwd=REPOSITORY, env=environment, check=True)
    with np.load(path) as scores:
        return dict(scores)


@pytest.mark.parametrize("mesh", ["default", "two", "grid"])
@pytest.mark.parametrize("kind", searches())
def test_scores_do_not_depend_on_the_number_of_devices(scores_of_more_devices, mesh, kind):
    images, options = searches()[kind]
    found, precisions = ranks(*images, **options), np.array(precisions_at_r(*images, **options))
    assert len(np.unique(found)) > 10
    np.testing.assert_array_equal(scores_of_more_devices[f"{mesh}/{kind}/ranks"], found, strict=True)
    np.testing.assert_array_equal(scores_of_more_devices[f"{mesh}/{kind}/precisions"], precisions, strict=True)

"""Evaluation images are decoded once, kept where there is room, and are the same to the last bit in every pass."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
import trees
from jax.sharding import Mesh

from proxynca_jax import steps
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from proxynca_jax.data import evaluation_images
from proxynca_jax.data.cache import cached_crops
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.evaluation_images import CACHE, DEVICE, HOST, NOWHERE, choose_place, evaluation_source
from proxynca_jax.data.pipeline import evaluation_batches
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.embedder import TrainedNetwork, embed
from proxynca_jax.errors import UserError
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import init_network
from proxynca_jax.sharding import AXIS, Layout

REPOSITORY = pathlib.Path(__file__).parents[1]
PLACES = (DEVICE, HOST, CACHE, NOWHERE)
IMAGES, BATCH, SIZE = 26, 8, 32  # the last batch has 6 rows of padding
# JAX counts its devices once, when it starts: hence a process of its own.
PROGRAM = """
import pathlib, sys
import jax
import numpy as np
from tests import test_evaluation_images

assert jax.device_count() == 8
folder = pathlib.Path(sys.argv[1])
np.savez(folder / "passes.npz", **test_evaluation_images.passes(folder))
"""


def draw(root: pathlib.Path) -> tuple[Split, TrainConfig]:
    """Evaluation images that their crops differ from."""
    trees.draw_folder(root, classes=4, images_per_class=IMAGES // 2)
    data = DataConfig(dataset="folder", root=str(root), resize_size=40, image_size=SIZE, threads=2)
    config = TrainConfig(data=data, evaluation=EvaluationConfig(batch_size=BATCH))
    return load_dataset(data).evaluation.queries, config


def passes(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What the first, second and third pass embed and its embeddings, in each place, and what they should be.

    Where images are kept, their files are deleted as soon as they should be.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", tiny.TINY)  # in the other process, no fixture does
        graph, variables = init_network(ModelConfig(backbone="tiny", embedding_dim=8), np.random.default_rng(0))
    network = TrainedNetwork(steps.make_embed_step(graph), variables)
    found = {}
    for place in PLACES:
        split, config = draw(folder / place)
        expected = evaluation_batches(split, config.data, batch_size=BATCH)
        found[f"{place} pixels"] = np.concatenate([batch["image"] for batch in expected])
        found[f"{place} embeddings"] = embed(network, split, config)
        if place == CACHE:
            config.data.cache = str(folder / "crops")
            split = cached_crops(split, config.data)
            shutil.rmtree(folder / place)
        source = evaluation_source(split, config, place)
        for number in (1, 2, 3):
            found[f"{place} embeddings {number}"] = embed(network, split, config, source=source)
            found[f"{place} pixels {number}"] = np.concatenate([np.asarray(batch["image"]) for batch in source()])
            if place in (DEVICE, HOST):
                shutil.rmtree(folder / place, ignore_errors=True)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict[str, np.ndarray]]:
    """The passes by number of devices."""
    folder = tmp_path_factory.mktemp("eight")
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", PROGRAM, folder], env=environment, check=True)
    return {1: passes(tmp_path_factory.mktemp("one")), 8: dict(np.load(folder / "passes.npz"))}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("devices", [1, 8])
def test_every_pass_is_the_same_to_the_last_bit(found, devices, place):
    expected = found[devices]
    assert expected[f"{place} embeddings"].shape == (IMAGES, 8)
    assert expected[f"{place} pixels"].shape == (4 * BATCH, SIZE, SIZE, 3)
    for what in ("pixels", "embeddings"):
        for number in (1, 2, 3):
            ours = expected[f"{place} {what} {number}"]
            np.testing.assert_array_equal(ours, expected[f"{place} {what}"], strict=True)


@pytest.mark.parametrize("place", [DEVICE, HOST])
def test_a_pass_that_ends_early_is_not_kept(tmp_path, place):
    split, config = draw(tmp_path / "tree")
    source = evaluation_source(split, config, place)
    stopped = source()
    next(stopped)
    stopped.close()
    assert len(list(source())) == 4
    shutil.rmtree(tmp_path / "tree")
    stopped = source()  # from what is kept, which it leaves whole
    next(stopped)
    stopped.close()
    assert len(list(source())) == 4


@pytest.mark.parametrize("place", [DEVICE, HOST])
def test_a_pass_that_fails_is_not_kept(tmp_path, place):
    split, config = draw(tmp_path / "tree")
    damaged = pathlib.Path(split.names[IMAGES - 1])
    content = damaged.read_bytes()
    damaged.write_bytes(b"")
    source = evaluation_source(split, config, place)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot decode"):
            list(source())
    damaged.write_bytes(content)
    assert len(list(source())) == 4


NEEDED = 4 * BATCH * SIZE * SIZE * 3  # bytes, padding included


@pytest.mark.parametrize(
    ("device", "host", "cache", "place"),
    [
        (4 * NEEDED, 0, "", DEVICE),
        (4 * NEEDED - 1, 2 * NEEDED, "", HOST),
        (None, 2 * NEEDED, "/cache", HOST),
        (None, 2 * NEEDED - 1, "/cache", CACHE),
        (0, 2 * NEEDED - 1, "", NOWHERE),
    ],
)
def test_images_are_kept_where_there_is_room(tmp_path, monkeypatch, device, host, cache, place):
    split, config = draw(tmp_path)
    config.data.cache = cache
    monkeypatch.setattr(evaluation_images, "free_on_device", lambda: device)
    monkeypatch.setattr(evaluation_images, "free_on_host", lambda: host)
    found, line = choose_place(Evaluation(split), config)
    words = {
        DEVICE: "kept in device memory",
        HOST: "kept in host memory",
        CACHE: "read from /cache in every evaluation: 0.00 GB, too much for the 0.00 GB",
        NOWHERE: "Set data.cache",
    }
    assert (found, "\n" in line) == (place, False)
    assert words[place] in line


def test_devices_divide_the_images_among_them(tmp_path, monkeypatch):
    split, config = draw(tmp_path)
    monkeypatch.setattr(evaluation_images, "free_on_device", lambda: NEEDED)
    monkeypatch.setattr(evaluation_images, "free_on_host", lambda: 0)
    for devices, place in (2, NOWHERE), (4, DEVICE):
        layout = Layout(Mesh(np.array(jax.devices() * devices), (AXIS,)))
        monkeypatch.setattr(evaluation_images, "Layout", lambda layout=layout: layout)
        assert choose_place(Evaluation(split), config)[0] == place

"""The table of backbones: preprocessing, and that a name, a size or a run of another backbone is refused."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.twins import TWINS
from proxynca_jax import steps, train
from proxynca_jax.config import DataConfig, ModelConfig, TrainConfig
from proxynca_jax.embedder import load_network
from proxynca_jax.errors import UserError
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.backbone import Preprocessing, normalise
from proxynca_jax.models.network import abstract_network, init_network
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import open_run, read_config
from proxynca_jax.weights import NAMES
from proxynca_jax.weights.packages import PACKAGES


def test_one_pixel_of_bn_inception_worked_by_hand():
    found = normalise(jnp.array([[[[10, 20, 255]]]], jnp.uint8), BACKBONES["bn_inception"].preprocessing)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [[[[255 - 104, 20 - 117, 10 - 128]]]])


def test_one_pixel_with_a_scale_and_a_deviation_worked_by_hand():
    preprocessing = Preprocessing(
        channel_order="RGB", scale=1 / 255, mean=(0.5, 0.0, 0.2), std=(0.5, 2.0, 0.1), image_size=1, resize_size=1
    )
    found = normalise(jnp.array([[[[0, 51, 255]]]], jnp.uint8), preprocessing)
    np.testing.assert_allclose(found, [[[[-1, 0.1, 8]]]], rtol=1e-6)


def test_the_reference_expects_these_pixels():
    assert dataclasses.asdict(BACKBONES["bn_inception"].preprocessing) == {
        "channel_order": "BGR",
        "scale": 1.0,
        "mean": (104.0, 117.0, 128.0),
        "std": (1.0, 1.0, 1.0),
        "image_size": 227,
        "resize_size": 256,
    }


def test_names_twins_and_packages_are_of_backbones():
    assert PACKAGES.keys() <= NAMES.keys() <= BACKBONES.keys()
    assert TWINS.keys() <= NAMES.keys()


@pytest.mark.parametrize("name", ["bn_inception", "tiny"])
def test_abstract_network_has_the_shapes_of_the_network(name):
    config = ModelConfig(backbone=name, embedding_dim=8)
    graph, network = init_network(config, np.random.default_rng(0))
    abstract_graph, abstract = abstract_network(config)
    assert graph == abstract_graph
    assert jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), network) == abstract


def test_the_configuration_loads_without_jax():
    program = "import sys, proxynca_jax.config; sys.exit(bool({'jax', 'flax', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("bn_inceptoin", 32, r"model\.backbone is 'bn_inceptoin': did you mean 'bn_inception'\?"),
        ("bn_inception", 48, r"data\.image_size is 48, which does not fit BN-Inception.* 38 or 63"),
        ("tiny", 33, r"data\.image_size is 33, which does not fit the tiny network: the size must be even.* 32 or 34"),
    ],
)
def test_training_refuses_a_name_or_a_size_before_it_reads_images(tmp_path, backbone, size, message):
    data = DataConfig(dataset="glyphs", image_size=size)
    with pytest.raises(UserError, match=message):
        train.train(TrainConfig(data=data, model=ModelConfig(backbone=backbone)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def saved_run(run, backbone: str) -> TrainConfig:
    config = TrainConfig(model=ModelConfig(backbone=backbone, embedding_dim=8))
    open_run(run, config)
    _, state = steps.init_state(config.model, make_optimizer(config.optim, steps_per_epoch=1), classes=2, seed=0)
    with Checkpoints(run) as checkpoints:
        checkpoints.save("best", 0, state)
    return config


def test_a_run_continues_with_its_own_backbone_only(tmp_path):
    config = saved_run(tmp_path / "run", "tiny")
    config.model.backbone = "bn_inception"
    with pytest.raises(UserError, match=r"model\.backbone: 'tiny' there, 'bn_inception' now"):
        open_run(tmp_path / "run", config)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path):
    saved_run(tmp_path / "run", "tiny")
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"model": settings["model"] | {"backbone": "bn_inception"}}))
    with pytest.raises(UserError, match=r"the state in .*best.* is of another network .*model\.backbone"):
        load_network(tmp_path / "run", "best")
    path.write_text(json.dumps(settings | {"model": settings["model"] | {"backbone": "tinny"}}))
    with pytest.raises(UserError, match=r"model\.backbone is 'tinny': did you mean 'tiny'\?"):
        load_network(tmp_path / "run", "best")


def test_a_run_of_version_0_1_is_of_bn_inception(tmp_path):
    open_run(tmp_path / "run", TrainConfig())
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())
    del settings["model"]["backbone"]
    path.write_text(json.dumps(settings))
    assert read_config(tmp_path / "run").model.backbone == "bn_inception"


def test_a_restored_network_is_the_saved_one(tmp_path):
    config = saved_run(tmp_path / "run", "tiny")
    _, expected = init_network(config.model, np.random.default_rng(0))
    (_, variables), _, step = load_network(tmp_path / "run", "best")
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, variables, expected)

"""The configuration's limits, the files of configs/ against the reference's settings, and the folder of a run."""

import functools
import json
import math
import pathlib
import runpy
from typing import Any

import pytest

from proxynca_jax.config import DataConfig, EvaluationConfig, OptimConfig, TrainConfig, flatten
from proxynca_jax.errors import UserError
from proxynca_jax.runs.folder import open_run, read_config

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))

# Of every numeric field: values at the edge of what it allows, and the nearest ones that it refuses.
EDGES: dict[str, tuple[list[float], list[float]]] = {
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "log_every_steps": ([1], [0]),
    "data.eval_fraction": ([1e-9, 1.0], [0.0, 1.001]),
    "data.split_seed": ([0, 2**32 - 1], [-1, 2**32]),
    "data.image_size": ([31, 227], [0, -5, 257]),
    "data.resize_size": ([227], [226]),
    "data.crop_area_min": ([1e-9, 1.0], [0.0, 1.001]),
    "data.crop_area_max": ([0.08, 1.0], [0.079, 1.001]),
    "data.crop_aspect_max": ([1.0], [0.999]),
    "data.max_side": ([0, 1], [-1]),
    "data.threads": ([0, 1024], [-1, 1025]),
    "model.embedding_dim": ([1], [0]),
    "model.batch_norm_momentum": ([0.0, 1.0], [-0.001, 1.001]),
    "loss.embedding_scale": ([1e-9], [0.0, -3.0]),
    "loss.proxy_scale": ([1e-9], [0.0, -3.0]),
    "loss.label_smoothing": ([0.0, 1.0], [-0.001, 1.001]),
    "optim.epochs": ([0], [-1]),
    "optim.frozen_epochs": ([0, 20], [-1, 21]),
    "optim.warmup_epochs": ([0, 30], [-1]),
    "optim.batch_size": ([2], [1]),
    "optim.learning_rate": ([0.0], [-0.001]),
    "optim.embedding_learning_rate": ([0.0], [-0.001]),
    "optim.proxy_learning_rate": ([0.0], [-0.001]),
    "optim.decay_per_epoch": ([1e-9, 1.0], [0.0, 1.001]),
    "optim.weight_decay": ([0.0], [-0.001]),
    "optim.beta1": ([0.0, 0.999], [-0.001, 1.0]),  # at 1 the first moment stays 0, and so does its bias correction
    "optim.beta2": ([0.0, 0.9999], [-0.001, 1.0]),
    "optim.epsilon": ([1e-9], [0.0, -1.0]),
    "checkpoint.every_minutes": ([0.0, 1e-3, 90.0], [-1.0]),
    "evaluation.batch_size": ([1], [0]),
    "evaluation.kmeans_restarts": ([1], [0]),
    "evaluation.validation_fraction": ([1e-9, 1.0], [0.0, 1.001]),
}

REFERENCE = {  # the same on all three data sets
    "data.image_size": 227,
    "data.resize_size": 256,
    "data.squash": False,
    "data.crop_area_min": 0.08,
    "data.crop_area_max": 1.0,
    "data.crop_aspect_max": 4 / 3,
    "data.horizontal_flip": True,
    "model.embedding_dim": 64,
    "model.batch_norm_momentum": 0.1,
    "model.fixed_batch_norm": False,
    "loss.label_smoothing": 0.1,
    "loss.name": "proxy_nca",
    "optim.batch_size": 32,
    "optim.frozen_epochs": 0,
    "optim.warmup_epochs": 0,
    "optim.learning_rate": 0.045,
    "optim.embedding_learning_rate": 0.0,
    "optim.schedule": "exponential",
    "optim.decay_per_epoch": 0.94,
    "optim.weight_decay": 0.0,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.epsilon": 1.0,
    "evaluation.recall_at": (1, 2, 4, 8),
    "evaluation.protocol": "reference",
}
# The reference computes no NMI on SOP: its k-means and restarts are ours to choose.
SCALES_RATE_EPOCHS_KMEANS = {
    "cub": (3.0, 3.0, 1.0, 20, "scikit-learn", 10),
    "cars": (3.0, 3.0, 1.0, 50, "scikit-learn", 10),
    "sop": (1.0, 8.0, 10.0, 50, "device", 1),
}


def config_with(**fields: Any) -> TrainConfig:
    """A configuration that can be run, with these fields, by their dotted names, set to other values."""
    config = TrainConfig(data=DataConfig(root="/data"))
    for name, value in fields.items():
        *groups, field = name.split(".")
        setattr(functools.reduce(getattr, groups, config), field, value)
    return config


def faults(config: TrainConfig) -> list[str]:
    try:
        config.validate()
    except UserError as error:
        return str(error).splitlines()[1:]
    return []


def get_config(path: pathlib.Path) -> TrainConfig:
    return runpy.run_path(str(path))["get_config"]()


def test_no_numeric_field_goes_unchecked():
    numeric = {name for name, value in flatten(TrainConfig()).items() if type(value) in (int, float)}
    assert numeric == EDGES.keys()


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    allowed, refused = EDGES[name]
    for value in allowed:
        assert faults(config_with(**{name: value})) == []
    for value in refused:
        found = faults(config_with(**{name: value}))
        assert any(name.rpartition(".")[2] in fault and str(value) in fault for fault in found), value


@pytest.mark.parametrize("name", [name for name, value in flatten(TrainConfig()).items() if type(value) is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_are_finite(name, value):
    assert any(f"{name} is {value}" in fault for fault in faults(config_with(**{name: value})))


def test_all_faults_in_one_error():
    config = config_with(**{"data.placement": "devise", "data.resize_size": 200, "optim.batch_size": 1})
    config.checkpoint.best_metric = "recall_at_3"
    found = faults(config)
    assert len(found) == 4
    for words in ("did you mean 'device'?", "resize_size is 200", "optim.batch_size is 1", "'recall_at_3'"):
        assert any(words in fault for fault in found), words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"evaluation.nmi_average": "aritmetic"}, "did you mean 'arithmetic'?"),
        ({"evaluation.kmeans": "sklearn"}, "did you mean 'scikit-learn'?"),
        ({"data.placement": "devise"}, "did you mean 'device'?"),
        ({"model.compute_dtype": "bfloat"}, "did you mean 'bfloat16'?"),
        ({"evaluation.protocol": "validate"}, "did you mean 'validation'?"),
        ({"optim.schedule": "cosin"}, "did you mean 'cosine'?"),
        ({"optim.epochs": 2, "optim.frozen_epochs": 3}, "frozen_epochs is 3; it must be at most optim.epochs, 2."),
        ({"evaluation.recall_at": (), "checkpoint.best_metric": "nmi"}, "one K or more"),
        ({"evaluation.recall_at": (1, 0)}, "(1, 0)"),
        ({"checkpoint.best_metric": "nmi", "evaluation.nmi": False}, "'nmi'"),
        ({"checkpoint.best_metric": "recall_at_8", "evaluation.recall_at": (1, 2)}, "recall_at_1, recall_at_2"),
    ],
)
def test_faults_of_names_and_lists(fields, words):
    (fault,) = faults(config_with(**fields))
    assert words in fault


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_can_be_run(path):
    config = get_config(path)
    config.data.root = config.data.root or "/data"
    config.validate()
    assert config.data.dataset == {"cars_lite0": "cars", "photos": "folder"}.get(path.stem, path.stem)
    assert f"python -m proxynca_jax.train --config configs/{path.name}" in runpy.run_path(str(path))["__doc__"]


@pytest.mark.parametrize("dataset", SCALES_RATE_EPOCHS_KMEANS)
def test_config_files_hold_the_references_settings(dataset):
    found = flatten(get_config(CONFIGS[0].parent / f"{dataset}.py"))
    embedding_scale, proxy_scale, proxy_rate, epochs, kmeans, restarts = SCALES_RATE_EPOCHS_KMEANS[dataset]
    expected = REFERENCE | {
        "data.dataset": dataset,
        "loss.embedding_scale": embedding_scale,
        "loss.proxy_scale": proxy_scale,
        "optim.proxy_learning_rate": proxy_rate,
        "optim.epochs": epochs,
        "evaluation.kmeans": kmeans,
        "evaluation.kmeans_restarts": restarts,
    }
    assert {name: found[name] for name in expected} == expected


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return {str: "other", tuple: (1, 3)}.get(type(value)) or value + 1


@pytest.fixture
def config() -> TrainConfig:
    """One that differs from the default in every group that a run's file has to keep."""
    return TrainConfig(
        seed=3,
        data=DataConfig(root="/data/cub"),
        optim=OptimConfig(learning_rate=1 / 3),
        evaluation=EvaluationConfig(recall_at=(1, 10, 100)),
    )


def test_run_keeps_its_configuration(config, tmp_path):
    open_run(tmp_path / "runs" / "cub", config)
    assert read_config(tmp_path / "runs" / "cub") == config
    assert get_config(tmp_path / "runs" / "cub" / "config.py") == config


@pytest.mark.parametrize(("excluded", "name"), [(True, "proxy_nca_paper"), (False, "proxy_nca")])
def test_a_run_from_before_losses_had_names_can_be_read(excluded, name, config, tmp_path):
    open_run(tmp_path, config)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["loss"]["name"]
    written["loss"]["exclude_positive"] = excluded
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_config(tmp_path).loss.name == name


def test_run_continues_with_the_same_configuration(config, tmp_path):
    open_run(tmp_path, config)  # an empty folder will do
    (tmp_path / "metrics.jsonl").touch()
    open_run(tmp_path, config)
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("name", flatten(TrainConfig()))
def test_run_does_not_continue_with_another(name, config, tmp_path):
    open_run(tmp_path, config)
    before = flatten(config)[name]
    *groups, field = name.split(".")
    setattr(functools.reduce(getattr, groups, config), field, other(before))
    free = ("optim.epochs", "data.root", "data.cache", "data.threads", "log_every_steps", "checkpoint.every_minutes")
    free += ("report", "tracking.tensorboard", "tracking.wandb")
    if name in free:
        open_run(tmp_path, config)
        assert read_config(tmp_path) == config
    else:
        with pytest.raises(UserError) as refusal:
            open_run(tmp_path, config)
        assert f"  {name}: {before!r} there, {other(before)!r} now\n" in str(refusal.value)
        assert flatten(read_config(tmp_path))[name] == before


def test_a_run_with_a_cosine_keeps_its_epochs(config, tmp_path):
    config.optim.schedule = "cosine"
    open_run(tmp_path, config)
    config.optim.epochs += 1
    with pytest.raises(UserError, match=r"optim\.epochs: 20 there, 21 now"):
        open_run(tmp_path, config)


def test_run_does_not_mix_with_other_things(config, tmp_path):
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="not the folder of a run"):
            open_run(path, config)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_folder_without_a_configuration(tmp_path):
    with pytest.raises(UserError, match=r"not the folder of a run.*config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"seed": 3, "da',
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"sead": 3}',
        b'{"data": {"rot": "/data"}}',
        b'{"data": 3}',
    ],
)
def test_configuration_that_cannot_be_read(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not a configuration that this version can read"):
        read_config(tmp_path)


def test_configuration_of_an_older_version_lacks_new_fields(config, tmp_path):
    open_run(tmp_path, config)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["evaluation"]["nmi_average"], saved["checkpoint"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("ks", ["", "1", (), (0,), ("1",), (None,), (1, 2.5), (1, True), (1, float("nan"))])
def test_recall_at_must_be_whole_numbers(ks):
    config = TrainConfig()
    config.evaluation.recall_at = ks
    with pytest.raises(UserError, match=r"evaluation\.recall_at is .* whole number of at least 1"):
        config.validate()

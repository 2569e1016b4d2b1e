"""The training program on small trees: what it writes, that it learns, stops, continues and refuses."""

import collections
import contextlib
import functools
import json
import pathlib
import signal

import jax
import numpy as np
import pytest
import torch
import trees

from convert import __main__ as command
from convert.bn_inception import from_state_dict
from proxynca_jax import job, steps, train
from proxynca_jax.compile_ahead import CompileClock
from proxynca_jax.config import DataConfig, EvaluationConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.data import transforms
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.evaluation_images import CACHE, DEVICE, HOST, NOWHERE
from proxynca_jax.data.resident import crops
from proxynca_jax.data.transforms import decode
from proxynca_jax.errors import UserError
from proxynca_jax.machine import progress
from proxynca_jax.machine.interrupt import Interrupted
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.models.network import init_network
from proxynca_jax.onednn.way import way
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.log import Record
from proxynca_jax.weights import converted_file

BATCH, EPOCH_STEPS = 8, 3  # of the 26 training images of the tree below


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("folder")
    trees.draw_folder(root, classes=4, images_per_class=13)
    return root


def small(root: pathlib.Path, placement: str = "host", *, backbone: str = "tiny", **optim) -> TrainConfig:
    """Two epochs of three steps on 32 pixels."""
    return TrainConfig(
        log_every_steps=2,
        data=DataConfig(
            dataset="folder",
            root=str(root),
            image_size=32,
            resize_size=32,
            crop_area_min=0.5,
            placement=placement,
            threads=2,
        ),
        model=ModelConfig(backbone=backbone, batch_norm_momentum=0.9),
        optim=OptimConfig(
            **{"epochs": 2, "batch_size": BATCH, "learning_rate": 1e-3, "proxy_learning_rate": 0.01, "epsilon": 0.1}
            | optim
        ),
        evaluation=EvaluationConfig(batch_size=16, recall_at=(1, 2), kmeans_restarts=1),
    )


def records(run: pathlib.Path) -> list[Record]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: pathlib.Path) -> list[Record]:
    """The records without what differs from one execution to the next."""
    clocks = ("train_seconds", "images_per_second", "data_wait_share", "evaluation_seconds")
    return [{name: value for name, value in record.items() if name not in clocks} for record in records(run)]


def train_whole(config: TrainConfig, run: pathlib.Path) -> pathlib.Path:
    train.train(config, run)
    return run


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> pathlib.Path:
    """A run that nothing interrupts."""
    return train_whole(small(root), tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def whole_on_device(root, tmp_path_factory) -> pathlib.Path:
    """The same with its training images in device memory."""
    return train_whole(small(root, "device"), tmp_path_factory.mktemp("runs") / "device")


def test_a_run_leaves_records_log_and_states(whole):
    first, second, third = records(whole)
    assert [record["epoch"] for record in (first, second, third)] == [-1, 0, 1]
    assert [record["step"] for record in (first, second, third)] == [0, EPOCH_STEPS, 2 * EPOCH_STEPS]
    assert "train_loss" not in first
    assert third["train_loss"] < second["train_loss"]
    assert 0 < third["data_wait_share"] < 1  # the first batch of an epoch, at least
    assert {
        "recall_at_1",
        "recall_at_2",
        "nmi",
        "nmi_average",
        "kmeans",
        "kmeans_restarts",
        "evaluation_seconds",
    } <= set(third)
    log = (whole / "log.txt").read_text()
    assert log.count("evaluation images are kept in host memory") == 1
    assert f"loss {third['train_loss']:.4f}" in log
    assert f"R@1 {third['recall_at_1']:.2f}" in log
    best = max(records(whole), key=lambda record: record["recall_at_1"])
    with Checkpoints(whole) as checkpoints:
        assert checkpoints.latest_step() == 2 * EPOCH_STEPS
        assert checkpoints.latest_step("best") == best["step"]


# A batch at a time: 2 of embedding, 3 of training, 2, 3 and 2.
@pytest.mark.parametrize(
    ("placement", "stop_after"),
    [("host", 2 + 3 + 2 + 1), ("host", 2 + 3 + 2 + 3 + 1), ("device", 1 + 2 + 3 + 2 + 1)],  # 1: the upload
    ids=["in an epoch", "while evaluating", "in an epoch, images on the device"],
)
def test_a_stopped_run_continues_to_the_last_bit(root, request, tmp_path, monkeypatch, placement, stop_after):
    whole = request.getfixturevalue("whole" if placement == "host" else "whole_on_device")
    seen = 0
    advance = progress.Progress.advance

    def advance_and_stop(self, images):
        nonlocal seen
        advance(self, images)
        seen += 1
        if seen == stop_after:
            signal.raise_signal(signal.SIGINT)

    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "advance", advance_and_stop)
        with pytest.raises(Interrupted):
            train.train(small(root, placement), run)
    assert len(records(run)) < len(records(whole))
    assert "stopped at step" in (run / "log.txt").read_text()
    train.train(small(root, placement), run)
    assert timeless(run) == timeless(whole)
    states = []
    for folder in (run, whole):
        optimizer = make_optimizer(small(root).optim, steps_per_epoch=EPOCH_STEPS)
        with Checkpoints(folder) as checkpoints:
            states.append(checkpoints.restore(steps.init_state(small(root).model, optimizer, classes=2, seed=1)[1]))
    for ours, theirs in zip(*(jax.tree.leaves(state) for state in states), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_images_on_the_device_train_as_images_on_the_host_do(whole, whole_on_device):
    assert "training images on the device" in (whole_on_device / "log.txt").read_text()
    losses = [[record["train_loss"] for record in records(run)[1:]] for run in (whole_on_device, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=4e-3)  # a few pixels differ by a level of 255


def test_a_run_with_a_cache_is_the_run_without(root, whole, tmp_path):
    config = small(root, epochs=1)
    train.train(config, tmp_path / "run")
    config.optim.epochs, config.data.cache = 2, str(tmp_path / "cache")
    train.train(config, tmp_path / "run")
    assert len(list((tmp_path / "cache").glob("*.array_record"))) == 2
    assert timeless(tmp_path / "run") == timeless(whole)


@pytest.mark.parametrize(("place", "decoded"), [(DEVICE, 1), (HOST, 1), (CACHE, 1), (NOWHERE, 3)])
def test_evaluation_images_are_decoded_once_a_run_and_score_the_same(
    root, whole, tmp_path, monkeypatch, place, decoded
):
    names = []

    def decode_and_note(image, name):
        if isinstance(image, bytes):  # those of the cache are decoded
            names.append(name)
        return decode(image, name)

    monkeypatch.setattr(transforms, "decode", decode_and_note)
    monkeypatch.setattr(job, "choose_place", lambda *_: (place, f"evaluation images: {place}"))
    config = small(root)
    config.data.cache = str(tmp_path / "cache") if place == CACHE else ""
    train.train(config, tmp_path / "run")
    assert timeless(tmp_path / "run") == timeless(whole)
    assert f"evaluation images: {place}\n" in (tmp_path / "run" / "log.txt").read_text()
    counts = collections.Counter(names)
    assert [counts[name] for name in load_dataset(config.data).evaluation.queries.names] == [decoded] * 26


def test_the_same_folder_with_more_epochs_goes_on(root, whole, tmp_path):
    run = tmp_path / "longer"
    train.train(small(root, epochs=1), run)
    train.train(small(root), run)
    assert timeless(run) == timeless(whole)


def test_diverging_keeps_what_was_saved(root, tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step \d.*learning rates \(now 1e\+30"):
        train.train(small(root, learning_rate=1e30), tmp_path / "run")
    assert [record["step"] for record in records(tmp_path / "run")] == [0]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 0


def test_a_truncated_image_is_named_and_nothing_is_lost(root, tmp_path):
    trees.draw_folder(tmp_path / "tree", classes=4, images_per_class=13)
    config = small(tmp_path / "tree", epochs=1)
    train.train(config, tmp_path / "run")
    for path in (tmp_path / "tree").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:400])
    config.optim.epochs = 2
    with pytest.raises(UserError, match=r"tree.*\.jpg"):
        train.train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == EPOCH_STEPS


def test_the_validation_protocol_scores_the_test_classes_once(tmp_path):
    trees.draw_folder(tmp_path / "tree", classes=8, images_per_class=7)
    config = small(tmp_path / "tree")
    config.evaluation.protocol, config.evaluation.validation_fraction = "validation", 0.5
    train.train(config, tmp_path / "run")
    *validation, test = records(tmp_path / "run")
    assert [record["split"] for record in validation] == ["validation"] * len(validation)
    assert test["split"] == "test"
    best = max(validation, key=lambda record: record["recall_at_1"])
    assert (test["epoch"], test["step"]) == (best["epoch"], best["step"])


def test_a_run_serves_in_pytorch(root, tmp_path, capsys):
    run = tmp_path / "run"
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=EPOCH_STEPS)
    graph, state = steps.init_state(ModelConfig(), optimizer, classes=2, seed=0)
    open_run(run, small(root, backbone="bn_inception"))
    with Checkpoints(run) as checkpoints:
        checkpoints.save("best", 0, state)
    command.main(["--to-torch", str(run), str(tmp_path / "out.pt")])
    assert "strict=True" in capsys.readouterr().out
    network = from_state_dict(torch.load(tmp_path / "out.pt", weights_only=True)).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        *_, (_, theirs) = network.stages(torch.tensor(images))
    ours = steps.make_embed_step(graph)(state.network(), images)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_pretrained_weights_are_the_start(root, tmp_path, capsys):
    _, fresh = init_network(ModelConfig(), np.random.default_rng(5))
    leaves = {name: np.asarray(leaf) for name, leaf in converted_file.flatten(fresh._asdict()).items()}
    converted_file.write(tmp_path / "start.safetensors", "bn_inception", leaves, source={})
    config = small(root, backbone="bn_inception")
    config.model.weights = str(tmp_path / "start.safetensors")
    _, state = job.prepare(config, tmp_path / "run")
    assert f"starting from the weights in {config.model.weights}" in capsys.readouterr().out
    for ours, theirs in zip(jax.tree.leaves(state.network()), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_programs_compile_once_and_nothing_waits_for_the_host():
    config = ModelConfig(embedding_dim=8)
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=2)
    graph, state = steps.init_state(config, optimizer, classes=4, seed=0)
    train_step, embed_step = steps.make_train_step(graph, LossConfig(), optimizer), steps.make_embed_step(graph)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    batches = [jax.device_put({"image": images, "label": np.arange(4, dtype=np.int32)}) for images in pixels]
    before = jax.tree.leaves(state)
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, _ = train_step(state, batch)
            embed_step(state.network(), batch["image"])
    assert train_step._cache_size() == embed_step.fold._cache_size() == embed_step.embed._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in before)  # donated
    assert int(state.step) == 3


def test_what_was_computed_in_is_said_and_recorded(root, tmp_path):
    config = small(root, epochs=0)
    config.model.compute_dtype = "tensorfloat32"
    run = train_whole(config, tmp_path / "run")
    first, *rest = (run / "log.txt").read_text().splitlines()
    computed = computed_in("tensorfloat32")
    assert first.endswith(f", {computed} by {way().name}")
    assert computed == "tensorfloat32" or any("it computes in float32" in line for line in rest)
    assert [(record["compute_dtype"], record["convolutions"]) for record in records(run)] == [(computed, way().name)]


@pytest.mark.parametrize("placement", ["host", "device"])
def test_nothing_compiles_while_a_clock_of_training_runs(root, tmp_path, monkeypatch, placement):
    compiled_in_epochs = []

    @contextlib.contextmanager
    def watched(*arguments):
        with CompileClock() as clock, open_epoch(*arguments) as opened:
            yield opened
        compiled_in_epochs.append(clock.seconds)

    open_epoch = train._open_epoch
    monkeypatch.setattr(train, "_open_epoch", watched)
    train_whole(small(root, placement), tmp_path / "run")
    assert compiled_in_epochs == [0, 0]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.index("compiled in") < log.index("epoch -1")


def test_cropping_compiles_once_and_keeps_the_images():
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=2)
    graph, state = steps.init_state(ModelConfig(backbone="tiny"), optimizer, classes=4, seed=0)
    train_step = steps.make_train_step(graph, LossConfig(), optimizer, functools.partial(crops, size=32))
    pixels = jax.device_put(np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), np.uint8))
    rows = np.arange(4, dtype=np.int32)
    batch = {"row": rows, "box": np.full((4, 4), 9, np.int32), "mirror": rows > 1, "label": rows}
    batches = [jax.device_put(batch | {"row": rows + start}) for start in (0, 1)]
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, _ = train_step(state, batch | {"pixels": pixels})
    assert train_step._cache_size() == 1
    assert not pixels.is_deleted()

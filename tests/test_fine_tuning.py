"""Fine-tuning: epochs that leave the backbone as it is, and BatchNorm with its running statistics."""

import dataclasses
import pathlib
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from flax import nnx
from test_train import EPOCH_STEPS, records, small, timeless

from proxynca_jax import compile_ahead, job, steps, train
from proxynca_jax.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.errors import UserError
from proxynca_jax.losses import LOSSES
from proxynca_jax.machine import progress
from proxynca_jax.machine.interrupt import Interrupted
from proxynca_jax.models.batch_norm import BatchNorm, batch_norm_act, fold_batch_norm
from proxynca_jax.models.convolution import Conv, convolve
from proxynca_jax.models.network import init_network
from proxynca_jax.onednn.way import without_onednn
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints

BATCH, CLASSES = 8, 4
CONFIG = ModelConfig(backbone="tiny", embedding_dim=8, batch_norm_momentum=0.9)
OPTIMIZER = make_optimizer(OptimConfig(learning_rate=0.1, frozen_epochs=1), steps_per_epoch=2)


def start() -> tuple[nnx.GraphDef, steps.TrainState]:
    return steps.init_state(CONFIG, OPTIMIZER, classes=CLASSES, seed=0)


def batches(count: int) -> list[steps.Batch]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, BATCH, 32, 32, 3), np.uint8)
    return [jax.device_put({"image": each, "label": np.arange(BATCH, dtype=np.int32) % CLASSES}) for each in images]


def parts(state: steps.TrainState) -> dict[str, Any]:
    """What may change or stay on its own. Copies, because a step donates its state."""
    moments = {f"state of {group}": of_group for group, of_group in state.opt_state.items()}
    return jax.tree.map(np.array, state.params | moments | {"statistics": state.batch_stats})


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    def bits(tree: Any) -> list[bytes]:
        return [leaf.tobytes() for leaf in jax.tree.leaves(tree)]

    return {name for name in before if bits(before[name]) != bits(after[name])}


def test_a_frozen_step_leaves_the_backbone_and_the_next_one_trains_it():
    graph, state = start()
    frozen_step = steps.make_train_step(graph, LossConfig(), OPTIMIZER, frozen=True)
    train_step = steps.make_train_step(graph, LossConfig(), OPTIMIZER)
    first, second, third, fourth = batches(4)
    rest = {"embedding_layer", "proxies", "state of embedding_layer", "state of proxies"}
    at_start = parts(state)
    with jax.transfer_guard("disallow"):
        state, _ = frozen_step(state, first)
        state, _ = frozen_step(state, second)
    frozen = parts(state)
    assert changed(at_start, frozen) == rest
    with jax.transfer_guard("disallow"):
        state, _ = train_step(state, third)
        state, _ = train_step(state, fourth)
    assert changed(frozen, parts(state)) == rest | {"backbone", "state of backbone", "statistics"}
    assert frozen_step._cache_size() == train_step._cache_size() == 1
    assert int(state.step) == 4


@pytest.mark.parametrize("options", [{"frozen": True}, {"fixed_batch_norm": True}], ids=str)
def test_the_loss_is_that_of_the_embeddings_in_inference(options):
    graph, state = start()
    (batch,) = batches(1)
    embeddings = steps.make_embed_step(graph)(state.network(), batch["image"])
    expected = LOSSES["proxy_nca"].of_batch(embeddings, state.params["proxies"], batch["label"], LossConfig())
    _, loss = steps.make_train_step(graph, LossConfig(), OPTIMIZER, **options)(state, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_frozen_step_computes_no_gradient_of_the_backbone():
    size = 32
    graph, state = steps.init_state(ModelConfig(), OPTIMIZER, classes=CLASSES, seed=0)
    train_step: Any = steps.make_train_step(graph, LossConfig(), OPTIMIZER, frozen=True)
    embed_step = steps.make_embed_step(graph)
    images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    with without_onednn():  # XLA counts its own operations only
        step = train_step.lower(state, {"image": images, "label": labels})
        embed: Any = embed_step.embed
        forward = embed.lower(jax.eval_shape(embed_step.fold, state.network()), images)
    # With the gradients it would be three times the products of the forward pass.
    assert 1 < step.cost_analysis()["flops"] / forward.cost_analysis()["flops"] < 1.5


def test_fixed_batch_norm_trains_scale_and_bias_and_keeps_the_statistics():
    graph, state = start()
    train_step = steps.make_train_step(graph, LossConfig(), OPTIMIZER, fixed_batch_norm=True)
    before, norm = parts(state), jax.tree.map(np.array, state.network().params["backbone"]["norm"])
    for batch in batches(2):
        state, _ = train_step(state, batch)
    assert changed(before, parts(state)) == before.keys() - {"statistics"}
    after = state.network().params["backbone"]["norm"]
    assert all(np.all(norm[name] != after[name]) for name in ("scale", "bias"))
    assert train_step._cache_size() == 1


def drawn(rng: np.random.Generator, tree: Any) -> Any:
    """Numbers around 1 for scales and variances, small ones for biases and means; kernels stay."""

    def draw(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5), "bias": (-0.2, 0.2), "mean": (-0.2, 0.2)}.get(name, (0, 0))
        return leaf if name == "kernel" else jnp.array(rng.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def test_gradients_of_a_folded_convolution_are_those_of_the_plain_form():
    rng = np.random.default_rng(0)
    graph, params, statistics = nnx.split(
        (Conv(3, 5, 3, stride=1, rng=rng), BatchNorm(5, momentum=0.9)), nnx.Param, nnx.BatchStat
    )
    params, statistics = (drawn(rng, nnx.to_pure_dict(tree)) for tree in (params, statistics))
    x, weights = (jnp.array(rng.standard_normal((4, 6, 6, channels)), jnp.float32) for channels in (3, 5))

    def loss(params: Any, folds: bool) -> jax.Array:
        conv, norm = nnx.merge(graph, params, statistics)
        if folds:
            fold_batch_norm(conv, norm)
            y = jnp.maximum(convolve(x, conv.kernel[...], 1) + conv.bias[...][None, None, None], 0)
        else:
            y = batch_norm_act(convolve(x, conv.kernel[...], 1), conv.bias[...], [norm], train=False)
        return jnp.sum(y * weights)

    folded, plain = (jax.grad(loss)(params, folds) for folds in (True, False))
    assert len(jax.tree.leaves(plain)) == 4
    for ours, expected in zip(jax.tree.leaves(folded), jax.tree.leaves(plain), strict=True):
        assert np.all(np.abs(expected) > 1e-6)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("folder")
    trees.draw_folder(root, classes=4, images_per_class=13)
    return root


def fine_tuning(root: pathlib.Path, *, epochs: int = 2, **optim: Any) -> TrainConfig:
    """The first epoch is frozen."""
    return small(root, epochs=epochs, frozen_epochs=1, weight_decay=0.01, embedding_learning_rate=0.01, **optim)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> pathlib.Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    train.train(fine_tuning(root), run)
    return run


def latest(run: pathlib.Path, config: TrainConfig) -> steps.TrainState:
    optimizer = make_optimizer(config.optim, steps_per_epoch=EPOCH_STEPS)
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore(steps.init_state(config.model, optimizer, classes=2, seed=1)[1])


def test_records_and_log_name_the_frozen_epochs(whole):
    assert [record.get("backbone_frozen") for record in records(whole)] == [None, True, None]
    assert [line.split("  ")[1] for line in (whole / "log.txt").read_text().splitlines() if line[:7] == "epoch 0"] == [
        "backbone frozen"
    ]


# A batch at a time: 2 of embedding, 3 of frozen training, 2 of embedding, 3 of training.
@pytest.mark.parametrize(
    ("stop_after", "needed"), [(2 + 1, 2), (2 + 3 + 1, 1), (2 + 3 + 2 + 1, 1)], ids=["frozen", "scoring", "after"]
)
def test_a_stopped_run_continues_to_the_last_bit(root, whole, tmp_path, monkeypatch, stop_after, needed):
    seen, compiled = 0, []
    advance, compile_train_step = progress.Progress.advance, compile_ahead.compile_train_step

    def advance_and_stop(self, images):
        nonlocal seen
        advance(self, images)
        seen += 1
        if seen == stop_after:
            signal.raise_signal(signal.SIGINT)

    def compile_and_note(*arguments):
        compiled.append(arguments)
        return compile_train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "advance", advance_and_stop)
        with pytest.raises(Interrupted):
            train.train(fine_tuning(root), tmp_path / "run")
    assert "stopped at step" in (tmp_path / "run" / "log.txt").read_text()
    monkeypatch.setattr(job, "compile_train_step", compile_and_note)
    train.train(fine_tuning(root), tmp_path / "run")
    assert len(compiled) == needed
    assert timeless(tmp_path / "run") == timeless(whole)
    ours, theirs = (latest(run, fine_tuning(root)) for run in (tmp_path / "run", whole))
    for leaf, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_frozen_epochs_alone_compile_one_step_and_keep_the_backbone(root, whole, tmp_path, monkeypatch):
    compiled = []
    make_train_step, compile_train_step = steps.make_train_step, compile_ahead.compile_train_step

    def make_and_note(*arguments, frozen, **options):
        train_step = make_train_step(*arguments, frozen=frozen, **options)
        kinds[train_step] = "frozen" if frozen else "whole"
        return train_step

    def compile_and_note(train_step, *arguments):
        compiled.append(kinds[train_step])
        return compile_train_step(train_step, *arguments)

    kinds: dict[Any, str] = {}
    monkeypatch.setattr(steps, "make_train_step", make_and_note)
    monkeypatch.setattr(job, "compile_train_step", compile_and_note)
    config = fine_tuning(root, epochs=1)
    train.train(config, tmp_path / "run")
    assert compiled == ["frozen"]
    _, fresh = init_network(config.model, np.random.default_rng(config.seed))
    found = latest(tmp_path / "run", config).network()
    for part in (fresh.params["backbone"], found.params["backbone"]), (fresh.batch_stats, found.batch_stats):
        jax.tree.map(np.testing.assert_array_equal, *part)
    assert not np.array_equal(found.params["embedding_layer"]["kernel"], fresh.params["embedding_layer"]["kernel"])
    train.train(fine_tuning(root), tmp_path / "run")  # longer
    assert compiled == ["frozen", "whole"]
    assert timeless(tmp_path / "run") == timeless(whole)


@pytest.mark.parametrize("placement", ["host", "device"])
def test_all_of_it_together_runs(root, tmp_path, placement):
    config = fine_tuning(root, schedule="cosine")
    config.model.fixed_batch_norm, config.data.placement = True, placement
    train.train(config, tmp_path / "run")
    assert [record.get("backbone_frozen") for record in records(tmp_path / "run")] == [None, True, None]
    fresh = init_network(config.model, np.random.default_rng(config.seed))[1]
    found = latest(tmp_path / "run", config).network()
    jax.tree.map(np.testing.assert_array_equal, found.batch_stats, fresh.batch_stats)


def test_the_optimiser_of_an_earlier_version_is_refused_and_its_network_read(tmp_path):
    _, state = start()
    older = dataclasses.replace(state, opt_state={"inner_states": {"network": jnp.zeros(3), "proxies": jnp.zeros(3)}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 2, older)
        with pytest.raises(UserError, match=r"of an earlier version, whose runs can be evaluated but not continued"):
            checkpoints.restore(state)
        jax.tree.map(
            np.testing.assert_array_equal, checkpoints.restore_network("latest", state.network()), state.network()
        )

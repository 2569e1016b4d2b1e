"""Data parallelism: equal losses on any number of devices, sharded proxies, memory per device, and collectives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh

from proxynca_jax import steps
from proxynca_jax.config import LossConfig, ModelConfig, OptimConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.convolution import LARGE_MAP, convolve
from proxynca_jax.optim import make_optimizer
from proxynca_jax.sharding import AXIS, Layout

REPOSITORY = Path(__file__).parents[1]
DEVICES = (1, 2, 4, 8)
MANY = 1_000_000  # classes


def on_eight_devices(expression: str, **variables: str) -> Any:
    """Evaluates an expression over this module in a new process, because JAX counts its devices once, at start."""
    program = f"import json, sys; from tests import test_sharding; json.dump({expression}, sys.stdout)"
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": paths} | variables
    process = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(process.stdout)


def layout_of(devices: int, sharded_classes: int | None = None) -> Layout:
    return Layout(Mesh(np.array(jax.devices()[:devices]), (AXIS,)), sharded_classes)


def train(
    layout: Layout,
    loss: LossConfig,
    *,
    classes: int,
    optim: OptimConfig,
    backbone: str = "tiny",
    batch_size: int = 16,
    count: int = 4,
) -> dict[str, Any]:
    """Trains some steps. Each device gets images of other classes, and so other statistics."""
    config = ModelConfig(backbone=backbone, embedding_dim=8)
    optimizer = make_optimizer(optim, steps_per_epoch=count)
    graph, state = steps.init_state(config, optimizer, classes=classes, seed=0, layout=layout)
    train_step = steps.make_train_step(graph, loss, optimizer, layout=layout)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(count):
        labels = np.sort(rng.integers(0, classes, batch_size, np.int32))
        images = np.clip(rng.normal(20 * labels[:, None, None, None], 30, (batch_size, 32, 32, 3)), 0, 255).astype(
            np.uint8
        )
        state, value = train_step(state, jax.device_put({"image": images, "label": labels}, layout.batches))
        losses.append(float(value))
    embed_step = steps.make_embed_step(graph, layout)
    embeddings = embed_step(state.network(), jax.device_put(images, layout.batches))
    proxies = state.params["proxies"]
    return {
        "losses": losses,
        "compiled": train_step._cache_size(),
        "embeddings": np.asarray(embeddings).tolist(),
        "proxies": np.asarray(proxies).tolist(),
        "rows_per_device": [shard.data.shape[0] for shard in proxies.addressable_shards],
    }


CLASSES = 11  # not a multiple of any number of devices
TRAININGS = [("reference", devices, proxies) for proxies in ("replicated", "sharded") for devices in DEVICES]
TRAININGS += [("paper", 1, "replicated"), ("paper", 8, "sharded")]


def tiny_trainings() -> dict[str, dict[str, Any]]:
    BACKBONES["tiny"] = tiny.TINY
    losses = {"reference": LossConfig(), "paper": LossConfig(name="proxy_nca_paper")}
    optim = OptimConfig(learning_rate=0.01, proxy_learning_rate=0.1, epsilon=0.1)
    found = {}
    for form, devices, proxies in TRAININGS:
        layout = layout_of(devices, CLASSES if proxies == "sharded" else None)
        found[f"{form} {devices} {proxies}"] = train(layout, losses[form], classes=CLASSES, optim=optim)
    return found


@pytest.fixture(scope="module")
def trainings() -> dict[str, dict[str, Any]]:
    return on_eight_devices("test_sharding.tiny_trainings()")


@pytest.mark.parametrize(("form", "devices", "proxies"), TRAININGS)
def test_training_does_not_depend_on_the_number_of_devices(trainings, form, devices, proxies):
    alone, found = trainings[f"{form} 1 replicated"], trainings[f"{form} {devices} {proxies}"]
    assert np.ptp(alone["losses"]) > 0.1  # the losses change, so errors would show
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["embeddings"], alone["embeddings"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["proxies"][:CLASSES], alone["proxies"], rtol=0, atol=1e-5)
    assert found["compiled"] == 1


@pytest.mark.parametrize(("devices", "rows"), [(1, 11), (2, 6), (4, 3), (8, 2)])
def test_devices_have_equal_shards_of_the_proxies(trainings, devices, rows):
    training = trainings[f"reference {devices} sharded"]
    assert training["rows_per_device"] == [rows] * devices
    assert not np.any(training["proxies"][CLASSES:])
    assert trainings[f"reference {devices} replicated"]["rows_per_device"] == [CLASSES] * devices


def account(sharded: bool) -> dict[str, Any]:
    """Compiles a step with MANY classes for 8 devices. Returns the bytes per device and the largest collective."""
    BACKBONES["tiny"] = tiny.TINY
    layout = layout_of(8, MANY if sharded else None)
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=1)
    graph, small = steps.init_state(ModelConfig(backbone="tiny"), optimizer, classes=8, seed=0, layout=layout)

    def of_many(leaf: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        shape = (MANY, *leaf.shape[1:]) if leaf.shape == small.params["proxies"].shape else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(of_many, small, layout.shardings(small))
    batch = {
        "image": jax.ShapeDtypeStruct((32, 32, 32, 3), jnp.uint8, sharding=layout.batches),
        "label": jax.ShapeDtypeStruct((32,), jnp.int32, sharding=layout.batches),
    }
    train_step: Any = steps.make_train_step(graph, LossConfig(), optimizer, layout=layout)
    compiled = train_step.lower(state, batch).compile()
    exchanged = re.findall(r"= (.*?) (?:all-|collective-|reduce-scatter|ragged-)[\w-]*\(", compiled.as_text())
    shapes = [shape for result in exchanged for shape in re.findall(r"\w+\[([\d,]*)\]", result)]
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "exchanged": max(int(np.prod([int(side) for side in shape.split(",") if side])) for shape in shapes),
    }


def accounts() -> dict[str, dict[str, Any]]:
    return {"sharded": account(True), "replicated": account(False)}


def test_memory_per_device_with_a_million_classes():
    accounts = on_eight_devices("test_sharding.accounts()")
    sharded, replicated = accounts["sharded"], accounts["replicated"]
    for name, found in accounts.items():
        print(f"{MANY:,} x 64 over 8 devices, {name}:", {key: f"{value:,}" for key, value in found.items()})
    state = 3 * MANY * 64 * 4  # proxies and both of Adam's moments, in bytes
    assert state / 8 < sharded["aliased"] <= sharded["arguments"] < state / 8 + 1e6
    assert state < replicated["arguments"]
    # The gradient, and a few arrays of the size of the logits.
    assert sharded["temporary"] < (64 + 10 * 32) * MANY / 8 * 4
    # Collectives exchange embeddings and sums over the batch, but no proxies, gradients of proxies, or logits.
    assert sharded["exchanged"] <= 32 * 64
    assert replicated["exchanged"] == MANY * 64


def real_losses() -> list[list[float]]:
    """Trains the real network for two steps. Learning rates and batch size keep the effect of rounding small."""
    options = {
        "optim": OptimConfig(learning_rate=1e-6, proxy_learning_rate=1e-2),
        "backbone": "bn_inception",
        "batch_size": 64,
        "count": 2,
    }
    return [train(layout_of(n), LossConfig(), classes=CLASSES, **options)["losses"] for n in (1, DEVICES[-1])]


@pytest.mark.slow
def test_real_network_has_the_same_losses_on_many_devices():
    losses = np.array(on_eight_devices("test_sharding.real_losses()", XLA_FLAGS="--xla_backend_optimization_level=0"))
    print("losses on one device, and differences from them:", losses[0], *(losses[1:] - losses[0]))
    np.testing.assert_allclose(losses, np.broadcast_to(losses[0], losses.shape), rtol=1e-5)


def convolution_gradients(sharded: bool) -> dict[str, Any]:
    """Computes gradients of a convolution of large activations on 8 devices. Also returns the collectives."""
    layout = layout_of(8)
    rng = np.random.default_rng(0)
    shapes = (16, LARGE_MAP + 1, 5, 3), (4, 3, 3, 3), (16, LARGE_MAP + 1, 5, 4)
    x, kernel, gradient = (rng.standard_normal(shape, np.float32) for shape in shapes)
    images = layout.batches if sharded else layout.replicated
    arguments = jax.device_put((x, kernel, gradient), (images, layout.replicated, images))

    def gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        return jax.vjp(lambda *inputs: convolve(*inputs, 1), x, kernel)[1](gradient)

    compiled = jax.jit(gradients).lower(*arguments).compile()
    return {
        "gradients": [np.asarray(found).tolist() for found in compiled(*arguments)],
        "exchanged": re.findall(r" (all-[\w-]*|collective-[\w-]*|reduce-scatter)\(", compiled.as_text()),
    }


def test_gradients_of_large_convolutions_need_one_all_reduce():
    sharded, replicated = on_eight_devices("[test_sharding.convolution_gradients(s) for s in (True, False)]")
    assert sharded["exchanged"] == ["all-reduce"]  # the kernel's gradient
    for found, expected in zip(sharded["gradients"], replicated["gradients"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_batch_sizes_that_are_no_multiple_of_the_devices_are_refused():
    layout = Layout(Mesh(np.array(jax.devices() * 8), (AXIS,)))
    layout.check_batch_size(32)
    with pytest.raises(
        UserError, match=r"batch_size is 30, not a multiple of the number of devices, 8\..*: 24 or 32\."
    ):
        layout.check_batch_size(30)
    with pytest.raises(UserError, match=r"fit: 8\."):
        layout.check_batch_size(5)
    assert [layout.round_up(size) for size in (1, 8, 9, 64)] == [8, 8, 16, 64]

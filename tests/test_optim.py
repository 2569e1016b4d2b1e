"""Optimiser: steps worked by hand, comparison with PyTorch's Adam, and the learning-rate schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from proxynca_jax.config import OptimConfig
from proxynca_jax.optim import learning_rate_schedule, make_optimizer

# The first step's bias-corrected moments are g and g². So, with ε = 1, its update is the rate times −g / (|g| + 1).
GRADIENT = jnp.array([[3.0, -1.0], [0.0, 1e-4]])
UNIT = np.array([[-3 / 4, 1 / 2], [0, -1e-4 / 1.0001]])
GROUPS = ("backbone", "embedding_layer", "proxies")


def first_updates(config: OptimConfig, value: float = 0.0) -> dict[str, dict[str, jax.Array]]:
    """The updates of a kernel and a bias in each group, whose numbers are all `value`."""
    optimizer = make_optimizer(config, steps_per_epoch=10)
    params = {group: {"kernel": jnp.full((2, 2), value), "bias": jnp.full(2, value)} for group in GROUPS}
    gradients = {group: {"kernel": GRADIENT, "bias": GRADIENT[0]} for group in GROUPS}
    return optimizer.update(gradients, optimizer.init(params), params)[0]


@pytest.mark.parametrize(("embedding_rate", "used"), [(0.0, 0.045), (0.3, 0.3)])
def test_first_step_worked_by_hand(embedding_rate, used):
    updates = first_updates(OptimConfig(embedding_learning_rate=embedding_rate))
    for group, rate in zip(GROUPS, (0.045, used, 1.0), strict=True):
        np.testing.assert_allclose(updates[group]["kernel"], rate * UNIT, rtol=1e-5)
        np.testing.assert_allclose(updates[group]["bias"], rate * UNIT[0], rtol=1e-5)


def test_weight_decay_worked_by_hand():
    updates = first_updates(OptimConfig(learning_rate=0.5, weight_decay=0.01), value=8.0)
    decay = {"backbone": 0.5 * 0.01 * 8, "embedding_layer": 0.5 * 0.01 * 8, "proxies": 0}
    for group, rate in zip(GROUPS, (0.5, 0.5, 1.0), strict=True):
        np.testing.assert_allclose(updates[group]["kernel"], rate * UNIT - decay[group], rtol=1e-5)
        np.testing.assert_allclose(updates[group]["bias"], rate * UNIT[0], rtol=1e-5)


def test_a_group_without_gradients_keeps_its_state_and_continues_at_the_rate_of_the_run():
    config = OptimConfig(epochs=2, frozen_epochs=1, schedule="cosine", learning_rate=0.1, proxy_learning_rate=0.4)
    optimizer = make_optimizer(config, steps_per_epoch=2)
    params = {group: jnp.zeros((2, 2)) for group in GROUPS}
    state = start = optimizer.init(params)
    rest = {"embedding_layer": GRADIENT, "proxies": GRADIENT}
    for rate in (0.4, 0.4 * (1 + 0.5**0.5) / 2):
        updates, state = optimizer.update(rest, state, params)
        assert updates.keys() == rest.keys()
        np.testing.assert_allclose(updates["proxies"], rate * UNIT, rtol=1e-4)
        assert state["backbone"] is start["backbone"]
    updates, state = optimizer.update(rest | {"backbone": GRADIENT}, state, params)
    # The moments start now, and the cosine is in its middle.
    np.testing.assert_allclose(updates["backbone"], 0.05 * UNIT, rtol=1e-5)
    np.testing.assert_allclose(updates["proxies"], 0.2 * UNIT, rtol=1e-4)


def test_warmup_raises_the_rate_of_the_backbone_alone():
    config = OptimConfig(frozen_epochs=1, warmup_epochs=2, learning_rate=0.1, decay_per_epoch=1.0)
    optimizer = make_optimizer(config, steps_per_epoch=2)
    params = {group: jnp.zeros((2, 2)) for group in GROUPS}
    state = optimizer.init(params)
    _, state = optimizer.update({"proxies": GRADIENT}, state, params)  # a frozen step, which does not count
    # Adam's step has the size of the rate as long as the gradient stays the same.
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        updates, state = optimizer.update(dict.fromkeys(GROUPS, GRADIENT), state, params)
        for group, rate in zip(GROUPS, (0.1 * share, 0.1, 1.0), strict=True):
            np.testing.assert_allclose(updates[group], rate * UNIT, rtol=1e-4)


@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
def test_three_epochs_equal_torch_adam(epsilon):
    rates = {"backbone": 0.045, "embedding_layer": 0.2, "proxies": 10.0}
    config = OptimConfig(learning_rate=0.045, embedding_learning_rate=0.2, proxy_learning_rate=10.0, epsilon=epsilon)
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal((4, 2), np.float32) for name in rates}
    gradients = [
        {name: rng.standard_normal(value.shape, np.float32) for name, value in start.items()} for _ in range(6)
    ]

    theirs = {name: torch.tensor(value) for name, value in start.items()}
    adam = torch.optim.Adam([{"params": [theirs[name]], "lr": rates[name]} for name in rates], eps=epsilon)
    decay = torch.optim.lr_scheduler.StepLR(adam, step_size=1, gamma=0.94)

    ours = jax.tree.map(jnp.array, start)
    optimizer = make_optimizer(config, steps_per_epoch=2)
    state = optimizer.init(ours)
    for step, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update(jax.tree.map(jnp.array, gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, value in gradient.items():
            theirs[name].grad = torch.tensor(value)
        adam.step()
        if step % 2 == 0:
            decay.step()
        for name in start:
            # 1 − β₂ in float32 has a relative error of 1.3e-5, which is halved in an update. The largest updates sum to
            # 6 learning rates.
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=5e-5 * rates[name])


# 41: its float32 reciprocal is below 1/41. If epochs were computed in floats, one would begin a step late.
@pytest.mark.parametrize("steps_per_epoch", [1, 41, 1860])
def test_learning_rate_decays_at_the_first_step_of_an_epoch(steps_per_epoch):
    schedule = jax.jit(learning_rate_schedule(0.045, OptimConfig(), steps_per_epoch=steps_per_epoch))
    for epoch in (0, 1, 2, 7, 49):
        first = epoch * steps_per_epoch
        for step in (first, first + steps_per_epoch - 1):
            assert float(schedule(jnp.int32(step))) == pytest.approx(0.045 * 0.94**epoch, rel=1e-5), (epoch, step)


def test_cosine_worked_by_hand():
    schedule = learning_rate_schedule(0.1, OptimConfig(epochs=3, schedule="cosine"), steps_per_epoch=4)
    # First step, a third, the middle, the last step, and the end: cos 60° = 1/2, cos 90° = 0, cos 165° = −0.9659258.
    for step, rate in {0: 0.1, 4: 0.075, 6: 0.05, 11: 0.00170371, 12: 0.0}.items():
        assert float(schedule(jnp.int32(step))) == pytest.approx(rate, rel=1e-5, abs=1e-9), step

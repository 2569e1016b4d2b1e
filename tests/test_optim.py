"""Optimiser: the first step worked by hand, comparison with PyTorch's Adam, and the learning-rate schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from proxynca_jax.config import OptimConfig
from proxynca_jax.optim import learning_rate_schedule, make_optimizer


def test_first_step_worked_by_hand():
    # The first step's bias-corrected moments are g and g², so the update is −rate·g / (|g| + ε).
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=10)
    gradient = jnp.array([3.0, -1.0, 0.0, 1e-4])
    params = {"network": {"kernel": jnp.zeros(4)}, "proxies": jnp.zeros(4)}
    updates, _ = optimizer.update(
        {"network": {"kernel": gradient}, "proxies": gradient}, optimizer.init(params), params
    )
    unit = np.array([-3 / 4, 1 / 2, 0, -1e-4 / 1.0001])
    np.testing.assert_allclose(updates["network"]["kernel"], 0.045 * unit, rtol=1e-5)
    np.testing.assert_allclose(updates["proxies"], 1.0 * unit, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [1.0, 1e-3])
def test_three_epochs_equal_torch_adam(epsilon):
    config = OptimConfig(learning_rate=0.045, proxy_learning_rate=10.0, epsilon=epsilon)
    rng = np.random.default_rng(0)
    start = {"network": rng.standard_normal((3, 5), np.float32), "proxies": rng.standard_normal((4, 2), np.float32)}
    gradients = [
        {name: rng.standard_normal(value.shape, np.float32) for name, value in start.items()} for _ in range(6)
    ]

    theirs = {name: torch.tensor(value) for name, value in start.items()}
    rates = {"network": 0.045, "proxies": 10.0}
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
    schedule = jax.jit(learning_rate_schedule(0.045, decay_per_epoch=0.94, steps_per_epoch=steps_per_epoch))
    for epoch in (0, 1, 2, 7, 49):
        first = epoch * steps_per_epoch
        for step in (first, first + steps_per_epoch - 1):
            assert float(schedule(jnp.int32(step))) == pytest.approx(0.045 * 0.94**epoch, rel=1e-5), (epoch, step)

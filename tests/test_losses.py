"""ProxyNCA: worked by hand in the plane, its invariances, its gradients, and PyTorch's numbers."""

from collections.abc import Callable
from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from torch.nn import functional

from proxynca_jax.config import LossConfig
from proxynca_jax.errors import UserError, look_up
from proxynca_jax.losses import LOSSES
from proxynca_jax.losses.proxy_nca import negative_squared_distances, proxy_nca, proxy_nca_without_positive

# Scaled to length 3, the embedding is (1.8, 2.4); scaled to length 1, the proxies are (1, 0), (0, 1) and (-1, 0).
EMBEDDING = jnp.array([[3.0, 4.0]])
PROXIES = jnp.array([[2.0, 0.0], [0.0, 5.0], [-0.5, 0.0]])
DISTANCES = (0.8**2 + 2.4**2, 1.8**2 + 1.4**2, 2.8**2 + 2.4**2)

FORMS = {
    "reference": LossConfig(embedding_scale=1.5, proxy_scale=2.0, label_smoothing=0.1),
    "paper": LossConfig(name="proxy_nca_paper", embedding_scale=1.5, proxy_scale=2.0),
}


def make_loss(config: LossConfig) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The configured loss of embeddings, proxies and labels."""
    return lambda embeddings, proxies, labels: LOSSES[config.name].of_batch(embeddings, proxies, labels, config)


def drawn(images: int, classes: int, dim: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random embeddings, proxies and labels."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((images, dim), np.float32)
    proxies = rng.standard_normal((classes, dim), np.float32) / 8
    return jnp.array(embeddings), jnp.array(proxies), jnp.array(rng.integers(0, classes, images, np.int32))


def test_distances_worked_by_hand():
    logits = negative_squared_distances(EMBEDDING, PROXIES, embedding_scale=3.0, proxy_scale=1.0)
    np.testing.assert_allclose(-logits[0], DISTANCES, rtol=1e-6)


def test_reference_form_worked_by_hand():
    loss = make_loss(LossConfig(embedding_scale=3.0, proxy_scale=1.0, label_smoothing=0.1))
    denominator = exp(-DISTANCES[0]) + exp(-DISTANCES[1]) + exp(-DISTANCES[2])
    negative_logs = [distance + log(denominator) for distance in DISTANCES]
    expected = 0.05 * negative_logs[0] + 0.9 * negative_logs[1] + 0.05 * negative_logs[2]
    np.testing.assert_allclose(loss(EMBEDDING, PROXIES, jnp.array([1])), expected, rtol=1e-6)


def test_two_classes_share_the_smoothing_as_one():
    logits = jnp.array([[-1.0, -2.0]])
    expected = 0.7 * (1 + log(exp(-1) + exp(-2))) + 0.3 * (2 + log(exp(-1) + exp(-2)))
    np.testing.assert_allclose(proxy_nca(logits, jnp.array([0]), label_smoothing=0.3), [expected], rtol=1e-6)


def test_paper_form_worked_by_hand():
    config = LossConfig(embedding_scale=3.0, proxy_scale=1.0, name="proxy_nca_paper", label_smoothing=0.1)
    expected = DISTANCES[1] + log(exp(-DISTANCES[0]) + exp(-DISTANCES[2]))
    assert expected < 0  # the own proxy is nearer than all others, and not in the denominator
    found = make_loss(config)(EMBEDDING, PROXIES, jnp.array([1]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_smoothing_it_is_cross_entropy():
    embeddings, proxies, labels = drawn(5, 7, 4)
    logits = negative_squared_distances(embeddings, proxies, embedding_scale=3.0, proxy_scale=3.0)
    expected = functional.cross_entropy(
        torch.tensor(np.asarray(logits)), torch.tensor(np.asarray(labels)).long(), reduction="none"
    )
    np.testing.assert_allclose(proxy_nca(logits, labels, label_smoothing=0.0), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_lengths_do_not_matter(form):
    embeddings, proxies, labels = drawn(5, 7, 4)
    loss = make_loss(FORMS[form])
    lengths = (
        jnp.array([1e-3, 0.1, 1.0, 10.0, 1e3])[:, None],
        jnp.array([1e-3, 0.02, 0.5, 1.0, 5.0, 70.0, 1e3])[:, None],
    )
    longer = loss(embeddings * lengths[0], proxies * lengths[1], labels)
    np.testing.assert_allclose(longer, loss(embeddings, proxies, labels), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_of_one_loss_per_example(form):
    embeddings, proxies, labels = drawn(2, 7, 4)
    loss = make_loss(FORMS[form])
    alone = [loss(embeddings[i : i + 1], proxies, labels[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(loss(embeddings, proxies, labels), np.mean(alone), rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_against_finite_differences(form):
    embeddings, proxies, labels = drawn(3, 5, 4)
    loss = make_loss(FORMS[form])

    def values(x, p):
        return loss(jnp.asarray(x), jnp.asarray(p), labels)  # the differences are taken of NumPy arrays

    # At length 1 a step of 1e-2 is a small turn, and the difference of two float32 losses still has four digits.
    arguments = tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (embeddings, proxies))
    check_grads(values, arguments, order=1, modes=["rev"], eps=1e-2, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_finite_at_a_zero_embedding_and_a_zero_proxy(form):
    embeddings, proxies, labels = drawn(3, 5, 4)
    embeddings, proxies = embeddings.at[1].set(0), proxies.at[2].set(0)
    loss = make_loss(FORMS[form])
    value, gradients = jax.value_and_grad(lambda x, p: loss(x, p, labels), (0, 1))(embeddings, proxies)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("embedding_scale", "proxy_scale"), [(3.0, 3.0), (1.0, 8.0)])
@pytest.mark.parametrize("classes", [98, 11318])
def test_value_and_gradients_against_torch(embedding_scale, proxy_scale, classes):
    embeddings, proxies, labels = drawn(4, classes, 64)
    config = LossConfig(embedding_scale=embedding_scale, proxy_scale=proxy_scale, label_smoothing=0.1)
    loss = make_loss(config)
    value, gradients = jax.value_and_grad(lambda x, p: loss(x, p, labels), (0, 1))(embeddings, proxies)

    # In float64, so that all of the difference is ours.
    x, p = (torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True) for array in (embeddings, proxies))
    distances = torch.cdist(embedding_scale * functional.normalize(x), proxy_scale * functional.normalize(p)) ** 2
    targets = torch.full((4, classes), 0.1 / (classes - 1), dtype=torch.float64)
    targets[torch.arange(4), torch.tensor(np.asarray(labels)).long()] = 0.9
    expected = -(targets * functional.log_softmax(-distances, 1)).sum(1).mean()
    expected.backward()

    assert float(value) == pytest.approx(expected.item(), rel=2e-6)
    for ours, theirs in zip(gradients, (x.grad, p.grad), strict=True):
        assert np.linalg.norm(ours - theirs.numpy()) < 1e-5 * np.linalg.norm(theirs.numpy())


def test_paper_form_against_torch():
    embeddings, proxies, labels = drawn(4, 98, 64)
    logits = negative_squared_distances(embeddings, proxies, embedding_scale=3.0, proxy_scale=3.0)
    theirs = torch.tensor(np.asarray(logits))
    own = torch.zeros(4, 98, dtype=torch.bool)
    own[torch.arange(4), torch.tensor(np.asarray(labels)).long()] = True
    expected = theirs[~own].reshape(4, 97).logsumexp(1) - theirs[own]
    np.testing.assert_allclose(proxy_nca_without_positive(logits, labels), expected, rtol=1e-6, atol=1e-6)


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"loss.name is 'proxy_nac': did you mean 'proxy_nca'\? Valid names: "):
        look_up(LOSSES, "proxy_nac", "loss.name")

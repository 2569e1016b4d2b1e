"""Error rates and thresholds of pairs, compared with scikit-learn on all pairs, and on sets with known answers."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from proxynca_jax.errors import UserError
from proxynca_jax.metrics import pairs as pairs_module
from proxynca_jax.metrics import verification
from proxynca_jax.metrics.pairs import STEPS
from proxynca_jax.metrics.verification import RATES, threshold_at, verify


def clustered(classes: int, images: int, dim: int = 8, noise: float = 0.6, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    centres = rng.standard_normal((classes, dim))
    return (centres[labels] + noise * rng.standard_normal((images, dim))).astype(np.float32), labels


def coarse(classes: int, images: int):
    """Vectors of few different directions, so nearly all similarities tie."""
    rng = np.random.default_rng(5)
    vectors = rng.integers(-1, 2, (images, 3)).astype(np.float32)  # some are zero vectors
    return vectors, rng.integers(0, classes, images)


def matrix(vectors, others):
    """Similarities in steps. Products have the shape of a block, because another shape may have other last bits."""

    def unit(rows):
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        rows = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return np.pad(rows, ((0, -len(rows) % pairs_module.BLOCK), (0, 0)))

    blocks = [
        np.split(unit(rows), range(pairs_module.BLOCK, len(rows), pairs_module.BLOCK)) for rows in (vectors, others)
    ]
    cosines = np.block([[ours @ theirs.T for theirs in blocks[1]] for ours in blocks[0]])
    return np.floor(cosines[: len(vectors), : len(others)].astype(np.float64) * STEPS)


def all_pairs(vectors, labels, gallery=None):
    """Similarities of all pairs, in steps, and whether each is of one class."""
    others, other_labels = gallery or (vectors, labels)
    steps = matrix(vectors, others)
    keep = np.ones(steps.shape, bool) if gallery else np.triu(np.ones(steps.shape, bool), 1)
    return steps[keep], np.equal.outer(labels, other_labels)[keep]


SETS = {
    "clustered": clustered(12, 90),
    "several blocks": clustered(7, 700, noise=1.2),
    "two classes": clustered(2, 150, noise=2.0),
    "ties": coarse(9, 120),
    "duplicates": tuple(np.repeat(array, 3, axis=0) for array in clustered(10, 40)),
    "negative": (np.concatenate([np.eye(6), -np.eye(6)]).repeat(4, 0), np.arange(12).repeat(4)),
    "singles": (clustered(12, 90)[0], np.maximum(np.arange(90) - 10, 0)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pairs_module, "BLOCK", 256)


@pytest.mark.parametrize("name", [*SETS, "gallery"])
def test_agrees_with_scikit_learn(name, monkeypatch):
    monkeypatch.setattr(verification, "LEAST_FALSE_ACCEPTS", 1)
    if name == "gallery":
        vectors, labels = clustered(15, 700)
        vectors, labels, gallery = vectors[:300], labels[:300], (vectors[300:], labels[300:])
    else:
        (vectors, labels), gallery = SETS[name], None
    found = verify(vectors, labels, gallery=gallery)
    steps, same = all_pairs(vectors, labels, gallery)
    assert (found.genuine_pairs, found.impostor_pairs) == (same.sum(), (~same).sum())
    assert found.auc_error < 1e-5
    assert found.auc == pytest.approx(roc_auc_score(same, steps), abs=found.auc_error + 1e-9)
    far, tar, thresholds = roc_curve(same, steps, drop_intermediate=False)
    nearest = np.argmin(np.abs(far - (1 - tar)))
    assert found.eer == pytest.approx((far[nearest] + 1 - tar[nearest]) / 2, abs=1e-12)
    at_eer = steps >= found.eer_threshold * STEPS
    assert (at_eer[~same].mean() + 1 - at_eer[same].mean()) / 2 == pytest.approx(found.eer, abs=1e-12)
    assert {point.far for point in found.operating_points} | found.too_few.keys() == set(RATES)
    for point in found.operating_points:
        accepted = steps >= point.threshold * STEPS
        assert point.false_accepts == accepted[~same].sum() <= point.far * (~same).sum() + 1e-9
        best = np.flatnonzero(far <= point.far + 1e-12)[-1]  # scikit-learn's lowest threshold of such a rate
        assert point.false_accepts == round(far[best] * (~same).sum())
        assert point.tar == pytest.approx(tar[best], abs=1e-12)
        assert point.threshold * STEPS <= thresholds[best]
        lower = steps >= point.threshold * STEPS - 1
        assert lower[~same].sum() > math.floor(point.far * (~same).sum() + 1e-9)
    for far_there, tar_there in zip(found.curve.far, found.curve.tar, strict=True):
        assert np.isclose(far, far_there, atol=1e-9).any()
        assert tar[np.isclose(far, far_there, atol=1e-9)].min() <= tar_there + 1e-9


def test_a_collapse_is_as_good_as_a_coin():
    found = verify(np.ones((200, 4), np.float32), np.arange(200) % 20)
    assert (found.eer, found.auc, found.auc_error) == (0.5, 0.5, 0)
    assert [(point.tar, point.false_accepts) for point in found.operating_points] == [(0, 0)] * 3
    assert all(point.threshold > found.eer_threshold - 1 / STEPS for point in found.operating_points)


def test_a_near_collapse_keeps_its_order():
    """All cosines are within one bin of the histogram."""
    vectors, labels = clustered(10, 100)
    found = verify(np.float32([1000, *[0] * 7]) + vectors, labels)
    steps, same = all_pairs(np.float32([1000, *[0] * 7]) + vectors, labels)
    assert found.auc == pytest.approx(roc_auc_score(same, steps), abs=1e-9)


def test_rates_with_too_few_pairs_are_left_out():
    vectors, labels = clustered(10, 100)  # 4,500 pairs of two classes
    found = verify(vectors, labels)
    assert [point.far for point in found.operating_points] == [0.1, 0.01]
    assert found.too_few == {1e-3: 10_000, 1e-4: 100_000, 1e-5: 1_000_000}


@pytest.mark.parametrize(("labels", "what"), [(np.zeros(9, int), "two classes"), (np.arange(9), "one class")])
def test_pairs_of_one_kind_are_refused(labels, what):
    with pytest.raises(UserError, match=f"have no pairs of {what}"):
        verify(np.eye(9, dtype=np.float32), labels)


def test_an_empty_gallery_is_refused():
    with pytest.raises(UserError, match="There are 2 queries and 0 gallery images; pairs need both"):
        verify(np.eye(2, dtype=np.float32), np.arange(2), gallery=(np.zeros((0, 2), np.float32), np.arange(0)))


@pytest.mark.parametrize("with_gallery", [False, True])
def test_intervals_are_those_of_drawn_classes(with_gallery):
    """The same draws, worked out image by image: each drawn copy of a class is a class, and copies are no pairs."""
    vectors, labels = clustered(6, 60, noise=1.0)
    gallery = clustered(6, 80, noise=1.0, seed=0) if with_gallery else None
    found = verify(vectors, labels, gallery=gallery, seed=3)
    [point] = [point for point in found.operating_points if point.far == 0.1]
    others, other_labels = gallery or (vectors, labels)
    accepted = matrix(vectors, others) >= point.threshold * STEPS
    tars, fars = [], []
    for weights in verification._draw_classes(6, 3):
        copies = [c for c in range(6) for _ in range(int(weights[c]))]
        genuine, impostor = [], []
        for first, ours in enumerate(copies):
            for second, theirs in enumerate(copies):
                block = accepted[labels == ours][:, other_labels == theirs]
                if first == second:
                    genuine += (block.ravel() if with_gallery else block[np.triu_indices(len(block), 1)]).tolist()
                elif ours != theirs:
                    impostor += block.ravel().tolist()
        tars.append(np.mean(genuine))
        fars.append(np.mean(impostor) if impostor else np.nan)
    assert (point.tar_low, point.tar_high) == pytest.approx(tuple(np.percentile(tars, [2.5, 97.5])), abs=1e-9)
    assert (point.far_low, point.far_high) == pytest.approx(tuple(np.nanpercentile(fars, [2.5, 97.5])), abs=1e-9)
    assert point.tar_low < point.tar < point.tar_high


def test_the_number_of_threads_changes_nothing(monkeypatch):
    vectors, labels = clustered(30, 900)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(pairs_module.os, "cpu_count", lambda cores=cores: cores)
        found.append(verify(vectors, labels)._replace(curve=None))
    assert found[0] == found[1]


def test_threshold_at():
    record = {"operating_points": [{"far": 0.01, "threshold": 0.5}, {"far": 0.001, "threshold": 0.7}]}
    assert threshold_at(record, 1e-3) == 0.7
    with pytest.raises(UserError, match=r"false accept rate of 1e-05; measured: 0.01, 0.001"):
        threshold_at(record, 1e-5)

"""Open-set identification: the protocol, and rates compared with a plain computation."""

import numpy as np
import pytest

from proxynca_jax.errors import UserError
from proxynca_jax.metrics.identification import draw_protocol, identify


def clustered(classes: int, images: int, seed: int = 0, noise: float = 0.8):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    return (rng.standard_normal((classes, 16))[labels] + noise * rng.standard_normal((images, 16))).astype(
        np.float32
    ), labels


def plain(vectors, labels, others, other_labels, rate):
    """DIR, threshold and false alarms, from a full matrix. Fit for sets without ties."""
    unit, other_unit = (rows / np.linalg.norm(rows.astype(float), axis=1, keepdims=True) for rows in (vectors, others))
    cosines = unit @ other_unit.T
    nearest, found = cosines.max(1), other_labels[cosines.argmax(1)]
    known = np.isin(labels, other_labels)
    alarms = np.sort(nearest[~known])[::-1]
    threshold = alarms[int(rate * len(alarms) + 1e-9)]
    return np.mean((found == labels)[known] & (nearest[known] > threshold)), threshold, (alarms > threshold).sum()


@pytest.mark.parametrize("with_gallery", [False, True])
def test_rates_are_those_of_a_full_matrix(with_gallery):
    vectors, labels = clustered(40, 3000)
    gallery = None
    if with_gallery:
        vectors, labels, gallery = vectors[:1400], labels[:1400], (vectors[1400:], labels[1400:])
    found = identify(vectors, labels, gallery=gallery, seed=4)
    enrolled, probes, known = draw_protocol(
        labels.astype(np.int32), gallery[1].astype(np.int32) if gallery else None, 4
    )
    others, other_labels = gallery or (vectors, labels)
    others, other_labels = others[enrolled], other_labels[enrolled]
    assert [point.false_alarm_rate for point in found.points] == [0.1, 0.01][: 2 if (~known).sum() >= 1000 else 1]
    assert found.too_few[0.001] == 10_000
    for point in found.points:
        share, threshold, alarms = plain(vectors[probes], labels[probes], others, other_labels, point.false_alarm_rate)
        assert point.dir == pytest.approx(share, abs=1e-9)
        assert point.threshold == pytest.approx(threshold, abs=3e-7)
        assert point.false_alarms == alarms <= point.false_alarm_rate * (~known).sum()
    assert found.rank_1 > found.points[0].dir > 0.2
    assert (found.known_probes, found.unknown_probes) == (known.sum(), (~known).sum())


def test_half_of_the_classes_and_of_their_images_are_enrolled():
    labels = np.repeat(np.arange(11), [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).astype(np.int32)
    enrolled, probes, known = draw_protocol(labels, None, 0)
    classes = np.unique(labels[enrolled])
    assert len(classes) == 4  # of the nine with two images or more
    for name in classes:
        assert np.sum(labels[enrolled] == name) == np.sum(labels == name) // 2
    np.testing.assert_array_equal(np.sort(np.concatenate([enrolled, probes])), np.arange(len(labels)))
    np.testing.assert_array_equal(known, np.isin(labels[probes], classes))
    again, other = (draw_protocol(labels, None, seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.enrolled, enrolled)
    assert not np.array_equal(other.enrolled, enrolled)


def test_ties_are_no_identification():
    found = identify(np.ones((400, 4), np.float32), np.arange(400) % 4)
    assert found.rank_1 == 0
    assert [(point.dir, point.false_alarms) for point in found.points] == [(0, 0)]


@pytest.mark.parametrize("labels", [np.zeros(6, int), np.arange(6)])
def test_what_cannot_be_identified(labels):
    with pytest.raises(UserError, match=r"Of \d classes, [01] have an image to enrol"):
        identify(np.eye(6, dtype=np.float32), labels)

"""NMI: an example worked by hand on well-separated clusters, and coinciding embeddings."""

import math

import numpy as np
import pytest

from proxynca_jax.config import NMI_AVERAGES
from proxynca_jax.errors import UserError
from proxynca_jax.metrics.clustering import IMPLEMENTATIONS, nmi

each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def line(*points: float) -> np.ndarray:
    return np.array(points, np.float32)[:, None]


def score(embeddings: np.ndarray, labels: np.ndarray, **options) -> float:
    return nmi(embeddings, labels, **{"restarts": 2, "average": "arithmetic", "seed": 0, **options})


@each_implementation
@pytest.mark.parametrize("average", NMI_AVERAGES)
def test_nmi_worked_by_hand(average, implementation):
    # Two clusters of two images. One class has one image of the first cluster, the other class has the rest. In bits.
    label_entropy = -math.log2(1 / 4) / 4 - 3 * math.log2(3 / 4) / 4
    cluster_entropy = 1
    label_entropy_within_clusters = (1 + 0) / 2
    information = label_entropy - label_entropy_within_clusters
    mean = {
        "arithmetic": (label_entropy + cluster_entropy) / 2,
        "geometric": math.sqrt(label_entropy * cluster_entropy),
    }
    found = score(line(0, 0.1, 9, 9.1), np.array([0, 1, 1, 1]), average=average, implementation=implementation)
    assert found == pytest.approx(information / mean[average], rel=1e-9)


@each_implementation
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_nmi_does_not_depend_on_the_scale(scale, implementation):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 6
    embeddings = 4 * rng.standard_normal((6, 8))[labels] + rng.standard_normal((60, 8))
    plain = score(embeddings.astype(np.float32), labels, implementation=implementation)
    assert plain > 0.9
    scaled = score((scale * embeddings).astype(np.float32), labels, implementation=implementation)
    assert scaled == pytest.approx(plain, abs=0.02)


@each_implementation
def test_separated_classes_have_nmi_1_for_any_labels(implementation):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 6, 120)
    embeddings = np.eye(6, 8, dtype=np.float32)[classes] + 0.01 * rng.standard_normal((120, 8), np.float32)
    labels = np.array([-3, 4, 90, 17, 2**40, 5])[classes]
    assert score(embeddings, labels, restarts=10, implementation=implementation) == pytest.approx(1)


@each_implementation
@pytest.mark.parametrize("average", NMI_AVERAGES)
def test_coinciding_embeddings_have_nmi_0(average, implementation):
    assert score(np.ones((6, 3), np.float32), np.arange(6) // 2, average=average, implementation=implementation) == 0


@each_implementation
def test_fewer_distinct_embeddings_than_classes(implementation):
    assert 0 < score(line(0, 0, 9, 9, 9, 9), np.arange(6) // 2, implementation=implementation) < 1


@each_implementation
def test_same_seed_gives_the_same_nmi(implementation):
    rng = np.random.default_rng(0)
    embeddings, labels = rng.standard_normal((80, 4), np.float32), rng.integers(0, 8, 80)
    first, second = (
        [score(embeddings, labels, restarts=1, seed=seed, implementation=implementation) for seed in range(5)]
        for _ in "ab"
    )
    assert first == second
    assert len(set(first)) > 1


def test_unknown_implementation_raises_with_the_valid_names():
    with pytest.raises(UserError, match=r"'sklearn'.*did you mean 'scikit-learn'.*device"):
        score(line(0, 9), np.arange(2), implementation="sklearn")

"""k-means: examples worked by hand, comparison with scikit-learn, distribution of k-means++ seeds, and memory."""

import functools
import itertools

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from proxynca_jax.metrics import kmeans as module
from proxynca_jax.metrics.kmeans import initial_centres, kmeans, lloyd


def line(*points: float) -> np.ndarray:
    return np.array(points, np.float32)[:, None]


def blobs(points: int, clusters: int, dim: int, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, dim), np.float32)
    return centres[rng.integers(0, clusters, points)] + spread * rng.standard_normal((points, dim), np.float32)


# Lloyd's iterations


def test_lloyd_worked_by_hand():
    # Clusters: 0 | 1 9 11, then 0 1 | 9 11, then no change.
    found = lloyd(line(0, 1, 9, 11), line(0, 1))
    np.testing.assert_allclose(found.centres, line(0.5, 10), rtol=1e-6)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.inertia == pytest.approx(0.5 + 2, rel=1e-6)
    assert found.iterations == 2


@pytest.mark.parametrize(
    ("options", "iterations"),
    # The points' variance is 23.1875; the second centre moves by 6, then by 3 with the first by 0.5.
    [
        ({"max_iterations": 1}, 1),
        ({"tolerance": 37 / 23.1875}, 1),
        ({"tolerance": 35 / 23.1875}, 2),
    ],
)
def test_lloyd_stops_at_max_iterations_and_tolerance(options, iterations):
    found = lloyd(line(0, 1, 9, 11), line(0, 1), **options)
    assert found.iterations == iterations
    # The labels belong to the returned centres, even if the run stops before it converges.
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.inertia == pytest.approx({1: 0 + 1 + 4 + 16, 2: 0.5 + 2}[iterations], rel=1e-6)


@pytest.mark.parametrize(("points", "clusters", "dim"), [(500, 10, 8), (501, 1, 3), (4001, 300, 16)])
def test_lloyd_equals_scikit_learn_from_the_same_centres(points, clusters, dim):
    vectors = blobs(points, clusters, dim)
    start = vectors[np.random.default_rng(1).permutation(points)[:clusters]]
    found = lloyd(vectors, start)
    expected = KMeans(clusters, init=start, n_init=1).fit(vectors)
    np.testing.assert_array_equal(found.labels, expected.labels_)
    np.testing.assert_allclose(found.centres, expected.cluster_centers_, atol=1e-5)
    assert found.inertia == pytest.approx(expected.inertia_, rel=1e-5)


def test_point_between_two_centres_is_assigned_to_the_first():
    assert lloyd(line(0, 1, 2), line(0, 2), max_iterations=0).labels.tolist() == [0, 0, 1]


def test_points_far_from_the_origin_keep_their_precision():
    vectors, start = blobs(500, 10, 8), blobs(10, 10, 8)
    near = lloyd(vectors.astype(np.float64), start.astype(np.float64))
    far = lloyd(vectors.astype(np.float64) + 1e6, start.astype(np.float64) + 1e6)
    np.testing.assert_array_equal(far.labels, near.labels)
    assert far.inertia == pytest.approx(near.inertia, rel=1e-5)


def test_centres_without_points_move_to_the_farthest_points():
    # All points are nearest to 0. The first empty centre moves to the farthest point, the second to the next.
    found = lloyd(line(0, 1, 9, 11), line(0, 100, 200), max_iterations=1)
    np.testing.assert_allclose(found.centres, line(0.5, 11, 9), rtol=1e-6)
    assert found.labels.tolist() == [0, 0, 2, 1]


def test_empty_clusters_are_filled_as_in_scikit_learn():
    vectors = blobs(400, 12, 4)
    start = np.concatenate([vectors[:8], np.full((4, 4), 50, np.float32)])
    found = lloyd(vectors, start)
    expected = KMeans(12, init=start, n_init=1).fit(vectors)
    assert len(np.unique(found.labels)) == 12
    np.testing.assert_array_equal(found.labels, expected.labels_)


def test_centre_that_lost_its_only_point_keeps_its_position():
    # The centre at 90 moves to the point 0 of the centre at 1. All points then coincide with a centre, so no point is
    # left for the centre at 1.
    found = lloyd(line(0, 5, 5), line(1, 5, 90))
    np.testing.assert_allclose(found.centres, line(1, 5, 0), atol=1e-6)
    assert found.labels.tolist() == [2, 1, 1]


# Seeding


def chosen_sets(points: np.ndarray, clusters: int, trials: int) -> dict[frozenset[int], float]:
    """Computes the probability of every set of centres under greedy k-means++, by enumeration."""
    distances = np.square(points[:, None] - points[None]).sum(-1)
    found = {(first,): 1 / len(points) for first in range(len(points))}
    for _ in range(clusters - 1):
        grown: dict[tuple[int, ...], float] = {}
        for rows, probability in found.items():
            nearest = distances[list(rows)].min(0)
            left = np.minimum(nearest, distances).sum(1)  # sum of D² with each point as the next centre
            for drawn in itertools.product(range(len(points)), repeat=trials):
                grown_rows = (*rows, min(drawn, key=lambda row: left[row]))
                share = probability * np.prod(nearest[list(drawn)] / nearest.sum())
                grown[grown_rows] = grown.get(grown_rows, 0) + share
        found = grown
    sets: dict[frozenset[int], float] = {}
    for rows, probability in found.items():
        sets[frozenset(rows)] = sets.get(frozenset(rows), 0) + probability
    return {rows: probability for rows, probability in sets.items() if probability}


def check_draws(points: np.ndarray, clusters: int, trials: int):
    """Compares the frequencies of sets drawn with many keys with their probabilities."""
    draws = 10_000
    seed = functools.partial(module._seed.__wrapped__, clusters=clusters, trials=trials)
    keys = jax.random.split(jax.random.key(0), draws)
    rows = np.asarray(jax.jit(jax.vmap(seed, (None, 0)))(points, keys))
    drawn = [frozenset(map(int, each)) for each in rows]
    expected = chosen_sets(points.astype(np.float64), clusters, trials)
    assert set(drawn) <= set(expected)
    for each, probability in expected.items():
        error = np.sqrt(probability * (1 - probability) / draws)
        assert drawn.count(each) / draws == pytest.approx(
            probability, abs=4 * error + 3 / draws
        )  # three of the rarest sets


SIX = np.array([[0, 0], [0, 1], [3, 0], [3, 2], [-2, 4], [-1, 4.5]], np.float32)


@pytest.mark.parametrize(("clusters", "trials"), [(2, 2), (3, 3), (4, 1)])
def test_seeds_have_the_distribution_of_greedy_kmeans_plus_plus(clusters, trials):
    check_draws(SIX, clusters, trials)


@pytest.mark.parametrize("clusters", [3, 4])
def test_rounds_of_several_centres_have_the_distribution_of_single_ones(clusters, monkeypatch):
    monkeypatch.setattr(module, "CENTRES_PER_ADDED", 1)
    # A round does not update gains. With one candidate there are no gains to compare, so the distribution is exact.
    check_draws(SIX, clusters, trials=1)


@pytest.mark.parametrize("seed", range(5))
def test_every_distinct_point_becomes_a_centre_if_there_are_enough_clusters(seed):
    found = initial_centres(line(0, 4, 0, 9, 4, 0), 3, key=jax.random.key(seed))
    assert sorted(found[:, 0]) == [0, 4, 9]


def test_seeding_inertia_is_close_to_scikit_learn():
    vectors = blobs(2000, 200, 16)

    def inertia(centres):
        return np.square(vectors[:, None] - centres[None]).sum(-1).min(1).sum()

    ours = [inertia(initial_centres(vectors, 200, key=jax.random.key(seed))) for seed in range(5)]
    theirs = [inertia(kmeans_plusplus(vectors, 200, random_state=seed)[0]) for seed in range(5)]
    assert np.mean(ours) < 1.04 * np.mean(theirs)


def test_seeds_do_not_depend_on_the_block_size(monkeypatch):
    vectors, key = blobs(611, 40, 8), jax.random.key(0)
    whole = initial_centres(vectors, 40, key=key)
    jax.clear_caches()
    monkeypatch.setattr(module, "BLOCK_DISTANCES", 1000)
    np.testing.assert_array_equal(initial_centres(vectors, 40, key=key), whole)
    jax.clear_caches()


# Whole runs


def test_kmeans_returns_the_run_of_lowest_inertia():
    vectors = blobs(300, 30, 4, spread=0.5)
    keys = jax.random.split(jax.random.key(3), 6)
    runs = [lloyd(vectors, initial_centres(vectors, 30, key=key)) for key in keys]
    best = min(runs[1:], key=lambda run: run.inertia)
    assert best.inertia < runs[0].inertia
    found = kmeans(vectors, 30, restarts=6, seed=3)
    assert found.inertia == best.inertia
    np.testing.assert_array_equal(found.labels, best.labels)


def test_same_seed_gives_the_same_result():
    vectors = blobs(300, 30, 4, spread=0.5)
    first, second = ([kmeans(vectors, 30, restarts=1, seed=seed).inertia for seed in (0, 1, 2**32 - 1)] for _ in "ab")
    assert first == second
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    "points", [line(0, 9, 0, 9, 9, 9), line(3, 3, 3, 3, 3, 3), line(1e-3, 0.1, 1e-3, 0.1, 0.1, 0.1)]
)
def test_fewer_distinct_points_than_clusters(points):
    found = kmeans(points, 5, restarts=2, seed=0)
    for place in np.unique(points):
        assert np.unique(found.labels[points[:, 0] == place]).size == 1
    assert len(np.unique(found.labels)) == len(np.unique(points))
    assert found.inertia == pytest.approx(0, abs=1e-12)


def test_as_many_clusters_as_points():
    found = kmeans(blobs(40, 5, 3), 40, restarts=1, seed=0)
    assert sorted(found.labels) == list(range(40))


def test_memory_is_bounded_by_a_few_blocks():
    vectors, clusters = blobs(40_003, 10, 4), 1000
    bound_bytes = 4 * (2 * module.BLOCK_DISTANCES + 2 * module.MOST_ADDED * len(vectors))
    assert bound_bytes < 4 * len(vectors) * clusters / 10
    for program in (
        module._seed.lower(vectors, jax.random.key(0), clusters=clusters, trials=8),
        module._lloyd.lower(vectors, vectors[:clusters], 300, 1.0),
    ):
        assert program.compile().memory_analysis().temp_size_in_bytes < bound_bytes

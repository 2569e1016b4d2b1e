"""Retrieval scores: examples worked by hand, comparison with sorting in Python, limits of float32 and of memory."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxynca_jax.errors import UserError
from proxynca_jax.metrics import retrieval
from proxynca_jax.metrics.retrieval import NO_MATCH, mean_precisions, precisions_at_r, ranks, recall_at_k
from proxynca_jax.metrics.vectors import DISTANCES, spread

# Unit vectors whose inner products are exact in float32, so equal distances have the same bits.
EXACT_UNIT_VECTORS = np.array([*itertools.product((-0.5, 0.5), repeat=4), *np.eye(4), *-np.eye(4)], np.float32)
EXACT_POINTS = np.array([*itertools.product((-3, 0, 1, 2), repeat=2)], np.float32)
LABELS = (0, 2**32, -7, 3)  # the first two are equal in 32 bits


def line(*points: float) -> np.ndarray:
    """Returns one-dimensional embeddings, whose distances are easy to see."""
    return np.array(points, np.float32)[:, None]


def sort_in_python(embeddings, labels, gallery, distance) -> list[tuple]:
    """Computes ranks, average precisions and R-precisions of the queries in float64, from their definitions."""
    others, other_labels = (embeddings, labels) if gallery is None else gallery
    queries, others = embeddings.astype(np.float64), others.astype(np.float64)
    scores = []
    for index, (query, label) in enumerate(zip(queries, labels, strict=True)):
        apart = -others @ query if distance == "cosine" else np.sum((others - query) ** 2, 1)
        rows = np.lexsort((other_labels == label, apart))  # of equal distances, those of the query's class come last
        if gallery is None:
            rows = rows[rows != index]
        relevant = [other_labels[row] == label for row in rows]
        r = sum(relevant)
        if r == 0:
            scores.append((NO_MATCH, np.nan, np.nan))
            continue
        best = apart[rows[relevant.index(True)]]
        rank = sum(apart[row] <= best and other_labels[row] != label for row in rows)
        average = sum(sum(relevant[: i + 1]) / (i + 1) for i in range(r) if relevant[i]) / r
        scores.append((rank, average, sum(relevant[:r]) / r))
    return list(zip(*scores, strict=True))


@st.composite
def searches(draw):
    """Draws from few points and few labels: duplicates, ties, classes of one image, absent classes, a single class."""
    distance = draw(st.sampled_from(DISTANCES))
    places = EXACT_UNIT_VECTORS if distance == "cosine" else EXACT_POINTS

    def draw_set(images: int) -> tuple[np.ndarray, np.ndarray]:
        rows = draw(st.lists(st.integers(0, len(places) - 1), min_size=images, max_size=images))
        labels = draw(st.lists(st.sampled_from(LABELS), min_size=images, max_size=images))
        return places[rows], np.array(labels)

    queries = draw_set(draw(st.sampled_from((1, 4, 9))))
    gallery = draw(st.sampled_from((None, 1, 6)))
    options = {
        "gallery": gallery and draw_set(gallery),
        "distance": distance,
        "block_size": draw(st.sampled_from((1, 4, 20))),
    }
    return *queries, options


def test_rank_worked_by_hand():
    embeddings, labels = line(0, 1, 3, 7, 8, 20), np.array([0, 1, 0, 1, 1, 2])
    found = ranks(embeddings, labels, distance="squared_euclidean")
    np.testing.assert_array_equal(found, np.array([1, 2, 1, 0, 0, NO_MATCH], np.int32), strict=True)


def test_recall_worked_by_hand():
    assert recall_at_k(np.array([0, 3, NO_MATCH, 1], np.int32), (1, 2, 4, 100)) == {
        1: 1 / 3,
        2: 2 / 3,
        4: 1.0,
        100: 1.0,
    }


def test_precisions_worked_by_hand():
    gallery = line(1, 2, 3, 4), np.array([0, 1, 0, 0])
    found = precisions_at_r(line(0, 0), np.array([0, 5]), gallery=gallery, distance="squared_euclidean")
    expected = np.array([[(1 / 1 + 2 / 3) / 3, np.nan], [2 / 3, np.nan]], np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, strict=True)


def test_mean_precisions_ignore_queries_without_a_match():
    found = np.array([0.5, np.nan, 0.25], np.float32), np.array([1, np.nan, 0], np.float32)
    assert mean_precisions(*found) == {"map_at_r": 0.375, "r_precision": 0.5}


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_ties_go_against_the_query(order):
    search = {"gallery": (line(1, -1), np.array(order)), "distance": "squared_euclidean"}
    query, label = line(0), np.array([0])
    assert ranks(query, label, **search) == 1
    assert precisions_at_r(query, label, **search)[1] == 0


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30])
def test_a_collapsed_network_has_the_worst_scores(value, distance):
    embeddings, labels = np.full((60, 8), value, np.float32), np.arange(60) % 20
    np.testing.assert_array_equal(ranks(embeddings, labels, distance=distance), np.full(60, 57))
    np.testing.assert_array_equal(precisions_at_r(embeddings, labels, distance=distance), np.zeros((2, 60)))
    assert spread(embeddings) == pytest.approx(0, abs=1e-12)


def test_spread_worked_by_hand():
    assert spread(np.array([[3.0, 0], [0, 0.1], [-1, 0], [0, -7]])) == pytest.approx(1)
    assert spread(np.array([[1.0, 0], [0, 1]])) == pytest.approx(0.5)  # the mean is (1/2, 1/2)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
def test_vectors_that_nearly_coincide_are_told_apart(apart, distance):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 20
    vectors = 1 + apart * rng.standard_normal((120, 16)) + apart * rng.standard_normal((20, 16))[labels]
    units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    expected, *precisions = sort_in_python(units, labels, None, distance)
    np.testing.assert_array_equal(ranks(units, labels, distance=distance), expected)
    np.testing.assert_allclose(precisions_at_r(units, labels, distance=distance), precisions, rtol=1e-5)
    assert len(set(expected)) > 5


def test_a_common_shift_does_not_change_squared_distances():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 6
    vectors = rng.standard_normal((6, 8))[labels] + rng.standard_normal((60, 8))
    expected, *_ = sort_in_python(vectors, labels, None, "squared_euclidean")
    np.testing.assert_array_equal(ranks(vectors + 1e4, labels, distance="squared_euclidean"), expected)


def test_query_is_excluded_by_row_so_its_duplicate_is_found():
    embeddings, labels = line(0, 0, 5, 5), np.array([0, 1, 0, 1])
    # The duplicate is closer, and an image of the other class as far as that of the own one.
    np.testing.assert_array_equal(ranks(embeddings, labels, distance="squared_euclidean"), [2, 2, 2, 2])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(searches())
def test_scores_equal_those_of_sorting(search):
    embeddings, labels, options = search
    expected_ranks, *expected_precisions = sort_in_python(embeddings, labels, options["gallery"], options["distance"])
    if set(expected_ranks) == {NO_MATCH}:
        for score in (ranks, precisions_at_r):
            with pytest.raises(UserError, match="another image of its class"):
                score(embeddings, labels, **options)
        return
    np.testing.assert_array_equal(ranks(embeddings, labels, **options), expected_ranks)
    np.testing.assert_allclose(precisions_at_r(embeddings, labels, **options), expected_precisions, rtol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_scores_of_many_images_equal_those_of_sorting(distance):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, 300)
    embeddings = (rng.standard_normal((300, 16)) + rng.standard_normal((40, 16))[labels]).astype(np.float32)
    if distance == "cosine":
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected_ranks, *expected_precisions = sort_in_python(embeddings, labels, None, distance)
    assert len(set(expected_ranks)) > 10
    options = {"distance": distance, "block_size": 128}
    np.testing.assert_array_equal(ranks(embeddings, labels, **options), expected_ranks)
    np.testing.assert_allclose(precisions_at_r(embeddings, labels, **options), expected_precisions, rtol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_rounding_does_not_count_an_image_of_the_same_class_as_closer(distance):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(50), 5))
    embeddings = rng.standard_normal((50, 64), dtype=np.float32)[labels]
    found = ranks(embeddings, labels, distance=distance, block_size=7)
    np.testing.assert_array_equal(found, np.zeros(250))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("block_size", [64, 100, 512])
def test_nearest_positive_has_the_same_bits_in_both_passes(distance, block_size):
    # Each class is a query and one image close to it, so every rank is 0. Another rank would mean that the similarity
    # of the nearest positive rounds differently in the pass that counts closer images.
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(300), 2))
    embeddings = rng.standard_normal((300, 64))[labels] + 0.3 * rng.standard_normal((600, 64))
    found = ranks(embeddings.astype(np.float32), labels, distance=distance, block_size=block_size)
    np.testing.assert_array_equal(found, np.zeros(600))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("exponent", [-120, 120])
def test_scores_do_not_depend_on_scale_even_if_squares_overflow_float32(distance, exponent):
    rng = np.random.default_rng(0)
    embeddings, labels = rng.integers(-3, 4, (60, 4)).astype(np.float32), rng.integers(0, 6, 60)
    scaled = np.ldexp(embeddings, exponent)
    np.testing.assert_array_equal(
        ranks(scaled, labels, distance=distance), ranks(embeddings, labels, distance=distance)
    )


def test_cosine_ignores_length():
    rng = np.random.default_rng(0)
    rows, labels = rng.integers(0, len(EXACT_UNIT_VECTORS), 60), rng.integers(0, 6, 60)
    unit = EXACT_UNIT_VECTORS[rows]
    np.testing.assert_array_equal(ranks(unit * rng.uniform(0.1, 9, (60, 1)), labels), ranks(unit, labels))


def test_zero_vector_is_orthogonal_to_all_others():
    embeddings, labels = np.array([[1, 0], [0, 0], [1, 1], [1, 1]], np.float32), np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(ranks(embeddings, labels), [2, 2, 0, 0])


@pytest.mark.parametrize("score", [ranks, precisions_at_r])
def test_invalid_embeddings_raise_user_errors(score):
    good, labels = line(0, 1, 2, 3), np.array([0, 0, 1, 1])
    with pytest.raises(UserError, match=r"Row 1 of the 4 query embeddings is not finite: \[nan\]"):
        score(line(0, np.nan, 2, np.inf), labels)
    with pytest.raises(UserError, match=r"Row 3 of the 4 gallery embeddings is not finite: \[-inf\]"):
        score(good, labels, gallery=(line(0, 1, 2, -np.inf), labels))
    with pytest.raises(UserError, match=r"3 gallery embeddings and 4 labels\."):
        score(good, labels, gallery=(good[:3], labels))
    with pytest.raises(UserError, match=r"None of the 4 queries .* gallery of 0 images"):
        score(good, labels, gallery=(good[:0], labels[:0]))
    with pytest.raises(UserError, match="None of the 0 queries"):
        score(good[:0], labels[:0])
    with pytest.raises(UserError, match=r"'cosin'.*did you mean 'cosine'"):
        score(good, labels, distance="cosin")


@pytest.mark.parametrize("score", [ranks, precisions_at_r])
def test_memory_is_bounded_by_a_few_blocks(score, monkeypatch):
    images, block = 4099, 64
    embeddings, labels = np.random.default_rng(0).standard_normal((images, 8), np.float32), np.arange(images) // 4
    programs = []
    for name in ("_visit", "_precisions"):
        program = getattr(retrieval, name)

        def remember(*args, program=program, **static):
            programs.append(program.lower(*args, **static).compile())
            return program(*args, **static)

        monkeypatch.setattr(retrieval, name, remember)
    score(embeddings, labels, block_size=block)
    assert max(program.memory_analysis().temp_size_in_bytes for program in programs) < 4 * (4 * block * images)


def test_both_passes_over_the_tiles_share_one_compiled_program():
    embeddings, labels = np.random.default_rng(0).standard_normal((23, 5), np.float32), np.arange(23) // 3
    programs = retrieval._visit._cache_size()
    for _ in range(2):
        ranks(embeddings, labels, block_size=6)
    assert retrieval._visit._cache_size() == programs + 1

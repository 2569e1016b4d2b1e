"""The picture of neighbours: which queries it shows, what it finds for them, and how it marks them."""

import dataclasses
import pathlib

import numpy as np
import pytest
import trees
from PIL import Image

from proxynca_jax import neighbours, steps, train
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.embedder import before_training, embed, load_network
from proxynca_jax.metrics.retrieval import NO_MATCH
from proxynca_jax.neighbours import (
    FRAME,
    GAP,
    LINE,
    MARGIN,
    NEIGHBOURS,
    QUERY_GAP,
    RIGHT,
    ROW,
    STATE_WIDTH,
    TILE,
    WRONG,
)
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.log import MetricLog
from proxynca_jax.weights import converted_file


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A run of random weights, with two evaluation classes of five images: four right neighbours and four wrong."""
    trees.draw_folder(tmp_path / "tree", classes=4, images_per_class=5)
    config = TrainConfig(
        data=DataConfig(dataset="folder", root=str(tmp_path / "tree"), image_size=32, resize_size=40, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=8),
        evaluation=EvaluationConfig(batch_size=8),
    )
    open_run(tmp_path / "run", config)
    _, state = steps.init_state(config.model, make_optimizer(config.optim, steps_per_epoch=1), classes=2, seed=3)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save("best", 12, state)
    MetricLog(tmp_path / "run").record({"epoch": 2, "step": 12})
    return tmp_path / "run"


def frames(pixels: np.ndarray, first: int, top: int) -> list[str]:
    """The colours of the frames of a row, whose nearest image is at `first`."""
    colours = []
    for place in range(NEIGHBOURS):
        left = first + place * (TILE + GAP)
        frame = pixels[top : top + FRAME, left : left + TILE].reshape(-1, 3)
        assert (frame == frame[0]).all()
        colours.append("#" + bytes(frame[0]).hex())
    return colours


def test_every_image_is_framed_by_its_class(run, tmp_path, capsys):
    output = tmp_path / "picture.png"
    neighbours.main(["--run", str(run), "--output", str(output)])
    assert "2 queries. 10 images of 2 classes that were not trained on; R@1 " in (told := capsys.readouterr().out)
    assert told.endswith(" after 3 epochs\n")
    pixels = np.asarray(Image.open(output).convert("RGB"))
    for row in range(2):
        colours = frames(pixels, MARGIN + TILE + QUERY_GAP, MARGIN + LINE + row * ROW)
        # Of nine other images four are right, so the eight nearest are four and four, or three and five.
        assert set(colours) == {RIGHT, WRONG}
        assert colours.count(RIGHT) in (3, 4)


def test_neighbours_are_exact_and_leave_the_query_out():
    angles = np.radians([0, 90, 10, 0, 200])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    row = neighbours.search(vectors, 0)
    assert row.found.tolist() == [3, 2, 1, 4]
    np.testing.assert_allclose(row.distances, 1 - np.cos(np.radians([0, 10, 90, 200])), atol=1e-6)


def test_a_gallery_is_searched_whole():
    vectors = np.eye(3, dtype=np.float32)
    gallery = np.array([[0, 1, 0], [1, 0, 0]], np.float32)
    assert neighbours.search(vectors, 0, gallery).found.tolist() == [1, 0]
    labels = np.array([0, 1, 2])
    rows = neighbours.choose_rows(vectors, labels, rows=3, seed=0, gallery=(gallery, np.array([1, 0])))
    assert {row.query: row.found.tolist() for row in rows}[1] == [0, 1]


def test_queries_are_of_different_classes_and_mixed_ones_come_first():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 9)
    centres = np.eye(6, 12)[labels] * np.where(labels < 4, 0.5, 50)[:, None]  # classes 4 and 5 have no wrong neighbours
    vectors = centres + rng.normal(0, 0.3, (54, 12))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    right = lambda row: int((labels[row.found] == labels[row.query]).sum())  # noqa: E731
    rows = neighbours.choose_rows(vectors, labels, rows=4, seed=1)
    assert {labels[row.query] for row in rows} == {0, 1, 2, 3}
    assert [right(row) for row in rows] == sorted(map(right, rows), reverse=True)
    assert all(0 < right(row) < NEIGHBOURS for row in rows)
    every = neighbours.choose_rows(vectors, labels, rows=100, seed=1)
    assert sorted(labels[row.query] for row in every) == list(range(6))


def test_the_output_is_a_png(run, tmp_path):
    with pytest.raises(SystemExit, match=r"must end in \.png"):
        neighbours.main(["--run", str(run), "--output", str(tmp_path / "picture.jpg")])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[pathlib.Path, TrainConfig]:
    """A run of two epochs, of which the last state is the best."""
    root = tmp_path_factory.mktemp("trained")
    trees.draw_folder(root / "tree", classes=10, images_per_class=5)
    config = TrainConfig(
        seed=5,
        data=DataConfig(dataset="folder", root=str(root / "tree"), image_size=8, resize_size=8, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=8),
        optim=OptimConfig(epochs=2, batch_size=8, learning_rate=0.3, proxy_learning_rate=0.1, epsilon=1e-3),
        evaluation=EvaluationConfig(batch_size=8, nmi=False),
    )
    train.train(config, root / "run")
    return root / "run", config


def test_before_is_the_state_of_the_runs_first_record(trained, tmp_path, capsys):
    run, config = trained
    output = tmp_path / "picture.png"
    options = ["--run", str(run), "--checkpoint", "latest", "--output", str(output)]
    neighbours.main([*options, "--before", "--rows", "3", "--seed", "1"])
    before, *_, after = [record["recall_at_1"] for record in MetricLog(run).records()]
    told = f"R@1 {before:.2f} before training, from random weights; R@1 {after:.2f} after 2 epochs"
    assert f"3 queries. 25 images of 5 classes that were not trained on; {told}\n" in capsys.readouterr().out

    network, *_ = load_network(run, "latest")
    queries = load_dataset(config.data).evaluation.queries
    pixels = np.asarray(Image.open(output).convert("RGB"))
    states = [embed(state, queries, config) for state in (before_training(network, config), network)]
    assert not np.allclose(*states, atol=0.1)
    drawn = neighbours.draw_queries(np.zeros(25, np.int32), count=3, seed=1)
    for row, query in enumerate(np.repeat(drawn, 2).tolist()):
        found = neighbours.search(states[row % 2], query).found
        expected = [RIGHT if right else WRONG for right in queries.labels[found] == queries.labels[query]]
        assert frames(pixels, MARGIN + TILE + QUERY_GAP + STATE_WIDTH, MARGIN + 3 * LINE + row * ROW) == expected

    neighbours.main([*options, "--before"])
    assert "8 queries. " in capsys.readouterr().out


def test_before_takes_the_weights_file_of_the_run(trained, tmp_path):
    run, config = trained
    network, *_ = load_network(run, "latest")
    tensors = {name: np.asarray(leaf) for name, leaf in converted_file.flatten(network.variables._asdict()).items()}
    converted_file.write(tmp_path / "tiny.safetensors", "tiny", tensors, source={})
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, weights=str(tmp_path / "tiny.safetensors"))
    )
    queries = load_dataset(config.data).evaluation.queries
    start = before_training(network, config)
    np.testing.assert_array_equal(embed(start, queries, config), embed(network, queries, config))


def test_queries_of_the_comparison_are_drawn_from_all_that_have_something_to_find():
    ranks = np.array([0, NO_MATCH, 7, 3, NO_MATCH, 0], np.int32)
    draws = [neighbours.draw_queries(ranks, count=2, seed=seed) for seed in range(200)]
    counts = np.bincount(np.ravel(draws), minlength=6)
    assert counts[[1, 4]].tolist() == [0, 0]
    assert (counts[[0, 2, 3, 5]] > 60).all()
    assert all(first != second for first, second in draws)
    assert sorted(neighbours.draw_queries(ranks, count=9, seed=0)) == [0, 2, 3, 5]

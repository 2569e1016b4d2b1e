"""The picture of neighbours: which queries it shows, what it finds for them, and how it marks them."""

import pathlib

import numpy as np
import pytest
import trees
from PIL import Image

from proxynca_jax import neighbours, steps
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from proxynca_jax.neighbours import FRAME, GAP, LINE, MARGIN, NEIGHBOURS, QUERY_GAP, RIGHT, TILE, WRONG
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.log import MetricLog


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


def test_every_image_is_framed_by_its_class(run, tmp_path, capsys):
    output = tmp_path / "picture.png"
    neighbours.main(["--run", str(run), "--output", str(output)])
    assert "2 queries. 10 images of 2 classes that were not trained on; R@1 " in (told := capsys.readouterr().out)
    assert told.endswith(" after 3 epochs\n")
    pixels = np.asarray(Image.open(output).convert("RGB"))
    for row in range(2):
        colours = []
        for place in range(NEIGHBOURS):
            left = MARGIN + TILE + QUERY_GAP + place * (TILE + GAP)
            top = MARGIN + LINE + row * (TILE + LINE + GAP)
            frame = pixels[top : top + FRAME, left : left + TILE].reshape(-1, 3)
            assert (frame == frame[0]).all()
            colours.append("#" + bytes(frame[0]).hex())
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

"""Embeddings in files: of splits and of folders, in memory that does not grow, whole or not at all."""

import json
import pathlib
import signal
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
import trees

from proxynca_jax import embed, evaluate, steps
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.inspection import inspect_dataset
from proxynca_jax.machine import progress
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs import embedding_files
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.embedding_files import Contents, read_embeddings, write_embeddings
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.image_list import list_images

FORMATS = pytest.mark.parametrize("suffix", [".npz", ".parquet"])
STEP, BATCH, DIM = 12, 8, 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of random weights: four classes of five images, of which two are for evaluation, in two batches."""
    root, run = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("runs") / "run"
    trees.draw_folder(root, classes=4, images_per_class=5)
    config = TrainConfig(
        data=DataConfig(dataset="folder", root=str(root), image_size=32, resize_size=40, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=DIM),
        evaluation=EvaluationConfig(batch_size=BATCH, recall_at=(1, 3), kmeans_restarts=2, nmi_average="geometric"),
    )
    dataset, _ = inspect_dataset(load_dataset(config.data), config.data)
    open_run(run, config, list_images(dataset.sides(), dataset))
    _, state = steps.init_state(config.model, make_optimizer(config.optim, steps_per_epoch=1), classes=2, seed=3)
    with Checkpoints(run) as checkpoints:
        checkpoints.save("best", STEP, state)
    return run


def about(path: pathlib.Path) -> dict:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return json.loads(str(arrays["proxynca_jax"]))
    return json.loads(pq.read_schema(path).metadata[b"proxynca_jax"])


def paths(path: pathlib.Path) -> list[str]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["paths"].tolist()
    return pq.read_table(path)["path"].to_pylist()


def vectors_of(path: pathlib.Path) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["embeddings"]
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


@FORMATS
def test_a_split_scores_as_its_run_does(run, suffix, tmp_path, capsys):
    output = tmp_path / f"out{suffix}"
    embed.main(["--run", str(run), "--split", "test", "--output", str(output)])
    told, command = capsys.readouterr().out.splitlines()
    assert told.endswith("10 embeddings of 8 dimensions")
    evaluate.main(command.split("proxynca_jax.evaluate ")[1].split())
    title, *scores = capsys.readouterr().out.splitlines()
    evaluate.main(["--run", str(run)])
    run_title, *run_scores = capsys.readouterr().out.splitlines()
    assert scores == run_scores
    assert title.removeprefix(str(output)) == run_title.removeprefix(f"{run}  best checkpoint, step {STEP}")
    vectors, labels = read_embeddings(output)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.ones(10), rtol=1e-6)
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 5))
    assert [pathlib.Path(path).parent.name for path in paths(output)] == np.repeat(
        about(output)["class_names"], 5
    ).tolist()
    assert about(output)["step"] == STEP
    assert about(output)["backbone"] == "tiny"
    assert about(output)["preprocessing"] == {
        "channel_order": "RGB",
        "squash": False,
        "scale": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "image_size": 32,
        "resize_size": 40,
    }


def test_a_folder_is_searched_to_its_depth_and_has_no_labels(run, tmp_path, capsys):
    trees.draw_odd_images(tmp_path / "images/deep/deeper")
    (tmp_path / "images/deep/deeper/truncated.jpg").unlink()
    trees.draw_folder(tmp_path / "images", classes=1, images_per_class=2)
    trees.draw_folder(tmp_path / "images/.thumbnails", classes=1, images_per_class=2)
    trees.write(tmp_path / "images/notes.txt", b"no image")
    output = tmp_path / "out.parquet"
    embed.main(["--run", str(run), "--images", str(tmp_path / "images"), "--output", str(output)])
    assert capsys.readouterr().out == f"{output}: 8 embeddings of 8 dimensions\n"
    names = [f"class_00/{name}" for name in ("0.jpg", "1.PNG")]
    names += [f"deep/deeper/{kind}.jpg" for kind in ("cmyk", "gif", "grey", "palette", "rgba", "rotated")]
    assert paths(output) == [str(tmp_path / "images" / name) for name in names]
    assert pq.read_schema(output).names == ["embedding", "path"]
    with pytest.raises(SystemExit, match="no column 'label'"):
        evaluate.main(["--embeddings", str(output)])


@FORMATS
def test_when_strict_a_truncated_image_is_named_and_leaves_no_file(run, suffix, tmp_path):
    odd = trees.draw_odd_images(tmp_path / "images")["truncated"]
    with pytest.raises(SystemExit, match=str(odd)):
        embed.main(
            ["--run", str(run), "--images", str(odd.parent), "--output", str(tmp_path / f"out{suffix}"), "--strict"]
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "images"]


@FORMATS
def test_images_that_cannot_be_read_are_left_out_and_listed(run, suffix, tmp_path, capsys):
    images, output = tmp_path / "images", tmp_path / f"out{suffix}"
    trees.draw_folder(images, classes=3, images_per_class=4)
    embed.main(["--run", str(run), "--images", str(images), "--output", str(output)])
    whole, names = vectors_of(output), paths(output)
    bad = [2, 3, 9]
    for row in bad:
        pathlib.Path(names[row]).write_bytes(b"no image")
    capsys.readouterr()
    embed.main(["--run", str(run), "--images", str(images), "--output", str(output)])
    left_out = tmp_path / f"out{suffix}.left_out.txt"
    told = f"3 images cannot be read and are left out: {left_out}\n"
    assert capsys.readouterr() == (f"{output}: 9 embeddings of 8 dimensions\n", told)
    assert [line.split(":")[0] for line in left_out.read_text().splitlines()] == [names[row] for row in bad]
    assert paths(output) == [name for row, name in enumerate(names) if row not in bad]
    np.testing.assert_array_equal(vectors_of(output), np.delete(whole, bad, 0))


def test_nothing_is_written_if_no_image_can_be_read(run, tmp_path):
    trees.write(tmp_path / "images/a.jpg", b"no image")
    with pytest.raises(SystemExit, match=r"none of the 1 images can be read. The first: .*a\.jpg"):
        embed.main(["--run", str(run), "--images", str(tmp_path / "images"), "--output", str(tmp_path / "out.npz")])
    assert list(tmp_path.iterdir()) == [tmp_path / "images"]


def test_ctrl_c_keeps_the_file_that_was_there(run, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.parquet"
    output.write_text("before")
    monkeypatch.setattr(progress.Progress, "advance", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match="130"):
        embed.main(["--run", str(run), "--split", "train", "--output", str(output)])
    assert capsys.readouterr() == ("", f"stopped; nothing was written to {output}\n")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_an_output_without_a_place_is_refused_before_the_work(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for output, told in (
        ("out.csv", "ends in '.csv'; embedding files end in .npz or .parquet"),
        ("nowhere/out.npz", "there is no folder"),
        ("folder.npz", "it is a folder"),
    ):
        with pytest.raises(SystemExit, match=told):
            embed.main(["--run", "no run", "--split", "test", "--output", str(tmp_path / output)])


def test_a_data_set_without_a_gallery_says_so(run, tmp_path):
    with pytest.raises(SystemExit, match=r"'folder' has no gallery: its test images search each other\. Use --split"):
        embed.main(["--run", str(run), "--split", "gallery", "--output", str(tmp_path / "out.npz")])


def test_folders_that_hold_no_images(run, tmp_path):
    for folder, told in (
        (tmp_path, r"holds no images, that is files ending in \.bmp"),
        (tmp_path / "x", "not a folder"),
    ):
        with pytest.raises(SystemExit, match=told):
            embed.main(["--run", str(run), "--images", str(folder), "--output", str(tmp_path / "out.npz")])


@FORMATS
def test_memory_does_not_grow_with_the_file(suffix, tmp_path, monkeypatch):
    """Of sixty batches, no more are alive at a time than fill a row group."""
    monkeypatch.setattr(embedding_files, "ROW_GROUP", 5 * BATCH)
    vectors = np.random.default_rng(0).standard_normal((60 * BATCH - 3, DIM)).astype(np.float32)
    alive, most = weakref.WeakValueDictionary(), 0

    def batches():
        nonlocal most
        for start in range(0, len(vectors), BATCH):
            batch = vectors[start : start + BATCH].copy()
            alive[start] = batch
            most = max(most, len(alive))
            yield batch

    labels = np.arange(len(vectors))
    names = [f"{label}.jpg" for label in labels]
    path = tmp_path / f"out{suffix}"
    write_embeddings(path, batches(), Contents(names, labels, DIM, {}))
    assert most <= 5
    np.testing.assert_array_equal(read_embeddings(path)[0], vectors)
    np.testing.assert_array_equal(read_embeddings(path)[1], labels)
    assert paths(path) == names
    if suffix == ".parquet":
        assert pq.read_metadata(path).num_row_groups == 12


@FORMATS
def test_processes_share_the_images(run, tmp_path, suffix, capsys):
    folder = tmp_path / "images"
    trees.draw_folder(folder, classes=3, images_per_class=3)
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"shared{suffix}"
    options = ["--run", str(run), "--images", str(folder)]
    embed.main([*options, "--output", str(whole)])
    parts = [tmp_path / f"shared-{number:05d}-of-00002{suffix}" for number in range(2)]
    for number in range(2):
        shared = ["--distributed", "--num_processes=2", f"--process_id={number}"]
        embed.main([*options, "--output", str(output), *shared])
    assert sorted(paths(parts[0]) + paths(parts[1])) == paths(whole)
    assert not set(paths(parts[0])) & set(paths(parts[1]))
    assert not output.exists()
    written = parts[0].stat().st_mtime_ns
    embed.main([*options, "--output", str(output), "--distributed", "--num_processes=2", "--process_id=0"])
    assert "is there already, from the same network and folder" in capsys.readouterr().out
    assert parts[0].stat().st_mtime_ns == written
    embed.main([*options, "--output", str(output), "--distributed", "--num_processes=1000", "--process_id=0"])
    assert "no image is in the share of this process" in capsys.readouterr().out

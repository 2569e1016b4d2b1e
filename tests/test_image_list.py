"""A run's list of its images: it goes on, and is scored, only with the images that it was made from."""

import json
import pathlib

import numpy as np
import pytest
import trees

from proxynca_jax import embed, evaluate, train
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.inspection import inspect_dataset
from proxynca_jax.errors import UserError
from proxynca_jax.runs.folder import read_config
from proxynca_jax.runs.image_list import (
    LEFT_OUT,
    NAME,
    ListedImage,
    list_images,
    read_list,
    require_same_images,
    write_list,
)


def config_of(root: pathlib.Path, epochs: int = 0, **data) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            dataset="folder",
            root=str(root / "images"),
            eval_classes_file=str(root / "eval.txt"),
            image_size=32,
            resize_size=32,
            threads=2,
            **data,
        ),
        model=ModelConfig(backbone="tiny"),
        optim=OptimConfig(epochs=epochs, batch_size=4, learning_rate=1e-3, proxy_learning_rate=0.01, epsilon=0.1),
        evaluation=EvaluationConfig(batch_size=16, recall_at=(1,), nmi=False),
    )


def draw(root: pathlib.Path) -> pathlib.Path:
    trees.draw_folder(root / "images", classes=4, images_per_class=4)
    (root / "eval.txt").write_text("class_02\nclass_03\n")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """A data set, and a run of no epoch on it. Nobody changes them."""
    root, run = draw(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("runs") / "run"
    train.train(config_of(root), run)
    return root, run


def change_classes(root: pathlib.Path) -> None:
    (root / "eval.txt").write_text("class_00\nclass_03\n")


def rename_class(root: pathlib.Path) -> None:
    (root / "images/class_00").rename(root / "images/class_09")


def replace_images(root: pathlib.Path) -> None:
    for path in (root / "images/class_02").glob("*.jpg"):
        path.write_bytes(trees.encode(0, trees.SIZE, np.random.default_rng(9)) + path.name.encode())


def change_images(root: pathlib.Path) -> None:
    (root / "images/class_03/0.jpg").rename(root / "images/class_03/9.png")
    (root / "images/class_03/1.PNG").unlink()


CHANGES = {
    change_classes: (
        "classes that were trained on and are for evaluation now (1): class_00",
        "classes that were for evaluation and are for training now (1): class_02",
    ),
    rename_class: (
        "new classes (1): class_09",
        "classes that are gone (1): class_00",
        "new images (4): class_09/0.jpg",
    ),
    replace_images: ("images with another content (2): class_02/0.jpg, class_02/2.jpg",),
    change_images: ("new images (1): class_03/9.png", "images that are gone (2): class_03/0.jpg, class_03/1.PNG"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_and_named(change, trained, tmp_path):
    root, run = draw(tmp_path), trained[1]
    change(root)
    config = config_of(root)
    dataset, _ = inspect_dataset(load_dataset(config.data), config.data)
    with pytest.raises(UserError, match="was made from other images than those of there now") as error:
        require_same_images(run, list_images(dataset.sides(), dataset), "there")
    for line in CHANGES[change]:
        assert f"\n  {line}" in str(error.value)


def test_a_run_goes_on_where_its_images_have_moved_and_not_with_others(tmp_path):
    root, run = draw(tmp_path / "a"), tmp_path / "run"
    train.train(config_of(root), run)
    listed = read_list(run)
    assert listed is not None
    assert len(listed) == 16
    assert listed[0][:3] == ("train", "class_00", "class_00/0.jpg")
    (tmp_path / "a/images").rename(tmp_path / "a/elsewhere")
    config = config_of(root, epochs=1)
    config.data.root = str(tmp_path / "a/elsewhere")
    train.train(config, run)
    assert [record["epoch"] for record in records(run)] == [-1, 0]

    replace_elsewhere = tmp_path / "a/elsewhere/class_00/0.jpg"
    replace_elsewhere.write_bytes(trees.encode(0, trees.SIZE, np.random.default_rng(9)))
    config.optim.epochs = 2
    with pytest.raises(UserError, match=r"images with another content \(1\): class_00/0\.jpg"):
        train.train(config, run)
    assert read_config(run).optim.epochs == 1  # what is refused leaves no trace


def records(run: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_scores_and_embeddings_are_of_the_runs_own_images(tmp_path, capsys):
    root, run = draw(tmp_path), tmp_path / "run"
    train.train(config_of(root), run)
    output = ["--output", str(tmp_path / "out.npz")]
    evaluate.main(["--run", str(run)])
    (root / "eval.txt").write_text("class_00\nclass_01\n")
    for command in (
        lambda: evaluate.main(["--run", str(run)]),
        lambda: embed.main(["--run", str(run), "--split", "test", *output]),
    ):
        with pytest.raises(SystemExit, match=r"trained on and are for evaluation now \(2\): class_00, class_01"):
            command()
    (root / "eval.txt").write_text("class_02\nclass_03\n")
    (root / "images/class_00/0.jpg").write_bytes(trees.encode(0, trees.SIZE, np.random.default_rng(9)))
    embed.main(["--run", str(run), "--split", "test", *output])  # needs no training image
    with pytest.raises(SystemExit, match=r"another content \(1\): class_00/0\.jpg"):
        embed.main(["--run", str(run), "--split", "train", *output])
    capsys.readouterr()
    (run / NAME).unlink()
    evaluate.main(["--run", str(run)])
    assert f"{run} has no list of its images" in capsys.readouterr().err
    (run / NAME).write_bytes(b"PAR1")
    with pytest.raises(SystemExit, match=rf"{NAME}, the list of the run's images, cannot be read"):
        evaluate.main(["--run", str(run)])


def test_left_out_images_are_counted_and_listed(tmp_path, capsys):
    root, run = draw(tmp_path), tmp_path / "run"
    bad = [root / "images" / name for name in ("class_00/1.PNG", "class_02/0.jpg")]
    for path in bad:
        path.write_bytes(b"")
    train.train(config_of(root, on_bad_image="skip"), run)
    assert f"2 images cannot be read and are left out: {run / LEFT_OUT}" in capsys.readouterr().out
    lines = (run / LEFT_OUT).read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == list(map(str, bad))
    assert [record["images_left_out"] for record in records(run)] == [2]
    evaluate.main(["--run", str(run)])
    listed = read_list(run)
    assert listed is not None
    assert len(listed) == 14


def test_another_order_is_another_training(tmp_path):
    images = [ListedImage("train", "a", str(number), f"digest {number}") for number in range(3)]
    write_list(tmp_path, images, {})
    require_same_images(tmp_path, images, "")
    renamed = [image._replace(path=f"b/{image.path}") for image in images]
    require_same_images(tmp_path, renamed, "")
    with pytest.raises(UserError, match="the images are the same, in another order"):
        require_same_images(tmp_path, images[::-1], "")

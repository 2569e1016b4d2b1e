"""Data sets that TensorFlow Datasets prepared, written and read here without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import load_dataset, tfds
from proxynca_jax.data.datasets.published import Counts
from proxynca_jax.data.split import Split
from proxynca_jax.errors import UserError

CLASSES, IMAGES_PER_CLASS = 6, 3


def load(root: Path) -> tuple[Split, Split]:
    """The training images and the evaluation images."""
    dataset = load_dataset(DataConfig(dataset="tfds", root=str(root)))
    return dataset.train, dataset.evaluation.queries


@pytest.mark.parametrize("dataset", tfds.PREPARED)
@pytest.mark.parametrize("root", ["version", "parent"])
def test_classes_are_divided_as_in_the_original(monkeypatch, tmp_path: Path, dataset: str, root: str):
    version = trees.draw_tfds(tmp_path, dataset, CLASSES, IMAGES_PER_CLASS)
    half = CLASSES // 2 * IMAGES_PER_CLASS
    monkeypatch.setitem(tfds.PREPARED, dataset, tfds.PREPARED[dataset]._replace(counts=Counts(half, half)))
    train, evaluation = load(version if root == "version" else version.parent)
    for split, first_class in (train, 0), (evaluation, CLASSES // 2):
        assert len(split.images) == len(split.names) == half
        assert split.labels.dtype == np.int32
        assert np.bincount(split.labels).tolist() == [IMAGES_PER_CLASS] * (CLASSES // 2)
        assert trees.classes_drawn(split.images, CLASSES) == (split.labels + first_class).tolist()
        assert split.class_names == tuple(str(first_class + label) for label in range(CLASSES // 2))
    assert len({*train.names, *evaluation.names}) == CLASSES * IMAGES_PER_CLASS


def test_published_split_of_sop_need_not_be_halves(tmp_path: Path):
    version = trees.draw_tfds(tmp_path, "stanford_online_products", classes=7)
    with pytest.warns(UserWarning, match="sop: found 12 training and 9 evaluation images"):
        train, evaluation = load(version)
    assert (len(train.class_names), len(evaluation.class_names)) == (4, 3)


def test_neither_tensorflow_nor_the_network_is_needed(tmp_path: Path):
    version = trees.draw_tfds(tmp_path)
    program = f"""
import socket, sys, warnings
def refuse(*_): raise AssertionError("the network was used")
socket.socket.connect = socket.getaddrinfo = refuse
warnings.simplefilter("ignore")
from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import load_dataset
dataset = load_dataset(DataConfig(dataset="tfds", root={str(version)!r}))
print(len(dataset.train.images[0]) > 0, len(dataset.evaluation.queries.images))
print("tensorflow_datasets" in sys.modules, "tensorflow" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["True", "6", "True", "False"]


def test_missing_package_names_the_extra(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'proxynca_jax\[tfds\]'"):
        load(tmp_path)


def test_without_array_record_the_error_says_what_to_do(monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(UserError, match=r"data\.dataset is 'tfds', which needs the package array-record.*Windows"):
        load(tmp_path)


def break_format(version: Path) -> None:
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def break_name(version: Path) -> None:
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace('"cars196"', '"cars195"'))


def break_shard(version: Path) -> None:
    (version / "cars196-test.array_record-00000-of-00001").unlink()


def add_version(version: Path) -> None:
    trees.write(version.parent / "2.0.0/dataset_info.json", b"{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_format, r"prepared as tfrecord; required is array_record.*--file_format=array_record"),
        (break_name, r"'cars195', which is not supported: did you mean 'cars196'\?"),
        (break_shard, r"1 of 2 files are missing, the first is .*cars196-test\.array_record-00000-of-00001"),
        (add_version, r"several versions.*cars196/1\.0\.0, .*cars196/2\.0\.0"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, damage, message: str):
    version = trees.draw_tfds(tmp_path)
    damage(version)
    with pytest.raises(UserError, match=message):
        load(version.parent)

"""Images read before a run: what is damaged is named or left out, and no image is on both sides of a split."""

import dataclasses
import os
import pathlib
import shutil
import time

import numpy as np
import pytest
import trees
from PIL import Image

from proxynca_jax.config import DataConfig
from proxynca_jax.data import inspection
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.inspection import digests, inspect_dataset, inspect_splits
from proxynca_jax.data.split import DataSet
from proxynca_jax.errors import UserError


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    trees.draw_folder(tmp_path / "images", classes=4, images_per_class=4)
    return tmp_path / "images"


def config_of(root: pathlib.Path, **fields) -> DataConfig:
    return DataConfig(dataset="folder", root=str(root), threads=2, **fields)


def inspect(root: pathlib.Path, **fields) -> tuple[DataSet, dict[str, str]]:
    config = config_of(root, **fields)
    return inspect_dataset(load_dataset(config), config)


def damage(root: pathlib.Path) -> dict[str, str]:
    """Damages an image of each class, and returns what is said of them by path."""
    empty, cut, text, deep = (root / f"class_{label:02d}/{label}.jpg" for label in range(4))
    empty.write_bytes(b"")
    cut.write_bytes(trees.encode(1, trees.SIZE, np.random.default_rng(0))[:500])
    text.write_text("no image")
    Image.fromarray(np.ones((8, 8), np.float32)).save(deep, "TIFF")
    return dict(zip(map(str, (empty, cut, text, deep)), ("0 bytes", "Truncated", "no image", "'F'"), strict=True))


def test_all_damaged_files_are_named_before_a_run(root):
    faults = damage(root)
    with pytest.raises(UserError, match=r"4 of 18 images cannot be used:") as error:
        inspect(root)
    for path, told in faults.items():
        (line,) = (line for line in str(error.value).splitlines() if path in line)
        assert told in line
    assert "--config.data.on_bad_image=skip" in str(error.value)


def test_damaged_files_are_left_out_when_told_to(root):
    whole = [name for split in load_dataset(config_of(root)).sides().values() for name in split.names]
    faults = damage(root)
    dataset, left_out = inspect(root, on_bad_image="skip")
    assert left_out.keys() == faults.keys()
    kept = [name for split in dataset.sides().values() for name in split.names]
    assert sorted(kept) == sorted(set(whole) - faults.keys())
    for split in dataset.sides().values():
        assert len(split.images) == len(split.labels) == len(split.digests or ()) == len(split.names)
        assert [split.class_names[label] for label in split.labels] == [
            pathlib.Path(x).parent.name for x in split.names
        ]


def test_a_class_of_damaged_images_alone_is_an_error(root):
    for path in (root / "class_02").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of 1 classes can be read, the first is 'class_02'"):
        inspect(root, on_bad_image="skip")


def test_what_replaces_an_image_after_it_is_listed_does_not_hang(root):
    config = config_of(root)
    dataset = load_dataset(config)
    pipe, gone = (pathlib.Path(name) for name in dataset.train.names[:2])
    pipe.unlink()
    gone.unlink()
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"(?s)is not a regular file.*cannot be read: No such file"):
        inspect_splits(dataset.sides(), config)


@pytest.mark.parametrize("copy", [shutil.copy, lambda ours, theirs: theirs.symlink_to(ours)])
def test_an_image_on_both_sides_is_named_with_both_names(root, copy):
    dataset = load_dataset(config_of(root))
    ours, beside = dataset.train.names[0], dataset.evaluation.queries.names[0]
    theirs = pathlib.Path(beside).with_name("copy.jpg")
    copy(pathlib.Path(ours), theirs)
    with pytest.raises(UserError, match="1 images are for training and for evaluation") as error:
        inspect(root)
    assert f"{ours} is the same as {theirs}" in str(error.value)


def test_equal_images_of_a_published_split_are_warned_of(root):
    dataset, _ = inspect(root)
    train, (queries,) = dataset.train, dataset.evaluation.splits()
    twin = dataclasses.replace(queries, digests=[*train.digests[:1], *queries.digests[1:]])
    with pytest.warns(UserWarning, match=f"{train.names[0]} is the same as {queries.names[0]}"):
        inspection.require_apart(train, [twin], published=True)


def test_files_that_stay_the_same_are_not_read_again(root, monkeypatch):
    config, reads = config_of(root), []
    read = inspection.read_image
    monkeypatch.setattr(inspection, "read_image", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(inspection, "SETTLED_SECONDS", -3600)  # as if the files were an hour old
    split = load_dataset(config).train
    first = digests(split, config)
    assert len(reads) == len(split.names)
    assert digests(split, config) == first
    assert len(reads) == len(split.names)
    path = pathlib.Path(split.names[2])
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-2] + b"??")  # of the same size, and then of the same age
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = digests(split, config)
    assert reads[len(split.names) :] == [path]
    assert [row for row in range(len(first)) if first[row] != again[row]] == [2]


def test_files_of_this_moment_are_not_remembered(root):
    """Another write within the same tick of the clock would leave their times the same."""
    config = config_of(root)
    split = load_dataset(config).train
    path = pathlib.Path(split.names[2])
    path.write_bytes(path.read_bytes())
    assert time.time() - path.stat().st_ctime < inspection.SETTLED_SECONDS
    digests(split, config)
    memory = inspection._memory([split])
    assert memory is None or str(path) not in inspection._recall(memory)


def test_a_damaged_memory_is_no_error(root, monkeypatch):
    config = config_of(root)
    monkeypatch.setattr(inspection, "SETTLED_SECONDS", -3600)
    split = load_dataset(config).train
    first = digests(split, config)
    memory = inspection._memory([split])
    assert memory is not None
    memory.write_bytes(memory.read_bytes()[:100])
    assert digests(split, config) == first


def test_boxes_of_one_image_have_digests_of_their_own(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    rows = "\n".join(f"0.png,{'ab'[row // 2]},{row},0,8,8" for row in range(4))
    (tmp_path / "t.csv").write_text(f"path,label,x,y,w,h\n{rows}\n0.png,c,9,0,8,8\n0.png,d,10,0,8,8\n")
    config = DataConfig(dataset="table", root=str(tmp_path / "t.csv"))
    dataset, _ = inspect_dataset(load_dataset(config), config)
    found = [digest for split in dataset.sides().values() for digest in split.digests or ()]
    assert len(set(found)) == len(found) == 6

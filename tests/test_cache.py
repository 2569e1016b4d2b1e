"""The cache of decoded images: the same pixels, its own file for all that they depend on, whole or not at all."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import trees
from PIL import Image

from proxynca_jax.config import DataConfig
from proxynca_jax.data import cache
from proxynca_jax.data.cache import cached, cached_crops
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.pipeline import evaluation_batches, training_batches
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import decode
from proxynca_jax.errors import UserError
from proxynca_jax.machine.interrupt import Interrupted

SIDE = 40  # pixels, less than the longer side of the tree's images


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    trees.draw_folder(root, classes=4, images_per_class=5)
    return root


@pytest.fixture
def config(root, tmp_path) -> DataConfig:
    return DataConfig(dataset="folder", root=str(root), image_size=32, cache=str(tmp_path / "cache"), threads=2)


@pytest.fixture
def split(config) -> Split:
    return load_dataset(config).train


def files(config: DataConfig) -> list[str]:
    return sorted(path.name for path in pathlib.Path(config.cache).iterdir())


def read_all(split: Split, config: DataConfig) -> list[np.ndarray]:
    images = cached(split, config, max_side=0).images
    return [images[row] for row in range(len(images))]


def refuse(*_, **__):
    pytest.fail("decoded although the cache was there")


@pytest.mark.parametrize("max_side", [0, SIDE])
def test_training_is_the_same_to_the_last_bit(split, config, max_side, monkeypatch):
    config.max_side = max_side
    options = {"batch_size": 4, "seed": 0, "epoch": 0}
    plain = list(training_batches(split, config, **options))
    cached(split, config, max_side=max_side)
    monkeypatch.setattr(cache, "whole_images", refuse)
    from_cache = cached(split, config, max_side=max_side)
    for ours, theirs in zip(training_batches(from_cache, config, **options), plain, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"], strict=True)
        np.testing.assert_array_equal(ours["label"], theirs["label"], strict=True)
    longest = max(max(from_cache.images[row].shape) for row in range(10))
    assert longest == (max_side or max(trees.SIZE))


def test_other_images_and_another_side_have_files_of_their_own(split, config):
    evaluation = load_dataset(config).evaluation.queries
    for images, max_side in (split, 0), (split, SIDE), (evaluation, 0), (split, 0):
        found = cached(images, config, max_side=max_side).images
        assert len(found) == len(images.labels)
        if not max_side:
            np.testing.assert_array_equal(found[3], decode(images.images[3], "3"))
    fewer = dataclasses.replace(split, names=split.names[:5], labels=split.labels[:5])
    assert len(cached(fewer, config, max_side=0).images) == 5
    assert len(files(config)) == 4


def test_evaluation_crops_are_the_same_to_the_last_bit(split, config, monkeypatch):
    config.resize_size = 40
    plain = list(evaluation_batches(split, config, batch_size=4))
    cached_crops(split, config)
    monkeypatch.setattr(cache, "evaluation_crops", refuse)
    from_cache = cached_crops(split, config)
    for ours, theirs in zip(evaluation_batches(from_cache, config, batch_size=4), plain, strict=True):
        for name in "image", "label", "mask":
            np.testing.assert_array_equal(ours[name], theirs[name], strict=True)


def test_crops_made_otherwise_have_files_of_their_own(split, config):
    for resize_size, image_size in (40, 32), (41, 32), (41, 33), (40, 32):
        config.resize_size, config.image_size = resize_size, image_size
        assert cached_crops(split, config).images[3].shape == (image_size, image_size, 3)
    centred = cached_crops(split, config).images[3]
    config.squash = True
    assert not np.array_equal(cached_crops(split, config).images[3], centred)
    cached(split, config, max_side=0)
    assert len(files(config)) == 5


def reopen_and_read(images: Sequence, identity: bytes) -> None:
    """Not in a Split, whose type check would read one at random."""
    again = type(images)(images.path, len(images), identity)
    for row in range(len(images)):
        again[row]


def test_a_damaged_file_is_the_users_error(split, config):
    images = cached(split, config, max_side=0).images
    path = images.path
    content, identity = path.read_bytes(), images.records[len(images)]
    damages = {
        "cannot be used": content[: len(content) // 2],
        "mismatch": content[:80_000] + bytes(8) + content[80_008:],
    }
    for fault, damaged in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"cache file .*{path.name}.*{fault}.*Delete it"):
            reopen_and_read(images, identity)


def test_a_file_of_other_images_under_its_name_is_the_users_error(split, config):
    path = cached(split, config, max_side=0).images.path
    fewer = dataclasses.replace(split, names=split.names[:1], labels=split.labels[:1])
    cached(fewer, config, max_side=0).images.path.replace(path)
    with pytest.raises(UserError, match=r"it contains 1 images, required are 10"):
        cached(split, config, max_side=0)


def test_another_file_of_as_many_images_is_the_users_error(split, config):
    paths = [cached(split, config, max_side=side).images.path for side in (0, SIDE)]
    paths[1].replace(paths[0])
    with pytest.raises(UserError, match="it was made from other images"):
        cached(split, config, max_side=0)


def test_images_replaced_under_their_names_are_noticed_and_moved_ones_are_found(config, tmp_path):
    trees.draw_folder(tmp_path / "a", classes=4, images_per_class=5)
    config.root = str(tmp_path / "a")
    before = read_all(load_dataset(config).train, config)
    path = pathlib.Path(load_dataset(config).train.names[3])
    times = path.stat()
    pixels = before[3][::-1]
    Image.fromarray(pixels).save(path, "PNG")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))  # older than the image that it replaces
    np.testing.assert_array_equal(read_all(load_dataset(config).train, config)[3], pixels)
    assert len(files(config)) == 2
    (tmp_path / "a").rename(tmp_path / "b")
    config.root = str(tmp_path / "b")
    np.testing.assert_array_equal(read_all(load_dataset(config).train, config)[3], pixels)
    assert len(files(config)) == 2


def test_what_is_interrupted_or_fails_leaves_nothing(split, config):
    def stop():
        raise Interrupted

    with pytest.raises(Interrupted):
        cached(split, config, max_side=0, check=stop)
    assert files(config) == []
    with pytest.raises(UserError, match="cannot decode"):
        cached(dataclasses.replace(split, images=[b"no image"] * 10), config, max_side=0)
    assert files(config) == []


def test_a_folder_that_cannot_be_made_is_the_users_error(split, config, tmp_path):
    (tmp_path / "file").write_text("")
    config.cache = str(tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"data\.cache is .*cannot be made"):
        cached(split, config, max_side=0)

"""Batches: the same whatever the threads, resumable, complete; and nothing left behind when they end early."""

import dataclasses
import io
import threading
import time
from collections.abc import Generator, Sequence

import jax
import numpy as np
import PIL.Image
import pytest

from proxynca_jax.config import DataConfig
from proxynca_jax.data.order import steps_per_epoch
from proxynca_jax.data.pipeline import (
    Batch,
    evaluation_batches,
    prefetch_to_device,
    training_batches,
)
from proxynca_jax.data.split import Split
from proxynca_jax.errors import UserError

CONFIG = DataConfig(image_size=32, resize_size=32, threads=3)


class Recorder(Sequence):
    """A sequence that remembers which of its items were read."""

    def __init__(self, items: Sequence):
        self.items = items
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        self.read.add(index)
        return self.items[index]


def make_split(images: Sequence) -> Split:
    """A split whose labels are the positions of its images."""
    count = len(images)
    return Split(
        images=images,
        names=[f"{index}.png" for index in range(count)],
        labels=np.arange(count, dtype=np.int32),
        class_names=tuple(f"class {index}" for index in range(count)),
    )


def noise(count: int, size: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))


@pytest.fixture(scope="module")
def split() -> Split:
    """Eleven images, as PNG files."""
    files = [io.BytesIO() for _ in range(11)]
    for file, pixels in zip(files, noise(11), strict=True):
        PIL.Image.fromarray(pixels).save(file, "PNG")
    return make_split([file.getvalue() for file in files])


def epoch(split: Split, config: DataConfig = CONFIG, **options) -> list[Batch]:
    return list(training_batches(split, config, **{"batch_size": 4, "seed": 0, "epoch": 0, **options}))


def assert_same(batches: list[Batch], others: list[Batch]):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


def labels(batches: list[Batch]) -> list[int]:
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("grain")]


def assert_decoding_threads_end():
    deadline = time.monotonic() + 10  # seconds; each thread may finish the image that it is at
    while decoding_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not decoding_threads()


def test_epoch_visits_each_image_once_and_drops_the_partial_batch(split):
    batches = epoch(split)
    assert len(batches) == steps_per_epoch(11, 4) == 2
    for batch in batches:
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "image": ((4, 32, 32, 3), np.uint8),
            "label": ((4,), np.int32),
        }
    assert len(set(labels(batches))) == 8


def test_training_image_stays_with_its_label(split):
    whole = dataclasses.replace(CONFIG, crop_area_min=1.0, crop_aspect_max=1.0, horizontal_flip=False)
    pixels = noise(11)
    for batch in epoch(split, whole):
        np.testing.assert_array_equal(batch["image"], np.stack([pixels[label] for label in batch["label"]]))


def test_order_is_new_for_each_epoch_and_seed(split):
    runs = [(seed, number) for seed in range(3) for number in range(3)]
    orders = {tuple(labels(epoch(split, seed=seed, epoch=number))) for seed, number in runs}
    assert len(orders) == len(runs)


def test_crops_are_new_for_each_image_epoch_and_seed():
    one_image_eight_times = make_split(noise(1) * 8)
    runs = [epoch(one_image_eight_times, seed=seed, epoch=number) for seed in range(2) for number in range(2)]
    images = np.concatenate([batch["image"] for batches in runs for batch in batches])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 4 * 8


def test_batches_do_not_depend_on_the_threads(split):
    assert_same(
        epoch(split, dataclasses.replace(CONFIG, threads=1)), epoch(split, dataclasses.replace(CONFIG, threads=5))
    )


def test_epoch_resumes_with_the_same_batches_and_decodes_no_others(split):
    uninterrupted = epoch(split, batch_size=3)
    due = set(labels(uninterrupted[1:]))
    images = [image if index in due else b"not to be decoded" for index, image in enumerate(split.images)]
    resumed = epoch(dataclasses.replace(split, images=images), batch_size=3, start_step=1)
    assert_same(resumed, uninterrupted[1:])
    assert epoch(split, batch_size=3, start_step=3) == []


def test_fewer_images_than_a_batch_is_the_users_error(split):
    with pytest.raises(UserError, match=r"11 training images do not fill one batch of 12.*batch_size to 11"):
        training_batches(split, CONFIG, batch_size=12, seed=0, epoch=0)


def test_evaluation_keeps_the_order_and_fills_up_the_last_batch(split):
    batches = list(evaluation_batches(split, CONFIG, batch_size=4))
    assert [batch["image"].shape for batch in batches] == [(4, 32, 32, 3)] * 3
    assert labels(batches) == [*range(11), -1]
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(mask, np.arange(12) < 11, strict=True)
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images, np.stack([*noise(11), np.zeros((32, 32, 3), np.uint8)]), strict=True)
    assert {batch["label"].dtype for batch in batches} == {np.dtype(np.int32)}


def test_evaluation_of_whole_batches_has_no_padding(split):
    batches = list(evaluation_batches(split, CONFIG, batch_size=11))
    assert len(batches) == 1
    assert batches[0]["mask"].all()


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_the_shares_of_processes_make_up_the_batches(kind):
    def load(**share) -> tuple[list[Batch], set[int]]:
        images = Recorder(noise(11))
        split = make_split(images)
        images.read.clear()  # type checks have looked at some
        if kind == "training":
            options = {"batch_size": 4, "seed": 0, "epoch": 2, "start_step": 1}
            return list(training_batches(split, CONFIG, **options, **share)), images.read
        return list(evaluation_batches(split, CONFIG, batch_size=4, **share)), images.read

    whole, read = load()
    shares, shares_read = zip(*(load(share=(process, 2)) for process in range(2)), strict=True)
    assert len(whole) == (1 if kind == "training" else 3)
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows, strict=True)
    assert shares_read[0] | shares_read[1] == read
    assert not shares_read[0] & shares_read[1]


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_damaged_image_is_the_users_error_and_ends_the_threads(kind, split):
    images = list(split.images)
    images[5] = images[5][:-60]
    damaged = dataclasses.replace(split, images=images)
    if kind == "training":
        batches = training_batches(damaged, CONFIG, batch_size=11, seed=0, epoch=0)
    else:
        batches = evaluation_batches(damaged, CONFIG, batch_size=4)
    with pytest.raises(UserError, match=r"^5\.png: cannot decode"):
        list(batches)
    assert_decoding_threads_end()


def test_closing_early_ends_the_threads_and_few_images_were_read_ahead():
    images = Recorder(noise(4000))
    batches = prefetch_to_device(training_batches(make_split(images), CONFIG, batch_size=4, seed=0, epoch=0))
    next(batches)
    assert decoding_threads()
    batches.close()
    assert_decoding_threads_end()
    assert len(images.read) < 100


@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_prefetch_keeps_the_next_batches_on_the_device(size):
    made: list[int] = []

    def source() -> Generator[Batch, None, None]:
        for number in range(5):
            made.append(number)
            yield {"label": np.full(3, number, np.int32)}

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    received = []
    for batch in prefetch_to_device(source(), size, sharding):
        assert batch["label"].sharding == sharding
        received.append(batch["label"].tolist())
        assert len(made) == min(len(received) + size, 5)
    assert received == [[number] * 3 for number in range(5)]

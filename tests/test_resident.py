"""Crops made on the device beside Pillow's, and images that are put there or do not fit."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from proxynca_jax.config import DataConfig
from proxynca_jax.data import resident
from proxynca_jax.data.pipeline import crop_batches, training_batches
from proxynca_jax.data.resident import crops, upload
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import Box, crop_and_resize, draw_crop
from proxynca_jax.errors import UserError
from proxynca_jax.sharding import Layout

GOLDEN = np.load(Path(__file__).parent / "golden/golden_pixels.npz")
MEAN_LEVELS = 0.05  # mean distance from Pillow, of 255: where the true value lies half-way between two levels
CONFIG = DataConfig(image_size=64, threads=2)


def make_split(images: list[np.ndarray]) -> Split:
    names = [f"image {row}" for row in range(len(images))]
    return Split(images=images, names=names, labels=np.arange(len(images), dtype=np.int32), class_names=tuple(names))


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    """The images that the golden pixels were made from."""
    china, flower = load_sample_images().images
    slices = {"tall": china[:, 100:260], "small": flower[50:150, 50:140], "wide": flower[180:240]}
    return {"china": china, "flower": flower, **slices}


def on_device(images: list[np.ndarray], rows: list[int], boxes: list[Box], mirror: list[bool], size: int) -> np.ndarray:
    pixels, _ = upload(make_split(images), CONFIG, Layout())
    batch = {"row": np.int32(rows), "box": np.int32(boxes), "mirror": np.array(mirror)}
    return np.asarray(jax.jit(crops, static_argnames="size")(batch | {"pixels": pixels}, size=size))


def assert_like_pillow(ours: np.ndarray, pillow: np.ndarray):
    distance = np.abs(ours.astype(int) - pillow)
    assert distance.max() <= 1
    assert distance.mean() < MEAN_LEVELS


def test_crops_are_the_references(photographs):
    keys = [key.split("/")[1:] for key in GOLDEN.files if key.startswith("crop/")]
    names = list(photographs)
    boxes = [Box(*map(int, box.split("_"))) for _, _, box, _ in keys]
    rows, mirror = [names.index(name) for _, name, _, _ in keys], [kind == "flip" for *_, kind in keys]
    ours = on_device(list(photographs.values()), rows, boxes, mirror, 227)
    for key, pixels in zip(keys, ours, strict=True):
        assert_like_pillow(pixels, GOLDEN["/".join(["crop", *key])][..., ::-1])


def test_crops_are_pillows_at_any_scale():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (90, 130, 3), np.uint8)  # no two neighbours alike: the hardest to resize
    boxes = [Box(0, 0, 90, 130), Box(89, 129, 1, 1), Box(7, 11, 1, 100), Box(3, 5, 32, 32), Box(10, 20, 31, 33)]
    boxes += [draw_crop(90, 130, CONFIG, rng)[0] for _ in range(40)]
    mirror = [number % 2 == 1 for number in range(len(boxes))]
    ours = on_device([noise], [0] * len(boxes), boxes, mirror, 32)
    pillow = [crop_and_resize(noise, box, 32)[:, :: -1 if flip else 1] for box, flip in zip(boxes, mirror, strict=True)]
    assert_like_pillow(ours, np.stack(pillow))


@pytest.mark.parametrize("max_side", [0, 100])
def test_both_placements_train_on_the_same_crops(photographs, max_side):
    split = make_split(list(photographs.values()) * 8)
    config = dataclasses.replace(CONFIG, max_side=max_side)
    pixels, sizes = upload(split, config, Layout())
    options = {"batch_size": 16, "seed": 3, "epoch": 1, "start_step": 1}
    assert pixels.shape[1:] == ((100, 100, 3) if max_side else (427, 640, 3))
    told_batches, batches = crop_batches(split, sizes, config, **options), training_batches(split, config, **options)
    for told, made in zip(told_batches, batches, strict=True):
        np.testing.assert_array_equal(told["label"], made["label"], strict=True)
        assert_like_pillow(np.asarray(crops(jax.device_put(told | {"pixels": pixels}), size=64)), made["image"])


def test_images_that_do_not_fit_are_refused_before_any_is_decoded(monkeypatch, photographs):
    monkeypatch.setattr(resident, "_free_bytes", lambda: 40_000_000)
    decoded = []
    monkeypatch.setattr(resident, "whole_images", lambda *_, **__: decoded.append(1))
    # 64 places of 427 × 640 × 3 bytes are 52 MB, of 395 × 395 × 3 a little less than three quarters of 40 MB.
    split = make_split([photographs["china"]] * 40)
    with pytest.raises(UserError, match=r"427 × 640 pixels, need 0\.05 GB; 0\.03 GB.*max_side to 395 or"):
        upload(split, CONFIG, Layout())
    assert not decoded


def test_the_side_that_the_error_names_fits(monkeypatch, photographs):
    monkeypatch.setattr(resident, "_free_bytes", lambda: 40_000_000)
    pixels, sizes = upload(make_split([photographs["china"]] * 40), dataclasses.replace(CONFIG, max_side=395), Layout())
    assert pixels.nbytes <= 0.75 * 40_000_000
    assert sizes.tolist() == [[264, 395]] * 40


@pytest.mark.parametrize(("device", "free"), [(300, 300), (0, 0), (None, 1000)])
def test_a_device_without_memory_of_its_own_has_the_hosts(monkeypatch, device, free):
    monkeypatch.setattr(resident, "free_on_device", lambda: device)
    monkeypatch.setattr(resident, "free_on_host", lambda: 1000)
    assert resident._free_bytes() == free

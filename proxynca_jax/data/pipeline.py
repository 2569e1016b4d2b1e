"""Loads batches with threads: shuffled, augmented batches for training and padded batches in order for evaluation.

The threads belong to this process. Decoders release the interpreter's lock while they work, and nothing has to be
copied between processes. `order` decides which image comes when.
"""

import collections
import contextlib
import functools
import math
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int

from proxynca_jax.config import DataConfig
from proxynca_jax.data.order import WHOLE, padded, place_in_epoch, share_of_rows, shuffled_epoch
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import Pixels, draw_crop, eval_transform, load_image, shrink, train_transform

Example = dict[str, np.ndarray | np.generic]
Batch = dict[str, np.ndarray]
NO_LABEL = -1  # the label of padding rows
PART = 4  # images per hand-over from a loading thread; handing over four costs no more than one


def training_batches(
    split: Split,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    share: tuple[int, int] = WHOLE,
) -> Generator[Batch, None, None]:
    """Loads one epoch of training batches. Each epoch has its own order and its own crops.

    A batch depends on `seed`, `epoch` and its step. It does not depend on `config.threads` or `start_step`.

    Args:
        split: The training images.
        config: How images become pixels, and the number of threads.
        batch_size: B, images per batch; a last partial batch is dropped.
        seed: The run's seed, at least 0.
        epoch: At least 0.
        start_step: The first step to yield; images of earlier steps are not decoded.
        share: This process's number, from 0, and the number of processes, which divides `batch_size`. Each process
            loads its share of the rows of every batch and no other images.

    Returns:
        Batches of `image` uint8 RGB (B, H, W, 3) and `label` int32 (B,). Close the generator to stop early.

    Raises:
        UserError: If there are fewer images than `batch_size`; while iterating, if an image cannot be decoded.
    """

    def load(index: int, rng: np.random.Generator) -> Example:
        image = shrink(load_image(split, index), config.max_side)
        return {"image": train_transform(image, config, rng), "label": split.labels[index]}

    images = len(split.labels)
    examples = shuffled_epoch(load, images=images, batch_size=batch_size, seed=seed, epoch=epoch, start_step=start_step)
    return _batches(examples, batch_size, config, share)


def crop_batches(
    split: Split,
    sizes: Int[np.ndarray, "images 2"],
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    share: tuple[int, int] = WHOLE,
) -> Generator[Batch, None, None]:
    """Yields the same epoch as `training_batches`, as crop boxes instead of pixels.

    Args:
        split: The training images.
        sizes: Height and width of each image in pixels, after `transforms.shrink`.
        config: As for `training_batches`, like all arguments below.
        batch_size: B.
        seed: The run's seed.
        epoch: At least 0.
        start_step: The first step to yield.
        share: Which rows to yield.

    Returns:
        Batches of `row` int32 (B,), an image's index in the split, `box` int32 (B, 4), a `transforms.Box` in it,
        `mirror` bool (B,) and `label` int32 (B,). Close the generator to stop early.

    Raises:
        UserError: If there are fewer images than `batch_size`.
    """

    def draw(index: int, rng: np.random.Generator) -> Example:
        height, width = sizes[index].tolist()
        box, mirror = draw_crop(height, width, config, rng)
        row, label = np.int32(index), split.labels[index]
        return {"row": row, "box": np.array(box, np.int32), "mirror": np.bool_(mirror), "label": label}

    images = len(split.labels)
    examples = shuffled_epoch(draw, images=images, batch_size=batch_size, seed=seed, epoch=epoch, start_step=start_step)
    return _batches(examples, batch_size, config, share)


def evaluation_batches(
    split: Split, config: DataConfig, *, batch_size: int, share: tuple[int, int] = WHOLE
) -> Generator[Batch, None, None]:
    """Loads all images in order. The last batch is padded, so every batch has the same shape.

    Args:
        split: The images to embed.
        config: How images become pixels, and the number of threads.
        batch_size: B, images per batch.
        share: As for `training_batches`.

    Returns:
        Batches of `image` uint8 RGB (B, H, W, 3), `label` int32 (B,) and `mask` bool (B,). In padding rows the mask is
        false, the image is black and the label is NO_LABEL. Close the generator to stop early.

    Raises:
        UserError: While iterating, if an image cannot be decoded.
    """
    images = len(split.labels)
    padding: Example = {
        "image": np.zeros((config.image_size, config.image_size, 3), np.uint8),
        "label": np.int32(NO_LABEL),
        "mask": np.False_,
    }

    def load(index: int) -> Example:
        if index >= images:
            return padding
        return {"image": _evaluation_crop(split, config, index), "label": split.labels[index], "mask": np.True_}

    return _batches(grain.MapDataset.range(padded(images, batch_size)).map(load), batch_size, config, share)


def whole_images(split: Split, config: DataConfig, *, max_side: int) -> Generator[Pixels, None, None]:
    """Loads all images in order and shrinks them to a longer side of `max_side` pixels; 0 shrinks none.

    Raises:
        UserError: While iterating, if an image cannot be decoded.
    """

    def load(index: int) -> Pixels:
        return shrink(load_image(split, index), max_side)

    return _one_by_one(load, split, config)


def evaluation_crops(split: Split, config: DataConfig) -> Generator[Pixels, None, None]:
    """Loads the images of `evaluation_batches` one by one, without padding.

    Raises:
        UserError: While iterating, if an image cannot be decoded.
    """
    return _one_by_one(functools.partial(_evaluation_crop, split, config), split, config)


def _evaluation_crop(split: Split, config: DataConfig, index: int) -> Pixels:
    image = load_image(split, index)
    return image if split.cropped else eval_transform(image, config)


def _one_by_one(load: Callable[[int], Pixels], split: Split, config: DataConfig) -> Generator[Pixels, None, None]:
    """Calls `load` for each index of a split, in threads. Closing the generator ends them."""
    threads = decoding_threads(config)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    images = grain.MapDataset.range(len(split.labels)).map(load).to_iter_dataset(options)
    with contextlib.closing(iter(images)) as images:
        yield from images


def decoding_threads(config: DataConfig) -> int:
    """Returns the number of decoding threads."""
    return config.threads or os.cpu_count() or 1


def _batches(
    examples: grain.MapDataset, batch_size: int, config: DataConfig, share: tuple[int, int]
) -> Generator[Batch, None, None]:
    """Loads a share of each batch in threads and stacks it. Closing the generator ends the threads.

    Args:
        examples: The examples of all batches and all processes in order, each loaded when it is indexed.
        batch_size: B, over all processes.
        config: The number of threads.
        share: Which rows to load.
    """
    threads = decoding_threads(config)
    rows = share_of_rows(batch_size, share)
    part = math.gcd(rows, PART)

    def load_part(number: int) -> list[Any]:
        first = place_in_epoch(number * part, batch_size, share)
        return [examples[first + offset] for offset in range(part)]

    def stack(parts: Sequence[list[Any]]) -> Batch:
        loaded = [example for part in parts for example in part]
        return {name: np.stack([example[name] for example in loaded]) for name in loaded[0]}

    # Threads load parts of a batch, not batches. All of them work on the batch that is due next, so the first batch
    # comes soon and the last ones keep every thread busy. The buffer holds two full batches and one part per thread.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2 * rows // part)
    _, processes = share
    parts = grain.MapDataset.range(len(examples) // processes // part).map(load_part).to_iter_dataset(options)
    with contextlib.closing(iter(parts.batch(rows // part, batch_fn=stack))) as batches:
        yield from batches


def prefetch_to_device(
    batches: Generator[Batch, None, None], size: int = 2, sharding: jax.sharding.Sharding | None = None
) -> Generator[dict[str, jax.Array], None, None]:
    """Sends the next `size` batches to the device while the caller works on the current one.

    Args:
        batches: Batches in host memory. They are closed with this generator.
        size: How many batches to send ahead; each takes device memory.
        sharding: The devices and how rows are sharded over them; None: JAX's default device. With many processes, each
            passes its share of the rows, and all receive whole batches.

    Yields:
        The same batches in the same order, as device arrays.
    """

    def send(batch: Batch) -> dict[str, jax.Array]:
        if sharding is None:
            return jax.device_put(batch)
        return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}

    sent: collections.deque[dict[str, jax.Array]] = collections.deque()
    with contextlib.closing(batches):
        for batch in batches:
            sent.append(send(batch))  # returns at once, before the copy is done
            if len(sent) > size:
                yield sent.popleft()
        yield from sent

"""Splits to batches: a shuffled, augmented stream for training, padded batches in order for evaluation.

Images are decoded by threads of this process: the decoders release the interpreter's lock while they work, and nothing
has to be copied between processes.
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
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import Pixels, decode, draw_crop, eval_transform, shrink, train_transform
from proxynca_jax.errors import UserError

Example = dict[str, np.ndarray | np.generic]
Batch = dict[str, np.ndarray]
NO_LABEL = -1  # of the rows that only fill up a batch
ALL = (0, 1)  # the share of a process that loads every row
PART = 4  # images, at most, that a thread loads before it hands them over, which costs as much for one


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """How many whole batches a split holds.

    Raises:
        UserError: None, so that there would be nothing to train on.
    """
    images = len(split.labels)
    if images < batch_size:
        raise UserError(
            f"{images} training images do not fill one batch of {batch_size}, and only whole batches are trained on. "
            f"Set optim.batch_size to {images} or less, or train on more images."
        )
    return images // batch_size


def training_batches(
    split: Split,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    share: tuple[int, int] = ALL,
) -> Generator[Batch, None, None]:
    """One epoch of training, in an order and with crops of its own.

    The batches depend on `seed`, `epoch` and their step alone: not on `config.threads`, nor on `start_step`.

    Args:
        split: The training images.
        config: How they become pixels, and with how many threads.
        batch_size: B, images per batch; what is left over at the end is dropped.
        seed: Of the run, at least 0.
        epoch: At least 0.
        start_step: The first step to yield; the images before it are not decoded.
        share: This process's number, from 0, and that of all processes, which divides `batch_size`. It loads as large a
            part of every batch's rows, and no other images.

    Returns:
        Batches of `image` uint8 RGB (B, H, W, 3) and `label` int32 (B,). Close it to stop early.

    Raises:
        UserError: There are fewer images than `batch_size`; while iterating: an image cannot be decoded.
    """

    def load(index: int, rng: np.random.Generator) -> Example:
        image = shrink(decode(split.images[index], split.names[index]), config.max_side)
        return {"image": train_transform(image, config, rng), "label": split.labels[index]}

    return _epoch(load, split, config, batch_size, seed, epoch, start_step, share)


def crop_batches(
    split: Split,
    sizes: Int[np.ndarray, "images 2"],
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    share: tuple[int, int] = ALL,
) -> Generator[Batch, None, None]:
    """What `training_batches` gives for the same arguments, told instead of done: the same crops in the same order.

    Args:
        split: The training images.
        sizes: Height and width of each, in pixels, after `transforms.shrink`.
        config: As there.
        batch_size: As there.
        seed: As there.
        epoch: As there.
        start_step: As there.
        share: As there.

    Returns:
        Batches of `row` int32 (B,), an image's place in the split, `box` int32 (B, 4), a `transforms.Box` in it,
        `mirror` bool (B,) and `label` int32 (B,). Close it to stop early.

    Raises:
        UserError: There are fewer images than `batch_size`.
    """

    def draw(index: int, rng: np.random.Generator) -> Example:
        height, width = sizes[index].tolist()
        box, mirror = draw_crop(height, width, config, rng)
        row, label = np.int32(index), split.labels[index]
        return {"row": row, "box": np.array(box, np.int32), "mirror": np.bool_(mirror), "label": label}

    return _epoch(draw, split, config, batch_size, seed, epoch, start_step, share)


def _epoch(
    load: Callable[[int, np.random.Generator], Example],
    split: Split,
    config: DataConfig,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int,
    share: tuple[int, int],
) -> Generator[Batch, None, None]:
    """Batches of what `load` makes of an image's index and a generator of its own, shuffled."""
    stop = steps_per_epoch(split, batch_size) * batch_size
    # Not seed + epoch, with which the next seed's run would replay this one's epochs.
    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    # A slice keeps the positions that random_map seeds its generators by, so an epoch resumes with the same crops.
    examples = grain.MapDataset.range(len(split.labels)).seed(epoch_seed).shuffle().random_map(load)
    return _batches(examples[start_step * batch_size : stop], batch_size, config, share)


def evaluation_batches(
    split: Split, config: DataConfig, *, batch_size: int, share: tuple[int, int] = ALL
) -> Generator[Batch, None, None]:
    """All images in order, the last batch filled up so that every batch has the same shape.

    Args:
        split: The images to embed.
        config: How they become pixels, and with how many threads.
        batch_size: B, images per batch.
        share: As for `training_batches`.

    Returns:
        Batches of `image` uint8 RGB (B, H, W, 3), `label` int32 (B,) and `mask` bool (B,). The mask is false for the
        rows that fill up the last batch; their image is black and their label -1. Close it to stop early.

    Raises:
        UserError: While iterating: an image cannot be decoded.
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

    padded = -(-images // batch_size) * batch_size
    return _batches(grain.MapDataset.range(padded).map(load), batch_size, config, share)


def whole_images(split: Split, config: DataConfig, *, max_side: int) -> Generator[Pixels, None, None]:
    """All images in order, decoded and then shrunk to `max_side` pixels where they are larger; 0 shrinks none.

    Raises:
        UserError: While iterating: an image cannot be decoded.
    """

    def load(index: int) -> Pixels:
        return shrink(decode(split.images[index], split.names[index]), max_side)

    return _in_order(load, split, config)


def evaluation_crops(split: Split, config: DataConfig) -> Generator[Pixels, None, None]:
    """The images of `evaluation_batches` one by one, without padding.

    Raises:
        UserError: While iterating: an image cannot be decoded.
    """
    return _in_order(functools.partial(_evaluation_crop, split, config), split, config)


def _evaluation_crop(split: Split, config: DataConfig, index: int) -> Pixels:
    image = decode(split.images[index], split.names[index])
    return image if split.cropped else eval_transform(image, config)


def _in_order(load: Callable[[int], Pixels], split: Split, config: DataConfig) -> Generator[Pixels, None, None]:
    """What `load` makes of each image's index, with threads; closing it ends them."""
    threads = _threads(config)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    images = grain.MapDataset.range(len(split.labels)).map(load).to_iter_dataset(options)
    with contextlib.closing(iter(images)) as images:
        yield from images


def _threads(config: DataConfig) -> int:
    return config.threads or os.cpu_count() or 1


def _batches(
    examples: grain.MapDataset, batch_size: int, config: DataConfig, share: tuple[int, int]
) -> Generator[Batch, None, None]:
    """Loads a share of each batch's examples with threads and stacks them, in order; closing it ends the threads."""
    threads = _threads(config)
    process, processes = share
    rows = batch_size // processes
    part = math.gcd(rows, PART)

    def load_part(place: int) -> list[Any]:
        batch, row = divmod(place * part, rows)
        start = batch * batch_size + process * rows + row
        return [examples[start + number] for number in range(part)]

    def stack(parts: Sequence[list[Any]]) -> Batch:
        loaded = [example for part in parts for example in part]
        return {name: np.stack([example[name] for example in loaded]) for name in loaded[0]}

    # Threads load parts of a batch, not batches: all of them work on the batch that is due next, so an epoch's first
    # batch comes soon and its last ones keep every thread busy. Two batches wait ready beside the parts being loaded.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2 * rows // part)
    parts = grain.MapDataset.range(len(examples) // processes // part).map(load_part).to_iter_dataset(options)
    with contextlib.closing(iter(parts.batch(rows // part, batch_fn=stack))) as batches:
        yield from batches


def prefetch_to_device(
    batches: Generator[Batch, None, None], size: int = 2, sharding: jax.sharding.Sharding | None = None
) -> Generator[dict[str, jax.Array], None, None]:
    """Keeps the next `size` batches on the device, or on their way to it, while the caller works on the current one.

    Args:
        batches: Batches in the host's memory. Closed with this generator.
        size: How many batches to send ahead; each takes device memory.
        sharding: Where to, and how to spread them; JAX's default device if None. Many processes each give their share
            of the rows, and receive whole batches.

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

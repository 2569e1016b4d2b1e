"""Evaluation batches on the device, decoded in a run's first evaluation and kept for the later ones.

They are kept as the bytes that the network embeds, so that every evaluation has the same result to the last bit.
"""

import contextlib
import math
from collections.abc import Callable, Generator
from typing import TypeVar

import jax

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.pipeline import Batch, evaluation_batches, prefetch_to_device
from proxynca_jax.data.split import Split
from proxynca_jax.machine import processes
from proxynca_jax.machine.free_memory import free_on_device, free_on_host
from proxynca_jax.sharding import Layout

T = TypeVar("T")
Source = Callable[[], Generator[T, None, None]]  # each call starts a new pass over the same items
DeviceBatch = dict[str, jax.Array]

DEVICE, HOST, CACHE, NOWHERE = "device", "host", "cache", "nowhere"  # places to keep batches in
# Shares of the free memory that kept batches may take. When they are chosen, training has not allocated anything yet.
DEVICE_SHARE = 0.25
HOST_SHARE = 0.5


def choose_place(split: Split, config: TrainConfig) -> tuple[str, str]:
    """Chooses where to keep the batches of `evaluation_source`, by what is free now.

    Args:
        split: the images to embed.
        config: their size, the batch size and `data.cache`.

    Returns:
        `DEVICE`, `HOST`, `CACHE` or `NOWHERE`, the first that has room, and a line for the log that says so. `CACHE`
        is the folder of `cache.cached_crops`, which then serves every evaluation.
    """
    layout = Layout()
    batch_size = layout.round_up(config.evaluation.batch_size)
    needed = math.ceil(len(split.labels) / batch_size) * batch_size * config.data.image_size**2 * 3
    size, from_then_on = f"{needed / 1e9:.2f} GB", "from the first evaluation on"
    device, host = free_on_device(), free_on_host()
    if device is not None and needed / layout.mesh.size <= DEVICE_SHARE * device:
        return DEVICE, f"evaluation images are kept in device memory {from_then_on}: {size}"
    # Each process keeps its share only. But they may all be on this host, so it needs room for all shares.
    if needed <= HOST_SHARE * host:
        return HOST, f"evaluation images are kept in host memory {from_then_on}: {size}"
    free = f"{size}, too much for the {host / 1e9:.2f} GB of host memory that are free"
    if config.data.cache:
        return CACHE, f"evaluation images are read from {config.data.cache} in every evaluation: {free}"
    return NOWHERE, f"evaluation images are decoded in every evaluation: {free}. Set data.cache to decode them once."


def evaluation_source(split: Split, config: TrainConfig, place: str = NOWHERE) -> Source[DeviceBatch]:
    """The batches of `pipeline.evaluation_batches` on all devices, as often as they are asked for.

    Args:
        split: the images to embed.
        config: their pixels and the batch size, which is rounded up to what the devices divide evenly.
        place: where the first complete pass keeps them, as `choose_place` returns it. Passes decode the images, or
            read them from the cache, until one is complete.

    Returns:
        A function that starts a pass. Many processes each load and keep their share, and receive whole batches.

    Raises:
        UserError: in a pass: if an image cannot be decoded.
    """
    layout = Layout()

    def load() -> Generator[Batch, None, None]:
        batch_size = layout.round_up(config.evaluation.batch_size)
        return evaluation_batches(split, config.data, batch_size=batch_size, share=processes.share())

    loaded = _remembered(load) if place == HOST else load

    def send() -> Generator[DeviceBatch, None, None]:
        return prefetch_to_device(loaded(), sharding=layout.batches)

    return _remembered(send) if place == DEVICE else send


def _remembered(source: Source[T]) -> Source[T]:
    """The same items in each pass, from `source` until a pass was complete and from memory afterwards."""
    kept: list[T] | None = None

    def items() -> Generator[T, None, None]:
        nonlocal kept
        if kept is not None:
            yield from kept
            return
        seen = []
        with contextlib.closing(source()) as made:
            for item in made:
                seen.append(item)
                yield item
        kept = seen

    return items

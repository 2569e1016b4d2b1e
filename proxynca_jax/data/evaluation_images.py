"""Evaluation batches: decoded in a run's first evaluation, kept in memory for the later ones.

The kept bytes are those that the network embeds, so every evaluation has the same result to the last bit.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import TypeVar

import jax

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.order import padded
from proxynca_jax.data.pipeline import Batch, evaluation_batches, prefetch_to_device
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.machine import processes
from proxynca_jax.machine.free_memory import free_on_device, free_on_host
from proxynca_jax.sharding import Layout

T = TypeVar("T")
Source = Callable[[], Generator[T, None, None]]  # each call starts another pass over the same items
DeviceBatch = dict[str, jax.Array]

DEVICE, HOST, CACHE, NOWHERE = "device", "host", "cache", "nowhere"  # where batches are kept
# Fractions of the free memory that kept batches may take. Training allocates its memory after this choice.
DEVICE_SHARE = 0.25
HOST_SHARE = 0.5


def choose_place(evaluation: Evaluation, config: TrainConfig) -> tuple[str, str]:
    """Chooses where to keep the batches of `evaluation_source`, by the memory that is free now.

    Args:
        evaluation: The images to embed. Queries and gallery are kept in the same place.
        config: The size of the crops, the batch size and `data.cache`.

    Returns:
        The first of `DEVICE`, `HOST`, `CACHE` and `NOWHERE` that has room, and a line for the log. `CACHE` is the
        folder of `cache.cached_crops`, which every evaluation then reads.
    """
    layout = Layout()
    batch_size = layout.round_up(config.evaluation.batch_size)
    images = sum(padded(len(split.labels), batch_size) for split in evaluation.splits())
    needed = images * config.data.image_size**2 * 3
    size, from_then_on = f"{needed / 1e9:.2f} GB", "from the first evaluation on"
    device, host = free_on_device(), free_on_host()
    if device is not None and needed / layout.mesh.size <= DEVICE_SHARE * device:
        return DEVICE, f"evaluation images are kept in device memory {from_then_on}: {size}"
    # Each process keeps only its share. All processes may be on this host, so it needs room for all shares.
    if needed <= HOST_SHARE * host:
        return HOST, f"evaluation images are kept in host memory {from_then_on}: {size}"
    free = f"{size}, too much for the {host / 1e9:.2f} GB of host memory that are free"
    if config.data.cache:
        return CACHE, f"evaluation images are read from {config.data.cache} in every evaluation: {free}"
    return NOWHERE, f"evaluation images are decoded in every evaluation: {free}. Set data.cache to decode them once."


def evaluation_source(split: Split, config: TrainConfig, place: str = NOWHERE) -> Source[DeviceBatch]:
    """Makes a source of the batches of `pipeline.evaluation_batches`, sharded over all devices.

    Args:
        split: The images to embed.
        config: How they become pixels, and the batch size, which is rounded up to a multiple of the number of devices.
        place: Where the first complete pass keeps the batches, from `choose_place`. Until a pass is complete, each
            pass decodes the images or reads them from the cache.

    Returns:
        A function that starts a pass. With many processes, each loads and keeps its share and receives whole batches.

    Raises:
        UserError: During a pass, if an image cannot be decoded.
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
    """Keeps the items of the first complete pass in memory, and yields them in all later passes."""
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

"""The order of images: which image is in which row of which batch, and which random numbers its crop uses.

Everything here follows from the arguments alone. Nothing is loaded, and no thread runs.
"""

from collections.abc import Callable
from typing import TypeVar

import grain
import numpy as np

from proxynca_jax.errors import UserError

T = TypeVar("T")
WHOLE = (0, 1)  # the share of the only process: all rows of all batches


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch.

    Raises:
        UserError: If there is no full batch to train on.
    """
    if images < batch_size:
        raise UserError(
            f"{images} training images do not fill one batch of {batch_size}, and only full batches are trained on. "
            f"Set optim.batch_size to {images} or less, or train on more images."
        )
    return images // batch_size


def shuffled_epoch(
    make: Callable[[int, np.random.Generator], T],
    *,
    images: int,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
) -> "grain.MapDataset[T]":
    """The examples of one epoch of training in order, made when they are indexed.

    An example depends on `seed`, `epoch` and its place in the epoch, but not on `start_step`.

    Args:
        make: Makes an example from an image's index in its split, and a random generator for its crop.
        images: N, the number of images.
        batch_size: B; the last N % B images of the shuffled order are dropped.
        seed: The run's seed, at least 0.
        epoch: At least 0.
        start_step: The first step; the examples of earlier steps are left out.

    Raises:
        UserError: If there are fewer images than `batch_size`.
    """
    stop = steps_per_epoch(images, batch_size) * batch_size
    # With seed + epoch, the next seed's run would repeat the epochs of this one.
    epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    # random_map seeds its generators by the place in the whole epoch, so slicing comes after it: a resumed epoch has
    # the same crops.
    examples = grain.MapDataset.range(images).seed(epoch_seed).shuffle().random_map(make)
    return examples[start_step * batch_size : stop]


def padded(images: int, batch_size: int) -> int:
    """Rounds a number of images up to full batches."""
    return -(-images // batch_size) * batch_size


def share_of_rows(batch_size: int, share: tuple[int, int]) -> int:
    """Returns how many rows of each batch a process loads, for the arguments of `place_in_epoch`."""
    _, processes = share
    return batch_size // processes


def place_in_epoch(number: int, batch_size: int, share: tuple[int, int] = WHOLE) -> int:
    """Returns the place of an example in the order of all processes.

    Each process loads the same consecutive rows of every batch.

    Args:
        number: The example's place in the order of this process, from 0.
        batch_size: B, over all processes.
        share: This process's number, from 0, and the number of processes, which divides `batch_size`.
    """
    rows = share_of_rows(batch_size, share)
    batch, row = divmod(number, rows)
    process, _ = share
    return batch * batch_size + process * rows + row

"""Keeps training images in device memory and crops them inside the training step.

The images are uploaded once. For each batch the host then sends only crop boxes, a few bytes per image.
"""

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from proxynca_jax.config import DataConfig
from proxynca_jax.data.pipeline import whole_images
from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import loaded_size, shrunk_size
from proxynca_jax.errors import UserError
from proxynca_jax.machine.free_memory import free_on_device, free_on_host
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.progress import Progress
from proxynca_jax.sharding import Layout

UPLOAD_IMAGES = 32  # per upload
IMAGES_SHARE = 0.75  # fraction of the device's free memory for images; the rest is for the training step


class ResidentImages(NamedTuple):
    """A split's images on the device."""

    pixels: UInt8[Array, "images height width 3"]  # each image in the top left corner, padded with black
    sizes: Int[np.ndarray, "images 2"]  # height and width of each image, on the host


def upload(split: Split, config: DataConfig, layout: Layout, check: Callable[[], None] = never) -> ResidentImages:
    """Copies all images of a split into the memory of each device.

    Args:
        split: The images. Each is padded to the height and width of the largest.
        config: `max_side`, and the number of decoding threads.
        layout: The devices.
        check: Called after each image; raises to stop.

    Raises:
        UserError: If the images do not fit, before any is decoded, or if one cannot be decoded.
    """
    sizes, (places, height, width) = plan(split, config)
    images = len(sizes)
    whole = layout.replicated if layout.mesh.size > 1 else None

    @jax.jit(donate_argnums=0, out_shardings=whole)
    def place(pixels: Array, some: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(pixels, some, start, 0)

    pixels = jax.jit(lambda: jnp.zeros((places, height, width, 3), jnp.uint8), out_shardings=whole)()
    decoded = whole_images(split, config, max_side=config.max_side)
    with contextlib.closing(decoded), Progress("uploading", images=images) as progress:
        for start in range(0, images, UPLOAD_IMAGES):
            some = np.zeros((UPLOAD_IMAGES, height, width, 3), np.uint8)
            for row, image in zip(range(min(UPLOAD_IMAGES, images - start)), decoded, strict=False):
                some[row, : image.shape[0], : image.shape[1]] = image
                check()
            pixels = place(pixels, some, start)
            progress.advance(UPLOAD_IMAGES)
    return ResidentImages(pixels, sizes)


def plan(split: Split, config: DataConfig) -> tuple[Int[np.ndarray, "images 2"], tuple[int, int, int]]:
    """Checks that the images fit into the device's memory. Decodes none.

    Args:
        split: The images.
        config: `max_side`.

    Returns:
        Height and width of each, and the shape of the array for all: images, height, width.

    Raises:
        UserError: If they do not fit.
    """
    loaded = (loaded_size(split, row) for row in range(len(split.labels)))
    sizes = np.array([shrunk_size(*size, config.max_side) for size in loaded])
    height, width = sizes.max(0).tolist()
    places = math.ceil(len(sizes) / UPLOAD_IMAGES) * UPLOAD_IMAGES  # all uploads have the same shape
    _require_room(places, height, width, config)
    return sizes, (places, height, width)


def _require_room(images: int, height: int, width: int, config: DataConfig) -> None:
    needed, room = images * height * width * 3, int(IMAGES_SHARE * _free_bytes())
    if needed > room:
        side = math.isqrt(room // (3 * images))
        device = jax.local_devices()[0].device_kind
        shrink = f"Set data.max_side to {side} or less, which shrinks larger images first, or" if side else "Set"
        raise UserError(
            f"data.placement is 'device', and the training images, {images:,} slots of {height} × {width} pixels, "
            f"need {needed / 1e9:.2f} GB; {room / 1e9:.2f} GB of {device} are free for them. "
            f"{shrink} data.placement to 'host'. (data.max_side is {config.max_side}.)"
        )


def _free_bytes() -> int:
    """Free memory of the device; a CPU has the host's memory."""
    free = free_on_device()
    return free_on_host() if free is None else free


def crops(batch: dict[str, Array], *, size: int) -> UInt8[Array, "batch size size 3"]:
    """Crops, resizes and mirrors like `transforms.train_transform`, inside a compiled program.

    Like Pillow, this rounds to 8 bits after resizing one axis and again after the other. Its weights are float32 and
    Pillow's have 22 bits, so a few pixels round differently, by 1.

    Args:
        batch: A batch of `pipeline.crop_batches`, plus the `pixels` of `ResidentImages`.
        size: Side of a crop, in pixels.
    """
    images, (top, left, height, width) = batch["pixels"][batch["row"]], batch["box"].T
    rows = _resize_weights(top, height, images.shape[1], size)
    columns = _resize_weights(left, width, images.shape[2], size)
    columns = jnp.where(batch["mirror"][:, None, None], columns[:, ::-1], columns)
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    narrow = _to_levels(jnp.einsum("bhwc,bxw->bhxc", images.astype(jnp.float32), columns, **exact))
    return _to_levels(jnp.einsum("bhxc,byh->byxc", narrow, rows, **exact)).astype(jnp.uint8)


def _to_levels(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.floor(x + 0.5)


def _resize_weights(
    start: Int[Array, " batch"], length: Int[Array, " batch"], inputs: int, outputs: int
) -> Float[Array, "batch outputs inputs"]:
    """Computes the weight of each input pixel in each output pixel, along one axis: Pillow's bilinear filter.

    The filter is a triangle around the centre of the output pixel. It is two input pixels wide or, when it shrinks, two
    output pixels. Pixels outside the box have weight 0, and the other weights are scaled to sum to 1.

    Args:
        start: First pixel of the box.
        length: Length of the box, in input pixels.
        inputs: Number of input pixels.
        outputs: Number of output pixels.
    """
    scale = (length / outputs)[:, None, None]
    centers = (jnp.arange(outputs) + 0.5)[None, :, None] * scale
    place = jnp.arange(inputs)[None, None] - start[:, None, None]
    distance = jnp.abs(place + 0.5 - centers) / jnp.maximum(scale, 1.0)
    inside = (place >= 0) & (place < length[:, None, None])
    weights = jnp.where(inside, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return weights / weights.sum(-1, keepdims=True)

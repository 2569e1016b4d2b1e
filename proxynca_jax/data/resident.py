"""Training images that live in device memory, and their crops, made inside the training step.

They are uploaded once. What the host sends for a batch afterwards is where to crop: a few bytes an image.
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
from proxynca_jax.data.transforms import image_size, shrunk_size
from proxynca_jax.errors import UserError
from proxynca_jax.machine.free_memory import free_on_device, free_on_host
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.progress import Progress
from proxynca_jax.sharding import Layout

UPLOAD_IMAGES = 32  # at a time
IMAGES_SHARE = 0.75  # of the device's free memory that images may take; the rest is for the training step


class ResidentImages(NamedTuple):
    """A split's images on the device."""

    pixels: UInt8[Array, "images height width 3"]  # in the top left corner of each; black beyond
    sizes: Int[np.ndarray, "images 2"]  # height and width of each, on the host


def upload(split: Split, config: DataConfig, layout: Layout, check: Callable[[], None] = never) -> ResidentImages:
    """Puts all images of a split into the memory of each device.

    Args:
        split: the images, each with a place as large as the largest.
        config: their largest side and the threads to decode with.
        layout: which devices.
        check: called after each image; raises to stop.

    Raises:
        UserError: if they do not fit, before any is decoded; if one cannot be decoded.
    """
    headers = (image_size(split.images[row], name) for row, name in enumerate(split.names))
    sizes = np.array([shrunk_size(*size, config.max_side) for size in headers])
    height, width = sizes.max(0).tolist()
    images = len(sizes)
    places = math.ceil(images / UPLOAD_IMAGES) * UPLOAD_IMAGES  # so that all uploads have one shape
    _require_room(places, height, width, config)

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


def _require_room(images: int, height: int, width: int, config: DataConfig) -> None:
    needed, room = images * height * width * 3, int(IMAGES_SHARE * _free_bytes())
    if needed > room:
        side = math.isqrt(room // (3 * images))
        device = jax.local_devices()[0].device_kind
        shrink = f"Set data.max_side to {side} or less, which shrinks larger images first, or" if side else "Set"
        raise UserError(
            f"data.placement is 'device', and the training images, {images:,} places of {height} × {width} pixels, "
            f"need {needed / 1e9:.2f} GB; {room / 1e9:.2f} GB of {device} are free for them. "
            f"{shrink} data.placement to 'host'. (data.max_side is {config.max_side}.)"
        )


def _free_bytes() -> int:
    """What the device has left of its memory; a CPU's is the host's."""
    free = free_on_device()
    return free_on_host() if free is None else free


def crops(batch: dict[str, Array], *, size: int) -> UInt8[Array, "batch size size 3"]:
    """Crops, resizes and mirrors as `transforms.train_transform` does. For use inside a compiled program.

    Pillow rounds to 8 bits after resizing rows and again after columns, and so does this; its weights are float32,
    Pillow's have 22 bits. Pixels differ where that tips a rounding: by 1, seldom.

    Args:
        batch: one of `pipeline.crop_batches`, and the `pixels` of `ResidentImages` with it.
        size: of a crop, in pixels.
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
    """The share of each input pixel in each output pixel, along one axis: Pillow's antialiased bilinear filter.

    It is a triangle around the output pixel's centre, as wide as two input pixels or, where it shrinks, as two output
    pixels. What would lie outside the box counts for nothing, and the shares that are left sum to 1.

    Args:
        start: of the box, in input pixels.
        length: of the box, in input pixels.
        inputs: how many there are.
        outputs: how many the box becomes.
    """
    scale = (length / outputs)[:, None, None]
    centers = (jnp.arange(outputs) + 0.5)[None, :, None] * scale
    place = jnp.arange(inputs)[None, None] - start[:, None, None]
    distance = jnp.abs(place + 0.5 - centers) / jnp.maximum(scale, 1.0)
    inside = (place >= 0) & (place < length[:, None, None])
    weights = jnp.where(inside, jnp.maximum(1.0 - distance, 0.0), 0.0)
    return weights / weights.sum(-1, keepdims=True)

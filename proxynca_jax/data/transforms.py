"""Image files to the uint8 RGB squares that the network sees, pixel for pixel as the reference's transforms do.

Those are torchvision's on Pillow: 8-bit, bilinear, antialiased. Channel order and mean are the model's business.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import PIL
import PIL.Image
from jaxtyping import UInt8

from proxynca_jax.config import DataConfig
from proxynca_jax.data.split import Image
from proxynca_jax.errors import UserError

CROP_TRIES = 10


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def decode(image: Image, name: str) -> PIL.Image.Image:
    """Decodes a whole image.

    Args:
        image: The content of an image file of any format that Pillow reads, or uint8 RGB pixels (H, W, 3).
        name: What to call the image when it is damaged.

    Returns:
        The image in mode RGB: grey is repeated, palettes are looked up, transparency is dropped.

    Raises:
        UserError: The content is truncated, or no image at all.
    """
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(image)
    try:
        with PIL.Image.open(io.BytesIO(image)) as file:
            # Pillow would warn that a palette's transparency is lost. It is meant to be: the reference drops it too.
            file.info.pop("transparency", None)
            # Pixels stay as stored: the reference does not turn images upright by their EXIF orientation either.
            return file.convert("RGB")
    except Exception as error:  # every format's decoder raises its own: OSError, SyntaxError, struct.error, ...
        fault = "no image format that Pillow knows" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise UserError(
            f"{name}: cannot decode these {len(image)} bytes as an image ({fault}). "
            "The file is damaged or not an image: fetch it again, or remove it from the data set."
        ) from error


def random_crop_box(
    height: int, width: int, rng: np.random.Generator, *, area: tuple[float, float], aspect_max: float
) -> Box:
    """Draws a training crop: uniform in area, log-uniform in aspect ratio, uniform in position.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        rng: Source of randomness.
        area: Smallest and largest share of the image's area, each in (0, 1].
        aspect_max: Largest width over height, at least 1; the smallest is its inverse.

    Returns:
        A box inside the image. When ten draws in a row do not fit, the largest centred one of allowed aspect ratio.
    """
    log_aspect_max = math.log(aspect_max)
    for _ in range(CROP_TRIES):
        box_area = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(-log_aspect_max, log_aspect_max))
        box_height, box_width = round(math.sqrt(box_area / aspect)), round(math.sqrt(box_area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width)
    box_height, box_width = min(height, round(width * aspect_max)), min(width, round(height * aspect_max))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def crop_and_resize(image: PIL.Image.Image, box: Box, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cuts out `box` and resizes it to a square of `size` pixels.

    Two steps on purpose: `Image.resize(box=...)` would let the filter see pixels outside the box.
    """
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(crop.resize((size, size), PIL.Image.Resampling.BILINEAR))


def train_transform(
    image: PIL.Image.Image, config: DataConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """A random crop, resized to `config.image_size`, and a coin's toss of a mirror.

    Args:
        image: An RGB image of any size.
        config: Gives the size, the crop's range and whether to mirror.
        rng: Source of randomness.

    Returns:
        RGB pixels.
    """
    area = (config.crop_area_min, config.crop_area_max)
    box = random_crop_box(image.height, image.width, rng, area=area, aspect_max=config.crop_aspect_max)
    pixels = crop_and_resize(image, box, config.image_size)
    return pixels[:, ::-1] if config.horizontal_flip and rng.random() < 0.5 else pixels


def eval_transform(image: PIL.Image.Image, config: DataConfig) -> UInt8[np.ndarray, "size size 3"]:
    """The image's shorter side resized to `config.resize_size`, then its centre of `config.image_size`.

    Args:
        image: An RGB image of any size.
        config: Gives the two sizes, of which the first must not be the smaller.

    Returns:
        RGB pixels; those of the image itself when it is a square of both sizes.
    """
    shorter = min(image.size)
    width, height = (int(config.resize_size * side / shorter) for side in image.size)
    left, top = (round((side - config.image_size) / 2) for side in (width, height))
    resized = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + config.image_size, top + config.image_size)))

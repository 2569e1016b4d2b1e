"""Decodes, crops and resizes images to the uint8 RGB squares that the network sees.

The pixels equal those of the reference's transforms, which are torchvision's on Pillow: 8-bit, bilinear, antialiased.
Channel order and mean belong to the model.
"""

import contextlib
import io
import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL
import PIL.ExifTags
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

from proxynca_jax.config import DataConfig
from proxynca_jax.data.split import Image, Split
from proxynca_jax.errors import UserError

CROP_TRIES = 10
# Pixels of an image: 400 MB of RGB, and more than a camera of 100 megapixels takes.
MAX_PIXELS = 2**27
BOMBS = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)
SCALED_TO_16_BITS = ("PNG", "PPM")  # formats whose levels of mode "I" Pillow scales to 16 bits
Pixels = UInt8[np.ndarray, "_ _ 3"]


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def require_inside(self, height: int, width: int, name: str) -> None:
        """Checks that the box is part of an image.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            name: The image's name in the error.

        Raises:
            UserError: If it is empty, or not inside of the image.
        """
        rows, columns = self.top + self.height, self.left + self.width
        if not (0 <= self.top < rows <= height and 0 <= self.left < columns <= width):
            raise UserError(
                f"{name}: the box x={self.left} y={self.top} w={self.width} h={self.height} is not inside of the "
                f"image, which has {width} x {height} pixels (width x height, as stored)."
            )


def load_image(split: Split, index: int) -> Pixels:
    """Decodes an image of a split and, if it has a box, cuts that out. All images of splits are decoded here.

    Raises:
        UserError: If the content is truncated or not an image, or if the box is not inside of it.
    """
    name = split.names[index]
    image = (decode_upright if split.upright else decode)(split.images[index], name)
    box = _box(split, index)
    if box is None:
        return image
    height, width, _ = image.shape
    box.require_inside(height, width, name)
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def loaded_size(split: Split, index: int) -> tuple[int, int]:
    """Returns height and width, in pixels, of what `load_image` returns, without decoding it."""
    box = _box(split, index)
    return image_size(split.images[index], split.names[index]) if box is None else (box.height, box.width)


def _box(split: Split, index: int) -> Box | None:
    box = None if split.boxes is None else Box(*split.boxes[index].tolist())
    return box if box and box.height else None


def decode(image: Image, name: str) -> Pixels:
    """Decodes a whole image.

    Args:
        image: The content of an image file of any format that Pillow reads, or uint8 RGB pixels (H, W, 3).
        name: The image's name in errors.

    Returns:
        RGB pixels, as `to_rgb` converts them.

    Raises:
        UserError: If the content is truncated or not an image, has more than MAX_PIXELS, or has a mode whose levels
            could mean anything.
    """
    if isinstance(image, np.ndarray):
        return image
    if (pixels := _decode_jpeg(image)) is not None:
        return pixels
    with _opened(image, name) as file:
        return to_rgb(file, name)


def decode_upright(image: Image, name: str) -> Pixels:
    """Decodes a whole image and turns it as its EXIF orientation says. Arguments and errors are those of `decode`."""
    pixels = decode(image, name)
    if isinstance(image, np.ndarray):
        return pixels
    if simplejpeg.is_jpeg(image) and b"Exif" not in image and b"Orientation" not in image:  # the latter is XMP's
        return pixels  # faster than asking Pillow, and most data sets have no EXIF
    orientation = 1
    with contextlib.suppress(Exception), _opened(image, name) as file:  # damaged EXIF does not damage the pixels
        # Pillow turns TIFF itself, and it decodes a whole PNG to look for EXIF behind the pixels.
        if file.format != "TIFF" and (file.format != "PNG" or b"eXIf" in image):
            orientation = file.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def to_rgb(image: PIL.Image.Image, name: str) -> Pixels:
    """Converts an image as Pillow does: grey is repeated, palettes are looked up, transparency is dropped.

    16-bit grey is divided by 257, which Pillow does not do: it would cut the levels off at 255. Like the reference,
    this ignores the EXIF orientation.

    Raises:
        UserError: If the levels are 32-bit integers or floating-point numbers, which have no fixed range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SCALED_TO_16_BITS):
        levels = (np.asarray(image).astype(np.int64) + 128) // 257
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise UserError(
            f"{name}: its levels are {kind} (Pillow's mode {image.mode!r}), and nothing says which is white. Convert "
            "it to 8 or 16 bits, with the range that your images have."
        )
    # The reference drops a palette's transparency, too. Without this line Pillow would warn of it.
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))


def image_size(image: Image | pathlib.Path, name: str) -> tuple[int, int]:
    """Returns height and width in pixels. Of a file, it reads only the header.

    Args:
        image: As for `decode`, or a file's path.
        name: As for `decode`.

    Raises:
        UserError: If the content has no image header.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    with _opened(image, name) as file:
        return file.height, file.width


def _decode_jpeg(content: bytes) -> Pixels | None:
    """Decodes a JPEG to the same pixels as Pillow, but faster. Returns None if Pillow must decode the content.

    Both use libjpeg-turbo. They convert CMYK to RGB differently, and only Pillow distinguishes damaged files from
    unusual ones.
    """
    if not simplejpeg.is_jpeg(content):
        return None
    with contextlib.suppress(ValueError):
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(content)
        if colour_space not in ("CMYK", "YCCK") and int(height) * int(width) <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(content)
    return None


@contextlib.contextmanager
def _opened(content: bytes | pathlib.Path, name: str) -> Iterator[PIL.Image.Image]:
    """Opens an image file with Pillow and converts its errors into UserErrors."""
    try:
        with PIL.Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            if file.width * file.height > MAX_PIXELS:
                raise PIL.Image.DecompressionBombError(f"{file.width} x {file.height}")
            yield file
    except UserError:
        raise
    except BOMBS as error:
        raise UserError(
            f"{name}: this image would have more than {MAX_PIXELS:,} pixels ({error}). That is a trap for decoders, or "
            "far more than the network sees: shrink it, or remove it from the data set."
        ) from error
    except Exception as error:  # every format's decoder raises its own: OSError, SyntaxError, struct.error, ...
        fault = "no image format that Pillow knows" if isinstance(error, PIL.UnidentifiedImageError) else error
        what = f"these {len(content)} bytes" if isinstance(content, bytes) else "this file"
        raise UserError(
            f"{name}: cannot decode {what} as an image ({fault}). "
            "The file is damaged or not an image: fetch it again, or remove it from the data set."
        ) from error


def shrunk_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width of an image after `shrink`."""
    if not longest or max(height, width) <= longest:
        return height, width
    height, width = (max(1, round(longest * side / max(height, width))) for side in (height, width))
    return height, width


def shrink(image: Pixels, longest: int) -> Pixels:
    """Resizes an image to a longer side of `longest` pixels if it is larger, antialiased; 0 shrinks none."""
    height, width, _ = image.shape
    size = shrunk_size(height, width, longest)
    return image if size == (height, width) else _resize(image, *size)


def random_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    aspect_max: float,
    squash: bool = False,
) -> Box:
    """Draws a training crop: uniform in area, log-uniform in aspect ratio, uniform in position.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        rng: Random generator.
        area: Smallest and largest fraction of the image's area, each in (0, 1].
        aspect_max: Largest width over height, at least 1; the smallest is its inverse.
        squash: Aspect ratios are relative to the image's own, as if the image had been resized to a square.

    Returns:
        A box inside the image. If CROP_TRIES draws do not fit, the largest centred box of allowed aspect ratio.
    """
    log_aspect_max = math.log(aspect_max)
    unit = width / height if squash else 1.0
    for _ in range(CROP_TRIES):
        box_area = height * width * rng.uniform(*area)
        aspect = unit * math.exp(rng.uniform(-log_aspect_max, log_aspect_max))
        box_height, box_width = round(math.sqrt(box_area / aspect)), round(math.sqrt(box_area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width)
    box_height, box_width = min(height, round(width * aspect_max / unit)), min(width, round(height * aspect_max * unit))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def draw_crop(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> tuple[Box, bool]:
    """Draws the random numbers of `train_transform` for an image of this size: the crop, and whether to mirror."""
    area = (config.crop_area_min, config.crop_area_max)
    box = random_crop_box(height, width, rng, area=area, aspect_max=config.crop_aspect_max, squash=config.squash)
    return box, bool(config.horizontal_flip and rng.random() < 0.5)


def crop_and_resize(image: Pixels, box: Box, size: int, *, mirror: bool = False) -> UInt8[np.ndarray, "size size 3"]:
    """Cuts out `box`, resizes it to a square of `size` pixels and, if `mirror` is true, mirrors it.

    Cutting and resizing are two steps: in `Image.resize(box=...)` the filter would read pixels outside the box.
    """
    row_bytes = 3 * image.shape[1]
    start = box.top * row_bytes + 3 * box.left
    content = image.reshape(-1)[start : start + (box.height - 1) * row_bytes + 3 * box.width]
    # Pillow skips the bytes between two rows of the box, so pixels are copied once. It also mirrors faster than NumPy
    # copies a mirrored view.
    crop = PIL.Image.frombuffer("RGB", (box.width, box.height), content, "raw", "RGB", row_bytes, 1)
    resized = crop.resize((size, size), PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if mirror else resized)


def train_transform(image: Pixels, config: DataConfig, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """Takes a random crop, resizes it to `config.image_size` and mirrors it with probability 1/2.

    Args:
        image: RGB pixels.
        config: The size, the limits of the crop, and whether to mirror at all.
        rng: Random generator.

    Returns:
        RGB pixels.
    """
    height, width, _ = image.shape
    box, mirror = draw_crop(height, width, config, rng)
    return crop_and_resize(image, box, config.image_size, mirror=mirror)


def eval_transform(image: Pixels, config: DataConfig) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the image to a shorter side of `config.resize_size` and cuts out its centre of `config.image_size`.

    Args:
        image: RGB pixels.
        config: The two sizes; `resize_size` is at least `image_size`. With `squash`, both sides become `resize_size`.

    Returns:
        RGB pixels. A square image of both sizes is returned unchanged.
    """
    shorter = min(image.shape[:2])
    height, width = (int(config.resize_size * (1 if config.squash else side / shorter)) for side in image.shape[:2])
    top, left = (round((side - config.image_size) / 2) for side in (height, width))
    return _resize(image, height, width)[top : top + config.image_size, left : left + config.image_size]


def _resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resizes with Pillow's bilinear filter, which antialiases when it shrinks."""
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BILINEAR))

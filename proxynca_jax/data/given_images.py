"""Images that a Python program has: paths, PIL images and arrays, as a split without labels."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from proxynca_jax.data.image_files import read_image
from proxynca_jax.data.pipeline import NO_LABEL
from proxynca_jax.data.split import Image, Split
from proxynca_jax.data.transforms import to_rgb
from proxynca_jax.errors import UserError
from proxynca_jax.machine import arguments

GivenImage = str | os.PathLike[str] | PIL.Image.Image | np.ndarray  # arrays are uint8; see `Embedder.embed`
CHANNELS = (1, 3, 4)


class _GivenImages(Sequence[Image]):
    """Reads or converts an image when it is indexed."""

    def __init__(self, images: Sequence[GivenImage]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        image = self.images[index]
        if isinstance(image, PIL.Image.Image):
            return to_rgb(_upright(image), _name(image, index))
        if isinstance(image, np.ndarray):
            return _pixels(image, _name(image, index))
        return read_image(arguments.path(image))


def given_split(images: Iterable[Any]) -> Split:
    """Makes a split of images that are read when they are indexed.

    Args:
        images: as for `Embedder.embed`.

    Raises:
        UserError: if it is a single image, or contains something that is no image or no file.
    """
    if isinstance(images, str | os.PathLike | PIL.Image.Image):
        raise UserError("images is one image; give a list of images: [image].")
    given = list(images)
    for index, image in enumerate(given):
        if isinstance(image, np.ndarray):
            _check_array(image, _name(image, index))
        elif not isinstance(image, str | os.PathLike | PIL.Image.Image):
            raise UserError(
                f"{_name(image, index)} is a {type(image).__name__}; it must be a path, a PIL image or a uint8 array."
            )
        elif not isinstance(image, PIL.Image.Image) and not arguments.path(image).is_file():
            raise UserError(f"no image file at {image}.")
    names = [_name(image, index) for index, image in enumerate(given)]
    return Split(_GivenImages(given), names, np.full(len(given), NO_LABEL, np.int32), class_names=(), upright=True)


def _name(image: object, index: int) -> str:
    return str(image) if isinstance(image, str | os.PathLike) else f"image {index}"


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns a copy, turned as the EXIF orientation says."""
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF does not damage the pixels
        return image.copy()


def _check_array(image: np.ndarray, name: str) -> None:
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in CHANNELS)
    if image.dtype != np.uint8 or not fits or 0 in image.shape:
        raise UserError(
            f"{name} is an array of {image.dtype} of shape {image.shape}; it must be uint8, 0 to 255, of shape (H, W), "
            "(H, W, 1), (H, W, 3) or (H, W, 4), not empty."
        )


def _pixels(image: np.ndarray, name: str) -> UInt8[np.ndarray, "height width 3"]:
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    return to_rgb(PIL.Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image), name)

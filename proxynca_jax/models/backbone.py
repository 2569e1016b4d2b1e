"""What a training run has to know of a backbone, the network that turns pixels into features."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from proxynca_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become the input that a backbone's weights were trained on. Every file with weights contains it."""

    channel_order: str  # RGB or BGR
    scale: float  # the bytes, 0 to 255, are multiplied by it
    mean: tuple[float, float, float]  # subtracted from the scaled values, in channel order
    std: tuple[float, float, float]  # divides the difference, in channel order
    image_size: int  # pixels, side of the square
    resize_size: int  # pixels, shorter side before the evaluation's centre crop


def normalise(
    images: UInt8[Array, "batch height width 3"], preprocessing: Preprocessing
) -> Float[Array, "batch height width 3"]:
    """(scale · pixels − mean) / std, in the channel order of the backbone.

    Args:
        images: RGB bytes.
        preprocessing: of the backbone. Its sizes are not used here.
    """
    pixels = jnp.asarray(images if preprocessing.channel_order == "RGB" else jnp.flip(images, -1), jnp.float32)
    mean, std = (jnp.asarray(values)[None, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (preprocessing.scale * pixels - mean) / std


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """A row of `BACKBONES`."""

    title: str  # the network's name in messages
    # Keyword arguments batch_norm_momentum, rng and precision, as for `BNInception`, to an nnx.Module with the methods
    # - __call__(pixels, train=...): features, Float[Array, "batch features"];
    # - stages(pixels, train=...): yields the name and the output of each stage, the features last;
    # - fold(): moves BatchNorm's running statistics into the convolutions, for inference only.
    # Its attributes name the leaves of checkpoints and of converted weights.
    build: Callable[..., Any]
    features: int  # width of its output
    preprocessing: Preprocessing
    fits: Callable[[int], bool]  # whether it accepts square images of this size, in pixels
    size_rule: str  # what `fits` demands, in words
    forward_flops: Callable[[int], int]  # FLOP of the features of one image of this size; see network.forward_flops

    def check_image_size(self, size: int) -> None:
        """Checks that the backbone accepts square images of `size` pixels.

        Raises:
            UserError: if not. It gives the rule and the nearest sizes that fit.
        """
        if self.fits(size):
            return
        below = next((near for near in range(size - 1, 0, -1) if self.fits(near)), None)
        above = next(near for near in itertools.count(max(size, 0) + 1) if self.fits(near))
        nearest = " or ".join(str(near) for near in (below, above) if near is not None)
        raise UserError(
            f"data.image_size is {size}, which does not fit {self.title}: {self.size_rule}. "
            f"The nearest sizes that fit: {nearest}. Its weights expect {self.preprocessing.image_size}."
        )

"""A sheet of samples as the network sees them: its input, turned back into pixels."""

import io
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageDraw
from jaxtyping import Float, UInt8

from proxynca_jax.data.datasets.glyphs import face
from proxynca_jax.machine.output import printable
from proxynca_jax.models.backbone import Preprocessing, normalise

TILE, GAP, LINE, TEXT = 256, 20, 36, 24  # pixels; shown at half its size, the sheet is sharp on dense screens
LETTERS = 19  # of a class's name that fit below a tile
PAPER, INK = "#ffffff", "#24292f"

Row = tuple[str, UInt8[np.ndarray, "images height width 3"], Sequence[str]]  # heading, images, their classes


def draw_sheet(rows: Sequence[Row], preprocessing: Preprocessing) -> bytes:
    """Draws rows of images, each above the name of its class.

    Args:
        rows: Images as the pipeline makes them, RGB.
        preprocessing: Of the network. Images go through it and back, so a wrong order of channels would show.

    Returns:
        A PNG file.
    """
    columns = max(len(images) for _, images, _ in rows)
    height = TILE + 2 * LINE + GAP
    sheet = PIL.Image.new("RGB", (GAP + columns * (TILE + GAP), GAP + len(rows) * height), PAPER)
    pen, font = PIL.ImageDraw.Draw(sheet), face("DejaVuSans").font_variant(size=TEXT)
    for number, (heading, images, classes) in enumerate(rows):
        top = GAP + number * height
        pen.text((GAP, top), heading, fill=INK, font=font)
        seen = as_pixels(np.asarray(normalise(jnp.asarray(images), preprocessing)), preprocessing)
        for column, (image, name) in enumerate(zip(seen, classes, strict=True)):
            left = GAP + column * (TILE + GAP)
            sheet.paste(PIL.Image.fromarray(image).resize((TILE, TILE)), (left, top + LINE))
            short = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
            pen.text((left, top + LINE + TILE + 4), printable(short), fill=INK, font=font)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def as_pixels(
    inputs: Float[np.ndarray, "images height width 3"], preprocessing: Preprocessing
) -> UInt8[np.ndarray, "images height width 3"]:
    """Turns a network's input back into RGB bytes: the inverse of `normalise`."""
    values = (inputs * np.array(preprocessing.std) + np.array(preprocessing.mean)) / preprocessing.scale
    rgb = values if preprocessing.channel_order == "RGB" else values[..., ::-1]
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

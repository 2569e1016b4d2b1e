"""A contact sheet: each photograph with what a search found for it, scores and labels below."""

import io
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps

from proxynca_jax.data.datasets.glyphs import face
from proxynca_jax.machine.output import printable
from proxynca_jax.vector_index.engine import Match

# Pixels. Shown at half its size, the sheet is sharp on screens of high density.
TILE, GAP, LINE, TEXT = 300, 24, 34, 26
LETTERS = 20  # of a label or a name that fit below a tile
PAPER, INK, QUERY = "#ffffff", "#24292f", "#0969da"


def contact_sheet(photographs: Sequence[Path], found: Sequence[Sequence[Match]], *, first: str = "query") -> bytes:
    """Draws one row for each photograph: the photograph, and the images that were found, the most similar first.

    Args:
        photographs: the queries.
        found: the matches of each. Images that are gone are drawn as empty frames.
        first: what the photographs are.

    Returns:
        A PNG file.
    """
    columns = 1 + max((len(matches) for matches in found), default=0)
    width, height = (GAP + columns * (TILE + GAP), GAP + len(photographs) * (TILE + 2 * LINE + GAP))
    sheet = PIL.Image.new("RGB", (width, height), PAPER)
    for row, (photograph, matches) in enumerate(zip(photographs, found, strict=True)):
        top = GAP + row * (TILE + 2 * LINE + GAP)
        _put(sheet, photograph, GAP, top, (first, photograph.name), QUERY)
        for column, match in enumerate(matches, 1):
            lines = (f"{match.score:.3f}", match.label or Path(match.path).name)
            _put(sheet, Path(match.path), GAP + column * (TILE + GAP), top, lines, INK)
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _put(sheet: PIL.Image.Image, path: Path, left: int, top: int, lines: Sequence[str], colour: str) -> None:
    pen, font = PIL.ImageDraw.Draw(sheet), face("DejaVuSans").font_variant(size=TEXT)
    pen.rectangle(
        (left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline=colour, width=4 if colour == QUERY else 1
    )
    try:
        with PIL.Image.open(path) as file:
            image = PIL.ImageOps.exif_transpose(file.convert("RGB") if file.mode == "P" else file).convert("RGB")
    except (OSError, ValueError, PIL.Image.DecompressionBombError):
        pen.text((left + TILE // 2, top + TILE // 2), "not there", fill=INK, font=font, anchor="mm")
    else:
        image = PIL.ImageOps.contain(image, (TILE, TILE))
        sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
    for number, line in enumerate(lines):
        short = line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…"
        pen.text((left, top + TILE + number * LINE + 6), printable(short), fill=colour, font=font)

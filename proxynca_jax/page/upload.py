"""Photographs that a browser sends: received into memory within limits of bytes, pixels and seconds, then decoded."""

import asyncio
import io

import PIL.Image
from fastapi import HTTPException, Request

from proxynca_jax.data.transforms import BOMBS, Pixels, decode_upright

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000  # 150 MB of RGB; more than almost all cameras take
SECONDS = 30.0  # for the whole photograph to arrive
# Not all that Pillow opens: for some formats, such as EPS, it starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NAMES = "JPEG, PNG, WebP, GIF, BMP or TIFF"
TOO_LARGE = f"The photograph has more than {MAX_BYTES // 1_000_000} MB. Make it smaller, and try again."


async def receive(request: Request) -> bytes:
    """Receives a photograph, the body of a request.

    Raises:
        HTTPException: 413 as soon as it has too many bytes, 415 if its Content-Type is none of an image, 400 if it is
            empty, 408 if it takes too long.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind != "application/octet-stream":
        what = f"The Content-Type is {kind or 'missing'}. Send the photograph as the body, as image/jpeg or so."
        raise HTTPException(415, what)
    if int(request.headers.get("content-length") or 0) > MAX_BYTES:
        raise HTTPException(413, TOO_LARGE)
    content = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise HTTPException(413, TOO_LARGE)
    except TimeoutError as error:
        raise HTTPException(408, f"The photograph did not arrive within {SECONDS:.0f} seconds.") from error
    if not content:
        raise HTTPException(400, "There is no photograph in the request. Send it as the body.")
    return bytes(content)


def decode(content: bytes) -> Pixels:
    """Decodes a photograph and turns it upright, as the images of an index.

    Raises:
        HTTPException: 413 if it has too many pixels, which its header says, 415 if it is no image or damaged.
    """
    too_many = HTTPException(413, f"The photograph has more than {MAX_PIXELS // 1_000_000} million pixels.")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_many
        return decode_upright(content, "photograph")
    except BOMBS as error:
        raise too_many from error
    except HTTPException:
        raise
    except Exception as error:  # every format's decoder raises its own
        what = f"This is no photograph that can be read. Send a whole {NAMES} file with 8 or 16 bits per colour."
        raise HTTPException(415, what) from error

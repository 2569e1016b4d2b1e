"""Small pictures of a page's images, as JPEG in data URIs. Each is there once, however often it is shown."""

import base64
import io

import PIL.Image

from proxynca_jax.data.split import Split
from proxynca_jax.data.transforms import load_image, shrink

SIDE = 80  # pixels, of the longer side
QUALITY = 68  # of JPEG
MOST_BYTES = 5_000_000  # of all pictures of a page


class Pictures:
    """Makes pictures until they have MOST_BYTES. Ask for the most important ones first."""

    def __init__(self) -> None:
        self.uris: dict[str, str] = {}  # by key
        self._bytes = 0

    def key(self, side: str, split: Split, image: int) -> str:
        """Returns the key of an image's picture. Empty: there is no room for it.

        Args:
            side: a name of the split, without digits.
            split: with the image.
            image: its row.

        Raises:
            UserError: if the image cannot be decoded.
        """
        key = f"{side}{image}"
        if key not in self.uris:
            if self._bytes > MOST_BYTES:
                return ""
            self.uris[key] = uri = _data_uri(split, image)
            self._bytes += len(uri)
        return key


def _data_uri(split: Split, image: int) -> str:
    content = io.BytesIO()
    PIL.Image.fromarray(shrink(load_image(split, image), SIDE)).save(content, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

"""Pictures of an index's rows, read from their files and made small.

A picture is asked for by the digest of its file's content. A client never names a path: a file is opened only if a row
of the index has this digest, and shown only if it still has this content. It is sent as a new JPEG, so nothing else
that the file contains, such as a place in its EXIF or a script, reaches a browser.
"""

import collections
import io
import os
import stat
import threading
from pathlib import Path

import PIL.Image

from proxynca_jax.data.image_files import content_digest
from proxynca_jax.data.transforms import decode_upright, shrink
from proxynca_jax.errors import UserError
from proxynca_jax.vector_index.engine import Engine, columns, text

THUMBNAIL, LARGE = 320, 1600  # pixels of the longer side
QUALITY = 85  # of JPEG
CACHE_BYTES = 64_000_000


class Pictures:
    """Makes pictures, and keeps the last small ones in memory. Threads may share it."""

    def __init__(self, engine: Engine):
        self._engine, self._lock = engine, threading.Lock()
        self._kept, self._bytes = collections.OrderedDict[str, bytes](), 0
        # Each decoder may need hundreds of megabytes.
        self._decoding = threading.BoundedSemaphore(2)

    def thumbnail(self, digest: str) -> bytes | None:
        """Returns a picture of at most THUMBNAIL pixels a side as JPEG.

        Args:
            digest: of a row.

        Returns:
            None if no row has this digest, or its file is gone, changed or damaged.
        """
        paths = self._paths(digest)
        with self._lock:
            if paths and digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        picture = self._picture(paths, digest, THUMBNAIL)
        if picture is not None:
            self._keep(digest, picture)
        return picture

    def large(self, digest: str) -> bytes | None:
        """Returns a picture of at most LARGE pixels a side. Otherwise as `thumbnail`."""
        return self._picture(self._paths(digest), digest, LARGE)

    def _paths(self, digest: str) -> list[Path]:
        """Returns the files of a content that are regular files and have the size that they had when indexed."""
        rows = columns(self._engine, ("path", "size"), f"digest = {text(digest)}")
        return [Path(path) for path, size in rows if _size(path) == size]

    def _picture(self, paths: list[Path], digest: str, longest: int) -> bytes | None:
        for path in paths:
            with self._decoding:
                try:
                    content = path.read_bytes()
                    if content_digest(content) != digest:
                        continue
                    pixels = shrink(decode_upright(content, str(path)), longest)
                except (OSError, UserError):
                    continue
            file = io.BytesIO()
            PIL.Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
            return file.getvalue()
        return None

    def _keep(self, digest: str, picture: bytes) -> None:
        with self._lock:
            self._bytes += len(picture) - len(self._kept.pop(digest, b""))
            self._kept[digest] = picture
            while self._bytes > CACHE_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest)


def _size(path: str) -> int | None:
    try:
        about = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None

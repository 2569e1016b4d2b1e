"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from proxynca_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a hidden file beside `path`, which takes its place if the block ends without an error.

    Raises:
        UserError: if the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all, making its folder if need be.

    Raises:
        UserError: if the file cannot be written.
    """
    with replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)

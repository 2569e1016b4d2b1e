"""Atomic writes: a file or a folder appears complete or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from proxynca_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file in the folder of `path`, and renames it to `path` if the block succeeds.

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
    """Writes a file atomically. Creates its folder if there is none.

    Raises:
        UserError: if the file cannot be written.
    """
    with replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder next to `path`, and renames it to `path` if the block succeeds.

    Raises:
        UserError: if `path` exists, or the folder cannot be written.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists. Name a folder that does not exist yet, or delete this one first.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Atomic writes: a file, a line at its end, or a folder appears complete or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from proxynca_jax.errors import UserError

GO_ON = (
    "Nothing half-written is left, and older files are as they were. Make room or choose another place, then give the "
    "same command again."
)


def cannot_write(path: pathlib.Path, error: OSError) -> UserError:
    """The error for a file that cannot be written. It leaves out the error's number and temporary file."""
    return UserError(f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}. {GO_ON}")


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
        raise cannot_write(path, error) from error
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
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def append_line(path: pathlib.Path, line: str) -> None:
    """Appends a line to a file, or leaves the file as it is.

    Raises:
        UserError: if the file cannot be written.
    """
    content = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while content:  # a disk that is nearly full takes a part
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error

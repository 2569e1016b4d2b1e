"""PyTorch files without PyTorch: the zip archives that `torch.save` writes, and the format before PyTorch 1.6.

An archive contains a pickle, `data.pkl`, and each storage in a file of its own. An older file is a row of pickles, and
then the storages. `torch_pickle` reads the pickles and refuses all but tensors, containers, numbers and strings.
"""

import io
import os
import zipfile
from typing import Any

from proxynca_jax.errors import UserError
from proxynca_jax.weights.torch_pickle import Refused, unpickle

ARCHIVE_START = b"PK\x03\x04"
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of the older format
OLDER_VERSION = 1001
BIG_ENDIAN = "it is from a big-endian machine"


def read(content: bytes, source: str | os.PathLike[str]) -> Any:
    """Reads a PyTorch file.

    Args:
        content: of the file.
        source: its path, for messages.

    Returns:
        What was saved, as `torch_pickle.unpickle` returns it. Tensors are views of `content`, or of parts copied from
        an archive.

    Raises:
        UserError: if the file is damaged, asks for more than data, or is something else.
    """
    try:
        return _read_archive(content) if content.startswith(ARCHIVE_START) else _read_older(content)
    except Refused as error:
        raise UserError(
            f"{source} was refused: {error}. If it is a checkpoint of yours, save only its state dict and convert that."
        ) from error
    except Exception as error:  # a damaged archive or pickle can fail in any way
        raise UserError(
            f"{source} ({len(content):,} bytes) cannot be read as a PyTorch file: it is damaged, cut short or "
            "something else. Get it again."
        ) from error


def _read_archive(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Refused("its parts are compressed, which torch.save never does")
        # Entries that overlap could be many times as long as the file.
        if sum(entry.file_size for entry in entries) > len(content) or len({*archive.namelist()}) < len(entries):
            raise ValueError("entries that overlap")
        (root,) = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise Refused(BIG_ENDIAN)
        saved, storages = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))
        for key, storage in storages.items():
            storage.data = archive.read(f"{root}data/{key}")  # checks the checksum
            if len(storage.data) != storage.nbytes:
                raise ValueError("a storage of another length")
    return saved


def _read_older(content: bytes) -> Any:
    file = io.BytesIO(content)
    for expected in (MAGIC_NUMBER, OLDER_VERSION):
        if unpickle(file)[0] != expected:
            raise ValueError("another format")
    if unpickle(file)[0]["little_endian"] is not True:
        raise Refused(BIG_ENDIAN)
    saved, storages = unpickle(file)
    keys, _ = unpickle(file)
    if sorted(keys) != sorted(storages):
        raise ValueError("storages that do not agree with the tensors")
    position, view = file.tell(), memoryview(content)
    for key in keys:
        storage = storages[key]
        start, position = position + 8, position + 8 + storage.nbytes
        storage.data = view[start:position]
        if view[start - 8 : start] != storage.length.to_bytes(8, "little") or len(storage.data) != storage.nbytes:
            raise ValueError("a storage of another length")
    if position != len(content):
        raise ValueError("more than the storages")
    return saved

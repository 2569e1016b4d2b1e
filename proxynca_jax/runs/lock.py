"""One run, one writer: a lock on the run's folder, which the kernel releases when the process dies."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from proxynca_jax.errors import UserError
from proxynca_jax.machine import processes

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"  # stays in the folder: deleting it would let two processes lock two files of this name


@contextlib.contextmanager
def only_writer(
    run: pathlib.Path, *, doing: str = "trained", option: str = "--run", among_others: bool = False
) -> Iterator[None]:
    """Holds the lock of a run or of an index. Of several processes that train together, only the first one does.

    Args:
        run: its folder.
        doing: what the writer does, for the error.
        option: by which another folder is chosen, for the error.
        among_others: share the lock with others that say so.

    Raises:
        UserError: another process holds the lock.
    """
    if fcntl is None or not processes.is_first():
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"cannot write in {run}: {error.strerror}. Nothing was changed.") from error
    with file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if among_others else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{run} is being {doing} by {_holder(run)}. Wait for its end or stop it, or choose another {option}."
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "started": now}) + "\n")
        file.flush()
        yield


def _holder(run: pathlib.Path) -> str:
    try:
        holder = json.loads((run / LOCK).read_text())
        return f"process {holder['process']} on {holder['host']}, started {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
        return "another process"

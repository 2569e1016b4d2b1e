"""Signals that ask a command to stop, from its first moment on. This module imports nothing heavy."""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
CLOSED_OUTPUT = 13  # the number of SIGPIPE, which Windows lacks: the reader of the output has gone

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(Exception):
    """The user or the scheduler asked the command to stop. `number` is the signal's; a shell reports 128 more."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.number = int(number)


def install(handler: Handler) -> dict[int, Any]:
    """Installs a handler for all signals of `STOPPING`. Returns those before, for `restore`.

    Ignored signals stay ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT for programs in the background.
    """
    before = {number: signal.getsignal(number) for number in STOPPING}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def restore(before: dict[int, Any]) -> None:
    """Undoes `install`."""
    for number, handler in before.items():
        signal.signal(number, handler)


def say(text: str) -> None:
    """Writes a line on standard error. A handler may call it in the middle of any other output."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def leave_at_once(number: int, _: FrameType | None) -> None:
    """A handler that ends the process. An exception would not do: imports catch some, and threads keep running."""
    say(f"stopped at once by {signal.Signals(number).name}")
    os._exit(128 + number)


def interrupt(number: int, _: FrameType | None) -> None:
    """A handler that raises `Interrupted`. The next signal acts at once."""
    install(leave_at_once)
    say(f"stopped by {signal.Signals(number).name}")
    raise Interrupted(number)


def start_command() -> None:
    """Prepares for signals and closed pipes. A command calls it before its imports, which take seconds."""
    install(leave_at_once)
    atexit.register(_flush)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(128 + CLOSED_OUTPUT)
    except OSError as error:
        say(f"error: cannot write the output: {error.strerror}.")
        os._exit(1)

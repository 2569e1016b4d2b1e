"""Hides what Orbax logs and what Python says of the reads and writes that it abandons: its errors become ours."""

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator

from absl import logging

WAIT_SECONDS = 20.0  # for a thread that goes on although the rest has failed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides absl's log lines of the block and of threads that run meanwhile: Orbax logs each error with a traceback."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def end_abandoned() -> None:
    """Waits for the threads that Orbax leaves behind after an error, which still write, and collects their futures.

    When those are collected later, Python prints each.
    """
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, WAIT_SECONDS)  # Orbax's own `join` raises the thread's error
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = hook

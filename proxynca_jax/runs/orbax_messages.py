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
    """Hides absl's log lines of the block and of threads that run meanwhile: Orbax logs each error with a traceback.

    It also hides errors without an object, which only native code reports: TensorStore, if a write ends after its loop.
    """
    level, hook = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = lambda about: None if about.object is None else hook(about)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        sys.unraisablehook = hook


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

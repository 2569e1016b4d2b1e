"""Which way this process computes the networks on a CPU: by oneDNN, or by XLA alone. Results agree up to rounding."""

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax

from proxynca_jax.onednn import probe
from proxynca_jax.onednn.library import Unavailable, register

VARIABLE = "PROXYNCA_ONEDNN"  # 0 turns it off

_lock = threading.Lock()
_allowed = contextvars.ContextVar("allowed", default=True)


class Way(NamedTuple):
    """How a network is computed."""

    name: str  # of the library, with its version; records contain it
    onednn: bool
    hint: str | None  # for the user: what would be faster, and why it is not used


def way() -> Way:
    """Finds and tests oneDNN at the first call. A failure is no error: XLA computes the same, only slower."""
    with _lock:  # programs are traced in several threads
        return _find()


@functools.cache
def _find() -> Way:
    if jax.default_backend() != "cpu":
        return Way("XLA", False, None)
    if os.environ.get(VARIABLE) == "0":
        return Way("XLA", False, f"convolutions run without oneDNN, because {VARIABLE}=0")
    try:
        version = register()
        probe.check()
    except Unavailable as reason:
        return Way("XLA", False, f"convolutions would be faster with oneDNN; {reason}")
    return Way(f"oneDNN ({version})", True, None)


def uses_onednn() -> bool:
    """Returns whether the operation that is being traced should be oneDNN's."""
    return _allowed.get() and way().onednn


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Traces programs for other machines: inside of the block operations are XLA's own."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)

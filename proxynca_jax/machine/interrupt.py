"""Graceful stop on Ctrl-C or SIGTERM: a run stops after its current step and loses no work."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """The user or the scheduler asked the run to stop."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], None]]:
    """Yields a function that raises `Interrupted` once SIGINT or SIGTERM has arrived. A second signal acts at once.

    With several processes, a signal to any of them stops all of them, at the same call of the function.
    """
    if jax.distributed.is_initialized():
        with _stop_together() as check:
            yield check
        return

    arrived = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(*_: object) -> None:
        nonlocal arrived
        arrived = True
        restore()

    def check() -> None:
        if arrived:
            raise Interrupted

    for number in before:
        signal.signal(number, note)
    try:
        yield check
    finally:
        restore()


@contextlib.contextmanager
def _stop_together() -> Iterator[Callable[[], None]]:
    """`stop_on_signal` for several processes. All of them must call the function equally often."""
    # JAX catches SIGTERM after jax.distributed.initialize(). It notifies the other processes and picks a call that no
    # process has reached yet. It does not catch Ctrl-C.
    calls = itertools.count()

    def check() -> None:
        if multihost_utils.reached_preemption_sync_point(next(calls)):
            raise Interrupted

    def forward_as_sigterm(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, forward_as_sigterm)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def never() -> None:
    """A check that never raises, for callers that nothing can interrupt."""

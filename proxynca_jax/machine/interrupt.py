"""Ctrl-C and SIGTERM as a request to stop at the next step, so that nothing already computed is lost."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """The user, or the scheduler, asked the run to stop."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], None]]:
    """Yields a function that raises `Interrupted` once SIGINT or SIGTERM has arrived. A second one acts at once.

    Many processes stop at the same call of it, a moment after the signal has reached any of them.
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
    """The same for many processes, which have to call the function equally often."""
    # SIGTERM is left to JAX, which catches it from jax.distributed.initialize() on, tells the other processes, and
    # settles on the call that none of them has made yet. It knows nothing of Ctrl-C.
    calls = itertools.count()

    def check() -> None:
        if multihost_utils.reached_preemption_sync_point(next(calls)):
            raise Interrupted

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def never() -> None:
    """Stands in for the check where nothing can ask to stop."""

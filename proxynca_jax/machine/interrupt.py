"""Graceful stop on Ctrl-C, SIGTERM or SIGHUP: a run stops after its current step and loses no work."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from proxynca_jax.machine.output import fault
from proxynca_jax.machine.signals import CLOSED_OUTPUT, STOPPING, Interrupted, install, leave_at_once, restore, say


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], None]]:
    """Yields a function that raises `Interrupted` once a signal of `STOPPING` has arrived. A second acts at once.

    With several processes, a signal to any of them stops all of them, at the same call of the function.
    """
    if jax.distributed.is_initialized():
        with _stop_together() as check:
            yield check
        return

    arrived: int | None = None

    def note(number: int, _: FrameType | None) -> None:
        nonlocal arrived
        arrived = number
        install(leave_at_once)
        say(f"{signal.Signals(number).name}: stopping soon, nothing is lost; a second signal stops at once")

    def check() -> None:
        if arrived is not None:
            raise Interrupted(arrived)
        if fault():
            raise Interrupted(CLOSED_OUTPUT)

    before = install(note)
    try:
        yield check
    finally:
        restore(before)


@contextlib.contextmanager
def _stop_together() -> Iterator[Callable[[], None]]:
    """`stop_on_signal` for several processes. All of them must call the function equally often."""
    # JAX catches SIGTERM after jax.distributed.initialize(). It notifies the other processes and picks a call that no
    # process has reached yet. It does not catch the others.
    calls = itertools.count()

    def check() -> None:
        if multihost_utils.reached_preemption_sync_point(next(calls)):
            raise Interrupted

    def forward_as_sigterm(_number: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, leave_at_once)
        os.kill(os.getpid(), signal.SIGTERM)

    caught = [number for number in STOPPING if number != signal.SIGTERM and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward_as_sigterm) for number in caught}
    try:
        yield check
    finally:
        restore(before)


def never() -> None:
    """A check that never raises, for callers that nothing can interrupt."""

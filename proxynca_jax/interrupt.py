"""Ctrl-C and SIGTERM as a request to stop at the next step, so that nothing already computed is lost."""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Interrupted(Exception):
    """The user, or the scheduler, asked the run to stop."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], None]]:
    """Yields a function that raises `Interrupted` once SIGINT or SIGTERM has arrived. A second one acts at once."""
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


def never() -> None:
    """Stands in for the check where nothing can ask to stop."""

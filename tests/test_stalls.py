"""Input stalls: the time in which the device waits for data, measured with a fake clock."""

import threading
import types

import pytest

from proxynca_jax.machine import progress
from proxynca_jax.machine.progress import Stalls


class Computation:
    """A fake device array that is being computed until `finish` is called."""

    def __init__(self):
        self._finished = threading.Event()

    def block_until_ready(self):
        self._finished.wait()

    def finish(self, watched: Stalls):
        self._finished.set()
        watched._watcher.submit(int).result()  # the watcher has one thread, so it has seen this computation finish


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize(
    ("compute_seconds", "load_seconds", "stalled"),
    [
        (2.0, 5.0, 3.0),  # the device finishes 2 seconds into a wait of 5
        (5.0, 2.0, 0.0),  # the batch arrives before the device finishes
        (0.0, 5.0, 5.0),
    ],
)
def test_waits_count_only_while_the_device_is_idle(clock, compute_seconds, load_seconds, stalled):
    def load():
        clock.now += 7  # nothing to compute yet
        yield 0
        for number in (1, 2):
            clock.now += min(compute_seconds, load_seconds)
            if compute_seconds <= load_seconds:
                computing.finish(watched)
            clock.now += max(load_seconds - compute_seconds, 0)
            yield number

    seen = []
    with Stalls() as watched:
        for batch in watched.waiting(load()):
            seen.append(batch)
            if seen[1:] and compute_seconds > load_seconds:
                clock.now += compute_seconds - load_seconds
                computing.finish(watched)
            computing = Computation()
            watched.computing(computing)
        computing.finish(watched)
    assert seen == [0, 1, 2]
    assert watched.seconds == pytest.approx(7 + 2 * stalled)


def test_idle_device_during_the_loops_own_work_is_no_stall(clock):
    def load():
        yield 0
        clock.now += 1
        yield 1

    with Stalls() as watched:
        batches = watched.waiting(load())
        next(batches)
        computing = Computation()
        watched.computing(computing)
        clock.now += 2
        computing.finish(watched)
        clock.now += 4  # the loop's own time
        next(batches)
        assert watched.seconds == pytest.approx(1)

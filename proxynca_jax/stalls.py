"""How long the device stands still because the next batch is not there yet."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Stalls:
    """Counts the seconds for which a loop waits for a batch and the device for the loop.

    The loop runs ahead of the device, so its own waiting is no loss as long as the device has work. A thread notes when
    the device has finished the last step.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._watcher = ThreadPoolExecutor(1, "stalls")
        self._finished: Future[float] | None = None  # when the last step was; None: there was none yet

    def __enter__(self) -> "Stalls":
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown(cancel_futures=True)

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; each wait for one is counted as far as the device waits, too."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._finished is None:
                self.seconds += time.perf_counter() - start
            elif self._finished.done():
                self.seconds += time.perf_counter() - max(start, self._finished.result())
            yield batch

    def computing(self, result: Any) -> None:
        """Tells the array that the device computes last of all that it was given."""
        self._finished = self._watcher.submit(_finish, result)


def _finish(result: Any) -> float:
    result.block_until_ready()
    return time.perf_counter()

"""Progress of a pass over images: a bar or lines, its speed, and how long the device waits for data."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """A pass over images: a bar with images/s and the time left on a terminal, plain lines elsewhere."""

    def __init__(self, description: str, *, images: int, done: int = 0):
        """Args:
        description: what the pass does.
        images: how many it will have seen at its end.
        done: how many of them an interrupted pass had seen before.
        """
        self._description, self._images, self._done, self._before = description, images, done, done
        self._start = time.perf_counter()
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=images, initial=done, desc=description, unit="img", leave=False, disable=hidden)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, images: int) -> None:
        """Counts a batch; one that is filled up past the last image counts as far as there are images."""
        images = min(images, self._images - self._done)
        self._done += images
        self._bar.update(images)

    def show(self, text: str) -> None:
        """Shows how the pass goes, beside the bar or as a line."""
        if self._bar.disable:
            pace = f"{self.images_per_second():.1f} img/s"
            print(f"{self._description}  {self._done}/{self._images} images  {pace}  {text}", flush=True)
        else:
            self._bar.set_postfix_str(text)

    def seconds(self) -> float:
        """Seconds since the pass began or continued."""
        return time.perf_counter() - self._start

    def images_per_second(self) -> float:
        """Speed since the pass began or continued."""
        return (self._done - self._before) / self.seconds()


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

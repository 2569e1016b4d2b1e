"""Progress bar and throughput of a pass over images, and the time the device waits for data."""

import datetime
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from proxynca_jax.machine.output import print_line

T = TypeVar("T")


class Progress:
    """Shows the progress of a pass over images: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self,
        description: str,
        *,
        images: int,
        done: int = 0,
        shown: bool = True,
        later: tuple[int, float] | None = None,
    ):
        """Args:
        description: what the pass does.
        images: number of images in the whole pass.
        done: number of images that an interrupted pass has already processed.
        shown: whether there is a bar, on a terminal.
        later: what comes after this pass: images, which are assumed to be as fast, and seconds of other work. None:
            nothing is known about it.
        """
        self._description, self._images, self._done, self._before = description, images, done, done
        self._later = later
        self._start = time.perf_counter()
        hidden = not (shown and sys.stderr.isatty())
        self._bar = tqdm(total=images, initial=done, desc=description, unit="img", leave=False, disable=hidden)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, images: int) -> None:
        """Counts a batch. The padding of a last batch does not count."""
        images = min(images, self._images - self._done)
        self._done += images
        self._bar.update(images)

    def show(self, text: str) -> None:
        """Shows a text, such as the current loss: next to the bar, or in a line of its own."""
        if self._bar.disable:
            pace = f"{self.images_per_second():.1f} img/s"
            left = f"  left: epoch {self._left((0, 0.0))}, run {self._left(self._later)}" if self._later else ""
            print_line(f"{self._description}  {self._done}/{self._images} images  {pace}  {text}{left}")
        else:  # the bar itself shows the time left for the pass
            self._bar.set_postfix_str(f"{text}  run: {self._left(self._later)} left" if self._later else text)

    def _left(self, later: tuple[int, float]) -> str:
        """The time left, as `0:12:34`, for this pass and what comes later."""
        pace = self.images_per_second()
        if not pace:
            return "?"
        images, seconds = later
        return str(datetime.timedelta(seconds=round((self._images - self._done + images) / pace + seconds)))

    def seconds(self) -> float:
        """Returns the seconds since this process began or resumed the pass."""
        return time.perf_counter() - self._start

    def images_per_second(self) -> float:
        """Returns the throughput since this process began or resumed the pass."""
        return (self._done - self._before) / self.seconds()


class Stalls:
    """Measures input stalls: the seconds in which the loop waits for a batch and the device is idle.

    The loop runs ahead of the device, so its waits cost nothing while the device has work. A thread records when the
    device finishes the last step.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._watcher = ThreadPoolExecutor(1, "stalls")
        self._finished: Future[float] | None = None  # the time when the last step finished; None before the first step

    def __enter__(self) -> "Stalls":
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown(cancel_futures=True)

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the same batches, and adds to `seconds` the time that the device spends waiting for each."""
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
        """Registers the array that the device will finish last."""
        self._finished = self._watcher.submit(_finish, result)


def _finish(result: Any) -> float:
    result.block_until_ready()
    return time.perf_counter()

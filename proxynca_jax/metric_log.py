"""What a run tells: lines for people, a record per evaluation for programs, and a bar on a terminal."""

import json
import pathlib
import sys
import time
from typing import Any

from tqdm import tqdm

from proxynca_jax.atomic_file import replace_file

Record = dict[str, Any]  # numbers, and a few names


class MetricLog:
    """Writes `log.txt` and `metrics.jsonl` into a run's folder, and lines to standard output."""

    def __init__(self, folder: pathlib.Path, *, writes: bool = True):
        """Args:
        folder: the run's.
        writes: whether to change the files; if not, new records are only remembered.
        """
        self._text = folder / "log.txt"
        self._path = folder / "metrics.jsonl"
        self._writes = writes
        self._records = self._read()

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one, and keeps it in `log.txt`."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if self._writes:
            with self._text.open("a") as file:
                file.write(text + "\n")

    def records(self) -> list[Record]:
        """The records so far, oldest first. A last one that was cut short in writing does not count."""
        return list(self._records)

    def record(self, record: Record) -> None:
        """Appends a record to `metrics.jsonl`."""
        self._records.append(record)
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def keep_records_until(self, step: int) -> None:
        """Drops the records of steps after `step`, which a run that continues from `step` will write again."""
        self._records = [record for record in self._records if record["step"] <= step]
        if self._writes:
            replace_file(self._path, "".join(json.dumps(record) + "\n" for record in self._records).encode())

    def _read(self) -> list[Record]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


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


def describe_scores(record: Record) -> str:
    """The scores of a record as one line, in percent: `R@1 52.63  R@2 64.10  NMI 60.64`."""
    names = [name for name in record if name.startswith("recall_at_") or name == "nmi"]
    return "  ".join(f"{name.replace('recall_at_', 'R@').upper()} {record[name]:.2f}" for name in names)

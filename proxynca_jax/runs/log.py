"""A run's log files: lines of text in `log.txt`, and one JSON record per evaluation in `metrics.jsonl`."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import append_line, replace_file
from proxynca_jax.machine.output import print_line, printable

Record = dict[str, Any]  # scores and times of one evaluation, and a few names


class MetricLog:
    """Writes `log.txt` and `metrics.jsonl` in a run's folder. Prints the lines of `log.txt`, too."""

    def __init__(self, folder: pathlib.Path, *, writes: bool = True):
        """Args:
        folder: of the run.
        writes: whether to write the files. If not, new records are kept in memory only.

        Raises:
            UserError: if `metrics.jsonl` is damaged.
        """
        self.folder = folder
        self._text = folder / "log.txt"
        self._path = folder / "metrics.jsonl"
        self._writes = writes
        try:
            self._records = [json.loads(line) for line in _whole_lines(self._path)]
        except ValueError as error:
            raise UserError(f"{self._path} is damaged: {error}.") from error
        self._earlier = set(_whole_lines(self._text))  # of a run that continues

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one, and appends it to `log.txt`.

        A run that continues says some of its first lines again. Those are printed only.

        Raises:
            UserError: if the file cannot be written.
        """
        text = printable(text)
        print_line(text)
        if self._writes and text not in self._earlier:
            append_line(self._text, text)

    def records(self) -> list[Record]:
        """Returns the records so far, oldest first. An incomplete last line is ignored."""
        return list(self._records)

    def record(self, record: Record) -> None:
        """Appends a record to `metrics.jsonl`.

        Raises:
            UserError: if the file cannot be written.
        """
        self._records.append(record)
        self._earlier.clear()
        if self._writes:
            append_line(self._path, json.dumps(record))

    def keep_records_until(self, step: int, describe: Callable[[Record], str]) -> None:
        """Deletes the records of steps after `step`, and their lines. A run that resumes writes them again.

        Args:
            step: where the run resumes.
            describe: returns the line of a record in `log.txt`.

        Raises:
            UserError: if the files cannot be written.
        """
        kept = [record for record in self._records if record["step"] <= step]
        again = {printable(describe(record)) for record in self._records if record["step"] > step}
        self._records = kept
        if not self._writes:
            return
        if again:  # the lines first: without the records, nobody would know them
            lines = [line for line in _whole_lines(self._text) if line not in again]
            replace_file(self._text, "".join(f"{line}\n" for line in lines).encode())
        replace_file(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Reads a file's lines, without an incomplete last one. A file that is not there has none."""
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []

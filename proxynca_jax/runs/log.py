"""A run's log files: lines of text in `log.txt`, and one JSON record per evaluation in `metrics.jsonl`."""

import json
import pathlib
from typing import Any

from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replace_file
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
        self._records = self._read()

    def line(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one, and appends it to `log.txt`."""
        text = printable(text)
        print_line(text)
        if self._writes:
            with self._text.open("a") as file:
                file.write(text + "\n")

    def records(self) -> list[Record]:
        """Returns the records so far, oldest first. An incomplete last line is ignored."""
        return list(self._records)

    def record(self, record: Record) -> None:
        """Appends a record to `metrics.jsonl`."""
        self._records.append(record)
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def keep_records_until(self, step: int) -> None:
        """Deletes the records of steps after `step`. A run that resumes from `step` will write them again."""
        self._records = [record for record in self._records if record["step"] <= step]
        if self._writes:
            replace_file(self._path, "".join(json.dumps(record) + "\n" for record in self._records).encode())

    def _read(self) -> list[Record]:
        if not self._path.exists():
            return []
        try:
            lines = self._path.read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise UserError(f"{self._path} is damaged: {error}.") from error

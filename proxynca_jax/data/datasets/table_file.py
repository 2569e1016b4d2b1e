"""Reads columns of a CSV or Parquet file as text, with the place of each row for errors."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from proxynca_jax.errors import UserError

SUFFIXES = (".csv", ".parquet")
ENCODING = "A CSV file must be UTF-8 text, with commas between values."
FAULTS_SHOWN = 5


class TableFile(NamedTuple):
    """A table as text. N rows; spaces around a value are dropped, and an empty cell is an empty string."""

    path: Path
    unit: str  # what `places` counts, from 1: "line" of a CSV file, "row" of a Parquet file
    places: Sequence[int]  # N; a row of a CSV file may have several lines, of which this is the first
    header: str  # where the names of the columns are
    names: Sequence[str]  # of all columns of the file
    columns: dict[str, list[str]]  # N values each: those of the wanted columns that the file has

    def refuse(self, faults: Iterable[tuple[int, str]]) -> None:
        """Raises a UserError that lists the first faults, if there are any. A fault is an index of a row and a text."""
        found = list(faults)
        if not found:
            return
        lines = [f"{self.unit} {self.places[row]}: {text}" for row, text in found[:FAULTS_SHOWN]]
        if len(found) > FAULTS_SHOWN:
            lines.append(f"and {len(found) - FAULTS_SHOWN:,} more")
        count = f"{len(found):,} faults" if len(found) > 1 else "1 fault"
        raise UserError("\n  ".join([f"{self.path} has {count}:", *lines]))


def read_table(path: Path, wanted: Sequence[str]) -> TableFile:
    """Reads some columns of a table.

    Args:
        path: The file; its suffix says whether it is CSV or Parquet.
        wanted: Names of the columns to read. The file need not have all of them.

    Raises:
        UserError: If the suffix is another one, the file cannot be read, it has no rows, two of its columns have the
            same name, or a value is no text and no number.
    """
    readers = dict(zip(SUFFIXES, (_read_csv, _read_parquet), strict=True))
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(f"data.root is {str(path)!r}; the name of a table's file must end in {' or '.join(SUFFIXES)}.")
    table = readers[suffix](path, wanted)
    if not table.places:
        raise UserError(f"{path} has a header and no rows; each image needs a row.")
    return table


def _require_distinct(names: Sequence[str], where: str) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: several columns are named {twice[0]!r}. Rename or remove all but one of them.")


def _read_csv(path: Path, wanted: Sequence[str]) -> TableFile:
    # The module csv instead of pyarrow.csv: it knows the line, also if a quoted value contains line breaks.
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    places: list[int] = []
    first = 1  # line of the next row
    try:
        for cells in reader:
            if cells:  # not an empty line
                rows.append(cells)
                places.append(first)
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {first}: {error}. {ENCODING}") from error
    if not rows:
        raise UserError(f"{path} is empty; its first line must name the columns.")
    names = [name.strip() for name in rows.pop(0)]
    header = f"{path}, line {places.pop(0)}"
    _require_distinct(names, header)
    table = TableFile(path, "line", places, header, names, {})
    table.refuse(
        (row, f"{len(cells)} values, required are {len(names)}, one for each column of the header")
        for row, cells in enumerate(rows)
        if len(cells) != len(names)
    )
    for name in set(wanted) & set(names):
        index = names.index(name)
        table.columns[name] = [cells[index].strip() for cells in rows]
    return table


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # Excel writes a byte-order mark
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = len((error.object[: error.start] + b".").splitlines())
        found = f"the byte {error.object[error.start]:#04x} is not UTF-8"
        raise UserError(f"{path}, line {line}: {found}. {ENCODING} Save it as such.") from error


def _read_parquet(path: Path, wanted: Sequence[str]) -> TableFile:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _require_distinct(names, str(path))
            content = file.read([name for name in names if name in wanted])
            rows = file.metadata.num_rows
        columns = {name: _as_text(content.column(name), f"{path}, column {name!r}") for name in content.column_names}
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # Arrow raises any of them for a damaged file
        raise UserError(f"{path} cannot be read as a Parquet file: {error}. Write it again.") from error
    return TableFile(path, "row", range(1, rows + 1), str(path), names, columns)


def _as_text(column: pa.ChunkedArray, where: str) -> list[str]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(check(kind) for check in checks):
        raise UserError(f"{where}: its type is {kind}; it must be text or numbers. Convert the column.")
    # Pandas writes the empty cells of a column of numbers as NaN, the only value that differs from itself.
    return ["" if value is None or value != value else str(value).strip() for value in column.to_pylist()]

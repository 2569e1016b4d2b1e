"""Tables of text for a terminal."""

from collections.abc import Sequence

LINE = 110  # characters, where notes are wrapped
NONE = "–"  # a cell without a value


def align(table: Sequence[Sequence[str]]) -> str:
    """Formats a table. The first column is left-aligned, the others right-aligned; a row of one cell is a heading.

    Args:
        table: rows of cells. A row may be shorter than the others.
    """
    widths = [max(map(len, column)) for column in zip(*(line for line in table if len(line) > 1), strict=True)]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False))]
        for line in table
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)

"""Errors that the user can correct. Commands print their message without a traceback and exit with status 1."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Something that only the user can mend. The message says what was found, what is required and what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Lists the valid names for an error message, the one most like `name` first."""
    valid = sorted(valid)
    guess = difflib.get_close_matches(name, valid, n=1)
    return f"{f'did you mean {guess[0]!r}? ' if guess else ''}Valid names: {', '.join(valid)}."


def look_up(table: Mapping[str, T], name: str, field: str) -> T:
    """Finds the row of a table that a field of the configuration names.

    Raises:
        UserError: if there is none. It lists the names that the table has.
    """
    if name not in table:
        raise UserError(f"{field} is {name!r}: {nearest(name, table)}")
    return table[name]

"""Errors that the user can correct. Commands print their message without a traceback and exit with status 1."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that only the user can mend. The message says what was found, what is required and what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Lists the valid names for an error message, the one most like `name` first."""
    valid = sorted(valid)
    guess = difflib.get_close_matches(name, valid, n=1)
    return f"{f'did you mean {guess[0]!r}? ' if guess else ''}Valid names: {', '.join(valid)}."

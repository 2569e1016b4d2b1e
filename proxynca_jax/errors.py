"""How a mistake of the user's reaches the user: one message, no traceback, exit status 1."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something that only the user can mend. The message says what was found, what is required and what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Lists the valid names for an error message, the one most like `name` first."""
    valid = sorted(valid)
    guess = difflib.get_close_matches(name, valid, n=1)
    return f"{f'did you mean {guess[0]!r}? ' if guess else ''}Valid names: {', '.join(valid)}."


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` inside the block into its message on standard error and exit status 1."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")

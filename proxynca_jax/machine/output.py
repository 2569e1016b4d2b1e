"""Lines on standard output: text of any origin made printable, and output whose reader has gone."""

import os
import sys
import unicodedata

from tqdm import tqdm

_fault: OSError | None = None  # why nothing can be printed any more


def printable(text: str) -> str:
    r"""Returns the text with control characters escaped, as in `\x1b`. Line ends and tabs stay.

    A file or a class may be named with any characters. Raw, some of them would change the terminal.
    """
    return "".join(_escaped(sign) if unicodedata.category(sign) in ("Cc", "Cf", "Cs") else sign for sign in text)


def _escaped(sign: str) -> str:
    return sign if sign in "\n\t" else sign.encode("unicode_escape").decode()


def print_line(text: str) -> None:
    """Prints a line above the progress bar if there is one. Once the output cannot be written, prints nothing."""
    if _fault:
        return
    try:
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        close(error)


def close(error: OSError) -> None:
    """Sends what is still printed nowhere. Otherwise Python would fail again when it flushes at its end."""
    global _fault
    _fault = error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def fault() -> OSError | None:
    """Returns why standard output cannot be written: its reader has gone, or the disk is full. None: it can."""
    return _fault

"""Start-up and error exits that all commands share."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from absl import logging
from PIL.Image import DecompressionBombWarning
from tqdm import tqdm

from proxynca_jax.errors import UserError
from proxynca_jax.machine import output
from proxynca_jax.machine.compilation_cache import keep_compiled_programs
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.signals import CLOSED_OUTPUT, Interrupted, install, interrupt, restore
from proxynca_jax.machine.xla_messages import hide_xla_warnings


def prepare_process() -> None:
    """Sets up memory, the cache of compiled programs, and messages. Call it before JAX looks for devices."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    warnings.showwarning = _print_warning
    warnings.simplefilter("ignore", DecompressionBombWarning)  # `transforms` has a limit of its own, an error
    keep_freed_memory()
    keep_compiled_programs()
    hide_xla_warnings()


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning as one line on standard error, above the progress bar if there is one.

    Python's own format adds the file, the line number and the source line, which mean nothing to a user.
    """
    tqdm.write(f"warning: {output.printable(' '.join(str(message).split()))}", file=sys.stderr)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the command if the block raises `UserError`, if a signal stops it, or if nobody reads its output.

    A `UserError` prints its message on standard error and exits with status 1. The status after a signal is 128 and the
    signal's number: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and 141, as of SIGPIPE, without a reader.
    """
    before = install(interrupt)
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {output.printable(str(error))}")
    except Interrupted as stop:
        sys.exit(128 + stop.number)
    except BrokenPipeError:
        output.close()
    finally:
        restore(before)
    if output.is_closed():
        sys.exit(128 + CLOSED_OUTPUT)

"""Start-up and error exits that all commands share."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator

from absl import logging
from PIL.Image import DecompressionBombWarning
from tqdm import tqdm

from proxynca_jax.errors import UserError
from proxynca_jax.machine import output
from proxynca_jax.machine.compilation_cache import drop_broken_entries, keep_compiled_programs
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.signals import CLOSED_OUTPUT, Interrupted, install, interrupt, restore
from proxynca_jax.machine.xla_messages import hide_xla_warnings

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_cache_has_failed = False


def prepare_process() -> None:
    """Sets up memory, the cache of compiled programs, and messages. Call it before JAX looks for devices."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    warnings.showwarning = _print_warning
    sys.unraisablehook = _print_unraisable
    warnings.simplefilter("ignore", DecompressionBombWarning)  # `transforms` has a limit of its own, an error
    keep_freed_memory()
    keep_compiled_programs()
    hide_xla_warnings()


def _print_unraisable(about: "sys.UnraisableHookArgs") -> None:
    """Prints an error that Python cannot raise, except for those of native code, which name no object.

    After a failed write, TensorStore reports in this way each other write that ends later.
    """
    if about.object is not None:
        sys.__unraisablehook__(about)


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning as one line on standard error, above the progress bar if there is one.

    Python's own format adds the file, the line number and the source line, which mean nothing to a user.
    """
    text = " ".join(str(message).split())
    if drop_broken_entries(text):
        # JAX warns for each of some fifty programs. Without the cache a run only compiles again: one line will do.
        global _cache_has_failed
        if _cache_has_failed:
            return
        _cache_has_failed = True
    tqdm.write(f"warning: {output.printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the command if the block raises `UserError`, if a signal stops it, or if its output cannot be written.

    A `UserError` or a full disk prints a message on standard error and exits with status 1. The status after a signal
    is 128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and 141, as of SIGPIPE,
    without a reader.
    """
    before = install(interrupt)
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {output.printable(str(error))}")
    except Interrupted as stop:
        if not output.fault():
            sys.exit(128 + stop.number)
    except OSError as error:
        if error.filename is not None and error.errno in DISK_FAULTS:
            sys.exit(f"error: cannot write {output.printable(str(error.filename))}: {os.strerror(error.errno)}.")
        if not isinstance(error, BrokenPipeError) and error.errno not in DISK_FAULTS:
            raise
        output.close(error)
    finally:
        restore(before)
    if isinstance(fault := output.fault(), BrokenPipeError):
        sys.exit(128 + CLOSED_OUTPUT)
    if fault:
        sys.exit(f"error: cannot write the output: {fault.strerror}. Make room, and give the same command again.")

"""Start-up and error exits that all commands share."""

import contextlib
import sys
from collections.abc import Iterator

from absl import logging

from proxynca_jax.errors import UserError
from proxynca_jax.machine.compilation_cache import keep_compiled_programs
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.interrupt import Interrupted
from proxynca_jax.machine.xla_messages import hide_xla_warnings


def prepare_process() -> None:
    """Sets up memory, the compilation cache and log levels. Call it before JAX looks for devices."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    keep_freed_memory()
    keep_compiled_programs()
    hide_xla_warnings()


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Exits with the message and status 1 on a `UserError` in the block, and with status 130 on an interruption."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted:
        sys.exit(130)

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
    """Settings of the process, before JAX looks for devices: memory, compiled programs on disk, and fewer messages."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs each of its steps
    keep_freed_memory()
    keep_compiled_programs()
    hide_xla_warnings()


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` inside the block into its message on standard error and exit status 1, and an interruption
    into exit status 130.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except Interrupted:
        sys.exit(130)

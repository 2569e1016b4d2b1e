"""What XLA prints between the lines of a command."""

import os

LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 0 prints all, 1 all but information, 2 errors only
OF_JAX = "1"  # what JAX sets when it is imported, unless the user has


def hide_xla_warnings() -> None:
    """Leaves only XLA's errors. On GPUs its warnings are of kernels that it times while it compiles.

    To be called before JAX looks for devices. Another level than JAX's own is the user's choice and stays.
    """
    if os.environ.get(LEVEL, OF_JAX) == OF_JAX:
        os.environ[LEVEL] = "2"

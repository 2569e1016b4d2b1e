"""Hides XLA's warnings."""

import os

LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 0: all messages, 1: warnings and errors, 2: errors
OF_JAX = "1"  # JAX sets this level on import, unless the user has set one


def hide_xla_warnings() -> None:
    """Makes XLA print errors only. On GPUs its warnings are about kernels that it times while it compiles.

    Call it before JAX looks for devices. A level other than JAX's own is the user's choice and stays.
    """
    if os.environ.get(LEVEL, OF_JAX) == OF_JAX:
        os.environ[LEVEL] = "2"

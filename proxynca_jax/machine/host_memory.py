"""Tunes glibc's malloc to reuse freed memory."""

import ctypes
import platform
from importlib.metadata import entry_points

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
GROWTH = 64 << 20  # bytes


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for reuse, instead of returning it to the operating system.

    On a CPU, XLA allocates gigabytes for the intermediate values of every step. By default glibc maps them for each
    step and unmaps them afterwards. Page faults, half a million of them, then take a tenth of the step.

    Call it before JAX starts its threads. Otherwise each thread gets an arena of its own, which is too small for this.
    One arena for all threads slows compilation. So this does nothing if JAX has a plugin for an accelerator, whose
    steps take no memory from glibc. It also does nothing with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc" or entry_points(group="jax_plugins"):
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    library.mallopt(M_TOP_PAD, GROWTH)
    library.mallopt(M_ARENA_MAX, 1)

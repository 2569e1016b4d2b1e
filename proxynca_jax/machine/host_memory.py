"""How this process gets its memory from the operating system."""

import ctypes
import platform
from importlib.metadata import entry_points

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
GROWTH = 64 << 20  # bytes


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, for the next who asks, instead of handing it back.

    XLA asks for the gigabytes of a step's intermediate values anew at each step on a CPU. By default glibc maps them
    then and unmaps them afterwards, and to fault in and clear half a million pages takes a tenth of the step.

    To be called before JAX starts its threads, each of which would otherwise get memory in a region of its own, too
    small for this. That they all share one makes compiling slower, so nothing is done where JAX has a plugin for an
    accelerator, whose steps take their memory elsewhere. Other C libraries are left as they are too.
    """
    if platform.libc_ver()[0] != "glibc" or entry_points(group="jax_plugins"):
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    library.mallopt(M_TOP_PAD, GROWTH)
    library.mallopt(M_ARENA_MAX, 1)

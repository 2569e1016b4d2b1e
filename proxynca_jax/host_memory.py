"""How this process gets its memory from the operating system."""

import ctypes
import platform

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, for the next who asks, instead of handing it back.

    XLA asks for the gigabytes of a step's intermediate values anew at each step on a CPU. By default glibc maps them
    then and unmaps them afterwards, and to fault in and clear half a million pages takes a tenth of the step.

    To be called before JAX starts its threads, each of which would otherwise get memory in a region of its own, too
    small for this. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    library.mallopt(M_ARENA_MAX, 1)

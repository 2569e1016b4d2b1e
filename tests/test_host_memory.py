"""Memory that is freed serves the next who asks."""

import platform
import subprocess
import sys

import pytest

PAGES_ANEW = """
import resource, sys, threading
from proxynca_jax.machine import host_memory

host_memory.entry_points = lambda group: ["cuda"] if "accelerator" in sys.argv else []
if "keep" in sys.argv:
    host_memory.keep_freed_memory()

def fill():
    bytearray(2**28)

def faults(task):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=task)  # as XLA does
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(fill), faults(fill))
"""


def pages(*arguments: str) -> list[int]:
    """How many the first and the second call of a process for the same memory take from Linux."""
    command = [sys.executable, "-c", PAGES_ANEW, *arguments]
    return [int(count) for count in subprocess.check_output(command, text=True).split()]


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")


@needs_glibc
def test_memory_is_not_asked_for_twice() -> None:
    first, second = pages("keep")
    assert second < first / 10


@needs_glibc
@pytest.mark.parametrize("arguments", [(), ("keep", "accelerator")])
def test_memory_is_handed_back_otherwise(arguments) -> None:
    first, second = pages(*arguments)
    assert second > first / 2

"""keep_freed_memory: freed memory is reused instead of being returned to the operating system."""

import platform
import subprocess
import sys

import pytest

COUNT_PAGE_FAULTS = """
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


def page_faults(*arguments: str) -> list[int]:
    """Returns the page faults of a process's first and second allocation of the same size."""
    command = [sys.executable, "-c", COUNT_PAGE_FAULTS, *arguments]
    return [int(count) for count in subprocess.check_output(command, text=True).split()]


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")


@needs_glibc
def test_freed_memory_is_reused() -> None:
    first, second = page_faults("keep")
    assert second < first / 10


@needs_glibc
@pytest.mark.parametrize("arguments", [(), ("keep", "accelerator")])
def test_freed_memory_is_returned_by_default_and_with_an_accelerator(arguments) -> None:
    first, second = page_faults(*arguments)
    assert second > first / 2

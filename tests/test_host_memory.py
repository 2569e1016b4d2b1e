"""Memory that is freed serves the next who asks."""

import platform
import subprocess
import sys

import pytest

PAGES_ANEW = """
import resource, sys, threading
from proxynca_jax.host_memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_memory_is_not_asked_for_twice() -> None:
    def pages(*arguments: str) -> list[int]:
        command = [sys.executable, "-c", PAGES_ANEW, *arguments]
        return [int(count) for count in subprocess.check_output(command, text=True).split()]

    first, second = pages("keep")
    assert second < first / 10
    first, second = pages()
    assert second > first / 2  # or else this function has nothing to do any more

"""A disk that takes no more, for tests that need no rights: a limit on the size of files."""

import contextlib
import resource
from collections.abc import Iterator

FAULT = "File too large"  # what the system says; on a full disk it would be "No space left on device"


@contextlib.contextmanager
def files_of(limit: int) -> Iterator[None]:
    """Inside, no file of this process grows beyond so many bytes. Python ignores the signal that goes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

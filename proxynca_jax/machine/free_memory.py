"""How much memory is free: on a device, and on the host as far as this process may use it."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import psutil

CGROUPS = pathlib.Path("/sys/fs/cgroup")  # where Linux shows the limits of containers and of Slurm's jobs
MEMBERSHIP = pathlib.Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """Names of a version of cgroups. Sizes are in bytes."""

    folder: str  # of the hierarchy, in CGROUPS
    limit: str
    usage: str  # the page cache included
    reclaimable: str  # in memory.stat: the part of the page cache that the kernel gives up first


_VERSION_1 = _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("", "memory.max", "memory.current", "inactive_file")


def free_on_device() -> int | None:
    """Bytes that JAX can still allocate on this process's first device; None if it has no memory of its own."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if statistics else None


def free_on_host() -> int:
    """Bytes that this process can still allocate: what the machine has available or, if less, what its cgroups allow.

    A process that allocates more than its cgroup allows is killed, however much the machine has.
    """
    return min([psutil.virtual_memory().available, *_allowed_by_cgroups()])


def _allowed_by_cgroups() -> Iterator[int]:
    """What each limit leaves: that of the process's cgroup and those of the cgroups around it."""
    with contextlib.suppress(OSError):  # there are no cgroups outside Linux
        for line in MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                files = _VERSION_1 if controllers else _VERSION_2
                hierarchy = CGROUPS / files.folder
                group = hierarchy / path.lstrip("/")
                for folder in (group, *group.parents):
                    if folder.is_relative_to(hierarchy):
                        yield from _allowed_by(folder, files)


def _allowed_by(group: pathlib.Path, files: _Files) -> Iterator[int]:
    # Inside a container the process's own path may be missing; the container's cgroup is then the hierarchy's root.
    with contextlib.suppress(FileNotFoundError):
        limit = (group / files.limit).read_text().strip()
        if limit != "max":
            usage = int((group / files.usage).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield max(0, int(limit) - usage + int(statistics[files.reclaimable]))

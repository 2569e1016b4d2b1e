"""Free memory, on the device and on the host. The host's respects the limits of cgroups."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import psutil

CGROUPS = pathlib.Path("/sys/fs/cgroup")  # Linux shows the limits of containers and of Slurm jobs here
MEMBERSHIP = pathlib.Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """File names in one version of cgroups. The files give sizes in bytes."""

    folder: str  # of the hierarchy, below CGROUPS
    limit: str
    usage: str  # includes the page cache
    reclaimable: str  # key in memory.stat: the part of the page cache that the kernel reclaims first


_VERSION_1 = _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("", "memory.max", "memory.current", "inactive_file")


def free_on_device() -> int | None:
    """Returns the bytes that JAX can still allocate on this process's first device.

    Returns None if the device has no memory of its own.
    """
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if statistics else None


def free_on_host() -> int:
    """Returns the bytes that this process can still allocate on the host.

    That is the machine's free memory or, if it is less, what the limits of the process's cgroups leave.
    Linux kills a process that exceeds its cgroup's limit, even if the machine has free memory.
    """
    return min([psutil.virtual_memory().available, *_allowed_by_cgroups()])


def _allowed_by_cgroups() -> Iterator[int]:
    """Yields the free bytes under each limit: the process's own cgroup and each of its parents."""
    with contextlib.suppress(OSError):  # only Linux has cgroups
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
    # In a container the process's own path may be missing. Then the root of the hierarchy is the container's cgroup.
    with contextlib.suppress(FileNotFoundError):
        limit = (group / files.limit).read_text().strip()
        if limit != "max":
            usage = int((group / files.usage).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield max(0, int(limit) - usage + int(statistics[files.reclaimable]))

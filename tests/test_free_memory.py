"""Free memory: the machine's, unless a limit of the process's cgroup, or of one around it, leaves less."""

import pathlib

import jax
import psutil
import pytest

from proxynca_jax.machine import free_memory
from proxynca_jax.machine.free_memory import free_on_device, free_on_host

UNLIMITED = 2**63 - 4096  # what version 1 calls no limit
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One with 1,000 bytes available, its cgroups' files in a folder."""
    available = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    monkeypatch.setattr(free_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def join(machine: pathlib.Path, membership: str) -> None:
    (machine / "membership").write_text(membership)


def limit(group: pathlib.Path, version: int, limit: int | str, usage: int, inactive: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    limit_file, usage_file, reclaimable = FILES[version]
    (group / limit_file).write_text(f"{limit}\n")
    (group / usage_file).write_text(f"{usage}\n")
    (group / "memory.stat").write_text(f"anon 7\n{reclaimable} {inactive}\n")


def test_without_cgroups_the_machine_counts(machine):
    assert free_on_host() == 1000


def test_version_2_limits_at_every_level(machine):
    join(machine, "0::/job/step\n")
    limit(machine / "cgroup/job/step", 2, "max", 600)
    assert free_on_host() == 1000
    limit(machine / "cgroup/job", 2, 900, 600)
    assert free_on_host() == 300
    limit(machine / "cgroup/job/step", 2, 800, 600)
    assert free_on_host() == 200


def test_version_1_limits_at_every_level(machine):
    join(machine, "8:cpu,cpuacct:/\n4:memory:/job/step\n0::/\n")
    limit(machine / "cgroup/memory/job/step", 1, UNLIMITED, 600)
    assert free_on_host() == 1000
    limit(machine / "cgroup/memory", 1, 900, 600)
    assert free_on_host() == 300


def test_inside_a_container_the_root_counts(machine):
    join(machine, "4:memory:/docker/0123\n")  # a path outside
    limit(machine / "cgroup/memory", 1, 900, 600)
    assert free_on_host() == 300


def test_file_pages_that_the_kernel_can_drop_are_free(machine):
    join(machine, "0::/\n")
    limit(machine / "cgroup", 2, 900, 850, inactive=300)
    assert free_on_host() == 350


def test_a_cgroup_above_its_limit_leaves_nothing(machine):
    join(machine, "0::/\n")
    limit(machine / "cgroup", 2, 900, 901)
    assert free_on_host() == 0


def test_this_machine_has_memory():
    assert 0 < free_on_host() <= psutil.virtual_memory().total
    assert free_on_device() is None  # a CPU's is the host's


def test_a_device_has_what_is_not_in_use(monkeypatch):
    class Accelerator:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 900, "bytes_in_use": 600}

    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator()])
    assert free_on_device() == 300

"""Free memory: that of the machine, or what the limits of the process's cgroup and its parents leave, if less."""

import pathlib

import jax
import psutil
import pytest

from proxynca_jax.machine import free_memory
from proxynca_jax.machine.free_memory import free_on_device, free_on_host

UNLIMITED = 2**63 - 4096  # version 1's value for no limit
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A fake machine with 1,000 bytes available and the files of its cgroups in a temporary folder."""
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


def test_without_cgroups_the_machines_memory_is_free(machine):
    assert free_on_host() == 1000


def test_version_2_limits_apply_at_every_level(machine):
    join(machine, "0::/job/step\n")
    limit(machine / "cgroup/job/step", 2, "max", 600)
    assert free_on_host() == 1000
    limit(machine / "cgroup/job", 2, 900, 600)
    assert free_on_host() == 300
    limit(machine / "cgroup/job/step", 2, 800, 600)
    assert free_on_host() == 200


def test_version_1_limits_apply_at_every_level(machine):
    join(machine, "8:cpu,cpuacct:/\n4:memory:/job/step\n0::/\n")
    limit(machine / "cgroup/memory/job/step", 1, UNLIMITED, 600)
    assert free_on_host() == 1000
    limit(machine / "cgroup/memory", 1, 900, 600)
    assert free_on_host() == 300


def test_limit_of_the_root_applies_in_a_container(machine):
    join(machine, "4:memory:/docker/0123\n")  # a path outside the container
    limit(machine / "cgroup/memory", 1, 900, 600)
    assert free_on_host() == 300


def test_reclaimable_page_cache_counts_as_free(machine):
    join(machine, "0::/\n")
    limit(machine / "cgroup", 2, 900, 850, inactive=300)
    assert free_on_host() == 350


def test_cgroup_above_its_limit_has_no_free_memory(machine):
    join(machine, "0::/\n")
    limit(machine / "cgroup", 2, 900, 901)
    assert free_on_host() == 0


def test_this_machine_has_memory():
    assert 0 < free_on_host() <= psutil.virtual_memory().total
    assert free_on_device() is None  # a CPU has no memory of its own


def test_free_on_device_is_limit_minus_use(monkeypatch):
    class Accelerator:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 900, "bytes_in_use": 600}

    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator()])
    assert free_on_device() == 300

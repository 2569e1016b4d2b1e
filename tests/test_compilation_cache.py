"""The persistent compilation cache: reuse, the user's own folder, and folders that cannot be written."""

import os
import pathlib
import subprocess
import sys

PROGRAM = """
import jax
from proxynca_jax.machine.compilation_cache import keep_compiled_programs

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
keep_compiled_programs()
x = jax.jit(lambda key: jax.random.normal(key, (64, 64)) @ jax.random.normal(key, (64,)))(jax.random.key(0))
print(events.count("cache_hits"), events.count("cache_misses"), bytes(x).hex())
"""


def run(*, warned: str = "", **variables: pathlib.Path) -> list[str]:
    """Runs the program. Returns the cache's hits and misses, and the bytes of the result."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment = inherited | {name: str(path) for name, path in variables.items()}
    program = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert program.returncode == 0
    assert warned in program.stderr if warned else not program.stderr
    return program.stdout.split()


def test_second_run_loads_the_program_and_computes_the_same_bits(tmp_path):
    hits, misses, compiled = run(XDG_CACHE_HOME=tmp_path)
    assert hits == "0"
    assert misses != "0"
    assert run(XDG_CACHE_HOME=tmp_path) == [misses, "0", compiled]
    assert [path.name for path in tmp_path.iterdir()] == ["proxynca_jax"]


def test_the_users_cache_folder_takes_precedence(tmp_path):
    run(XDG_CACHE_HOME=tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_every_run_compiles_without_a_writable_folder(tmp_path):
    (tmp_path / "file").touch()
    assert run(XDG_CACHE_HOME=tmp_path / "file", warned="every run compiles again: cannot make")[:2] == ["0", "0"]

"""The persistent compilation cache: reuse, the user's own folder, and folders that cannot be written."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from proxynca_jax.machine.compilation_cache import keep_compiled_programs

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
keep_compiled_programs()
x = jax.jit(lambda key: jax.random.normal(key, (64, 64)) @ jax.random.normal(key, (64,)))(jax.random.key(0))
print(events.count("cache_hits"), events.count("cache_misses"), bytes(x).hex())
"""

# On a GPU this is one CUDA graph.
CONVOLUTIONS = """
import jax
import numpy as np
from proxynca_jax import steps
from proxynca_jax.machine.compilation_cache import keep_compiled_programs

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
keep_compiled_programs()

@jax.jit(compiler_options=steps.compiler_options(jax.default_backend()))
def convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    for _ in range(6):
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout))
    return x

rng = np.random.default_rng(0)
x = convolve(rng.standard_normal((2, 16, 16, 8), np.float32), rng.standard_normal((3, 3, 8, 8), np.float32))
print(events.count("cache_hits"), events.count("cache_misses"), float(x.sum()))
"""


def run(*, program: str = PROGRAM, warned: str = "", **variables: pathlib.Path) -> list[str]:
    """Runs a program. Returns the cache's hits and misses, and the bytes of the result."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment = inherited | {name: str(path) for name, path in variables.items()}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert warned in done.stderr if warned else not done.stderr
    return done.stdout.split()


def test_second_run_loads_the_program_and_computes_the_same_bits(tmp_path):
    hits, misses, compiled = run(XDG_CACHE_HOME=tmp_path)
    assert hits == "0"
    assert misses != "0"
    assert run(XDG_CACHE_HOME=tmp_path) == [misses, "0", compiled]
    assert [path.name for path in tmp_path.iterdir()] == ["proxynca_jax"]


@pytest.mark.gpu
def test_convolutions_run_from_the_cache(tmp_path):
    """cuDNN, which nothing has used yet in the second run, cannot start while a CUDA graph is recorded."""
    _, misses, compiled = run(program=CONVOLUTIONS, XDG_CACHE_HOME=tmp_path)
    assert float(compiled) > 0
    assert run(program=CONVOLUTIONS, XDG_CACHE_HOME=tmp_path) == [misses, "0", compiled]


def test_the_users_cache_folder_takes_precedence(tmp_path):
    run(XDG_CACHE_HOME=tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_every_run_compiles_without_a_writable_folder(tmp_path):
    (tmp_path / "file").touch()
    assert run(XDG_CACHE_HOME=tmp_path / "file", warned="every run compiles again: cannot make")[:2] == ["0", "0"]

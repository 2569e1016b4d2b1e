"""oneDNN in processes of their own: missing parts, crashes, several devices, threads, Ctrl-C and the exit."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_onednn import drawn

from proxynca_jax.models.activation import IDENTITY, RELU
from proxynca_jax.models.convolution import centred_padding
from proxynca_jax.onednn import library, operations
from proxynca_jax.onednn.operations import Window
from proxynca_jax.onednn.way import VARIABLE

PROJECT = pathlib.Path(__file__).parents[1]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


PRINT_WAY = "from proxynca_jax.onednn.way import way; print(way().name, '|', way().hint)"


def test_turned_off():
    done = run_python(PRINT_WAY, **{VARIABLE: "0"})
    assert done.stdout == "XLA | convolutions run without oneDNN, because PROXYNCA_ONEDNN=0\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("sys.platform = 'darwin'", "it is used on Linux with x86-64, and this is darwin"),
        ("library.PACKAGE = 'not-a-package'", "it is not installed: pip install 'proxynca_jax[cpu]'"),
        ("library.TESTED = ('1.0',)", "onednn-cpu-gomp 2023.2.0 was not tested, 1.0 was"),
        ("library.FLAGS = ('--no-such-flag',)", "cannot compile its handlers"),
        ("library.SOURCES = pathlib.Path(folder)", "undefined symbol: convolution"),
        ("os.environ['PATH'] = '/nowhere'; library.FLAGS = ('x',)", "need a C++ compiler once, and there is none"),
    ],
)
def test_missing_parts_are_one_line(change, reason, tmp_path):
    (tmp_path / "empty.cpp").write_text("")
    done = run_python(
        f"""
        import os, pathlib, sys
        from proxynca_jax.onednn import library
        folder = {str(tmp_path)!r}
        os.environ["XDG_CACHE_HOME"] = folder
        {change}
        {PRINT_WAY}
        """
    )
    assert done.stdout.startswith("XLA | convolutions would be faster with oneDNN; "), done.stderr
    assert reason in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_crash_of_the_handlers_is_one_line(tmp_path):
    """They are tested in another process, once."""
    crash = 'extern "C" void* {}(void*) {{ __builtin_trap(); }}\n'
    (tmp_path / "handlers.cpp").write_text("".join(crash.format(name) for name in library.HANDLERS))
    code = f"""
        import os, pathlib
        from proxynca_jax.onednn import library
        library.SOURCES = pathlib.Path({str(tmp_path)!r})
        library.COMPILE_SECONDS = {{seconds}}
        os.environ["XDG_CACHE_HOME"] = {str(tmp_path)!r}
        {PRINT_WAY}
        """
    first = run_python(code.format(seconds=300))
    assert first.stdout.endswith("oneDNN; its handlers ended their test by SIGILL\n"), first.stderr
    again = run_python(code.format(seconds=0))  # so it does not compile
    assert "its handlers ended their test by SIGILL on this machine; to try again, remove /" in again.stdout


DEVICES = """
import jax, sys
sys.path.insert(0, "tests")
from test_onednn_in_processes import on_several_devices
on_several_devices()
"""


DEPTHWISE = Window(1, centred_padding(5), IDENTITY, depthwise=True)


def on_several_devices() -> None:
    """Compares a sharded batch with one device, and looks for gathered activations in the program."""
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    shard, whole = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    x, kernel, depthwise, bias = drawn(8, 12, 12, 16), drawn(32, 3, 3, 16), drawn(5, 5, 1, 32), drawn(32)

    def network(x, kernel, depthwise, bias):
        x = operations.convolution(x, kernel, bias, Window(1, centred_padding(3), RELU))
        x = operations.average_pool(operations.max_pool(2, x))
        x = operations.convolution(x, depthwise, None, DEPTHWISE)
        fixed, centre = jax.lax.stop_gradient((x, bias))
        sums = operations.sums_of_distances(fixed, centre)
        weights = depthwise, bias, operations.fingerprint_of(depthwise)
        images = operations.convolutions_image_by_image(fixed, [weights], [DEPTHWISE], adds_images=True)
        images = operations.convolution(images, depthwise, None, DEPTHWISE, fingerprint=weights[-1])
        return jnp.sum(jnp.square(x)), (images, sums, operations.sums_of_gradients(fixed, fixed, *[centre] * 3, RELU))

    step = jax.jit(jax.value_and_grad(network, (1, 2, 3), has_aux=True))
    weights = jax.device_put((kernel, depthwise, bias), whole)
    sharded = jax.device_put(x, shard), *weights
    program = step.lower(*sharded).compile().as_text()
    assert "all-gather" not in program
    assert "all-reduce" in program
    one = jax.device_put((x, kernel, depthwise, bias), jax.devices()[0])
    for found, expected in zip(jax.tree.leaves(step(*sharded)), jax.tree.leaves(step(*one)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8])
def test_sharded_batch_stays_sharded(count):
    done = run_python(DEVICES, XLA_FLAGS=f"--xla_force_host_platform_device_count={count}")
    assert done.returncode == 0, done.stderr


THREADS = """
import concurrent.futures, jax, numpy as np, sys
sys.path.insert(0, "tests")
from test_onednn import drawn, operations, centred_padding, RELU, Window

@jax.jit
def step(x, kernel, bias):
    window = Window(1, centred_padding(3), RELU)
    fingerprint = operations.fingerprint_of(kernel)
    x = operations.convolution(x, kernel, bias, window, fingerprint=fingerprint)
    weights = kernel, bias, fingerprint
    return operations.convolutions_image_by_image(x, [weights] * 2, [window] * 2, adds_images=True)

inputs = [(drawn(2, 14, 14, 32, seed=seed), drawn(32, 3, 3, 32, seed=seed), drawn(32, seed=seed)) for seed in range(8)]
expected = [np.asarray(step(*each)) for each in inputs]
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for _ in range(20):
        for found, right in zip(pool.map(lambda each: np.asarray(step(*each)), inputs), expected, strict=True):
            np.testing.assert_array_equal(found, right)
"""


@pytest.mark.slow
def test_several_threads():
    done = run_python(THREADS)
    assert done.returncode == 0, done.stderr


PENDING = """
import jax, sys
sys.path.insert(0, "tests")
from test_onednn import drawn, operations, centred_padding, RELU, Window
step = jax.jit(lambda x, kernel, bias: operations.convolution(x, kernel, bias, Window(1, centred_padding(3), RELU)))
x = drawn(16, 56, 56, 64)
arrays = drawn(64, 3, 3, 64), drawn(64)
jax.block_until_ready(step(x, *arrays))
print("ready", flush=True)
for _ in range({count}):
    x = step(x, *arrays)
"""


@pytest.mark.slow
def test_exit_while_a_program_is_pending():
    start = time.monotonic()
    assert run_python(PENDING.format(count=20)).returncode == 0
    assert time.monotonic() - start < 120


@pytest.mark.slow
def test_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-c", PENDING.format(count=10**9)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (1, -signal.SIGINT)
    assert "KeyboardInterrupt" in errors

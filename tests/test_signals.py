"""What ends a command, from its first moment on: signals, a closed pipe, another writer."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from proxynca_jax.errors import UserError
from proxynca_jax.machine import arguments
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.machine.interrupt import Interrupted, stop_on_signal
from proxynca_jax.machine.output import printable
from proxynca_jax.report.summary import median_seconds
from proxynca_jax.runs.lock import only_writer
from proxynca_jax.training_options import parse

MODULES = ("train", "evaluate", "embed", "compare", "neighbours", "bench")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPORTING = """
import os, signal, runpy, sys
from proxynca_jax.machine.signals import start_command
start_command()
os.kill(os.getpid(), signal.{name})
"""
LOCKING = """
import pathlib, sys, time
from proxynca_jax.runs.lock import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _hang_up_is_not_ignored() -> Iterator[None]:
    """The tests may run below `nohup`, which ignores SIGHUP, and children inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_during_imports_ends_the_command_in_one_line(number: signal.Signals):
    program = IMPORTING.format(name=number.name)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (128 + number, f"stopped at once by {number.name}\n")


@pytest.mark.parametrize("module", [*(f"proxynca_jax/{name}.py" for name in MODULES), "convert/__main__.py"])
def test_every_command_starts_with_its_signals(module: str):
    text = pathlib.Path(__file__).parents[1].joinpath(module).read_text()
    first = next(line for line in text.splitlines() if line.startswith(("import ", "from ")))
    assert first == "from proxynca_jax.machine.signals import start_command"


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_the_exit_status(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as raised, exit_on_user_error():
        signal.raise_signal(number)
    assert raised.value.code == 128 + number
    assert capfd.readouterr().err == f"stopped by {number.name}\n"


@pytest.mark.parametrize("number", STOPS)
def test_a_graceful_stop_waits_for_the_check(number: signal.Signals):
    with stop_on_signal() as check:
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as raised:
            check()
    assert raised.value.number == number


def test_the_second_signal_acts_at_once():
    program = "import signal\nfrom proxynca_jax.machine.interrupt import stop_on_signal\nwith stop_on_signal():\n"
    program += "    signal.raise_signal(signal.SIGTERM)\n    signal.raise_signal(signal.SIGINT)\n    print('went on')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.splitlines()[1:] == ["stopped at once by SIGINT"]


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signal() as check:
            signal.raise_signal(signal.SIGHUP)
            check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_goes_ends_the_command_without_a_traceback(tmp_path: pathlib.Path):
    labels = np.arange(60) % 6
    np.savez(tmp_path / "e.npz", embeddings=np.random.default_rng(0).normal(size=(60, 8)), labels=labels)
    words = ["proxynca_jax.evaluate", "--embeddings", str(tmp_path / "e.npz"), "--no-nmi"]
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, "-m", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_help_without_a_reader():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "proxynca_jax", "compare", "--help"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert result.stderr == ""  # argparse itself ignores that its help cannot be written, with status 0


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]):
    assert printable("a\x1b[2Jb\rc\u202ed\udcff\né\t") == "a\\x1b[2Jb\\rc\\u202ed\\udcff\né\t"
    with pytest.raises(SystemExit, match=r"^error: no file \\x1b\[31mred"), exit_on_user_error():
        raise UserError("no file \x1b[31mred")


def test_one_run_has_one_writer(tmp_path: pathlib.Path):
    with subprocess.Popen([sys.executable, "-c", LOCKING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"is being trained by process {other.pid} on .*, started 20"):
            only_writer(tmp_path).__enter__()
        other.kill()  # the kernel releases the lock
        other.wait()
        with only_writer(tmp_path):
            pass


def test_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.path("~/x") == tmp_path / "x"
    assert arguments.path("~nobody-has-this-name/x") == pathlib.Path("~nobody-has-this-name/x")


def test_a_misspelt_switch_is_told_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'evaluation\.nmi'"):
        parse(["--config", "glyphs", "--noconfig.evaluation.nmy"], about="")


def test_an_epoch_that_another_process_trained_has_no_pace():
    scored, whole = ({"epoch": epoch, "recall_at_1": 50.0} for epoch in (0, 1))
    assert median_seconds([scored, whole | {"train_seconds": 3.0}]) == 3
    assert median_seconds([scored]) is None

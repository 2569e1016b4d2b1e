"""What Windows lacks is not needed to start a command, and a setting that needs it says so."""

import os
import pathlib
import subprocess
import sys

import pytest
import trees

from proxynca_jax import train
from proxynca_jax.config import DataConfig, OptimConfig, TrainConfig
from proxynca_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[1]
# Other packages may import these modules on this platform, so only our own imports fail.
PROGRAM = """
import builtins, importlib, pkgutil, signal

UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "array_record"}
OURS = ("proxynca_jax", "convert")

def guarded(name, globals=None, *others, **named):
    importer = (globals or {}).get("__name__", "")
    if name.split(".")[0] in UNIX_ONLY and importer.split(".")[0] in OURS:
        raise ModuleNotFoundError(f"{importer} imports {name} when it starts")
    return original(name, globals, *others, **named)

original, builtins.__import__ = builtins.__import__, guarded
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
for package in map(importlib.import_module, OURS):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_modules_import_without_what_only_unix_has():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name in ("train", "evaluate", "embed", "compare", "bench", "data.cache", "machine.host_memory"):
        assert f"proxynca_jax.{name}\n" in result.stdout
    assert "convert.__main__\n" in result.stdout


def test_a_cache_without_array_record_is_refused_before_the_run_begins(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "array_record", None)
    trees.draw_folder(tmp_path / "tree", classes=4)
    data = DataConfig(dataset="folder", root=str(tmp_path / "tree"), cache=str(tmp_path / "cache"))
    config = TrainConfig(data=data, optim=OptimConfig(batch_size=2))
    with pytest.raises(UserError, match=r"data\.cache is '.*cache', which needs the package array-record.*Windows"):
        train.train(config, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]

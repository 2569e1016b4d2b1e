"""The floors of the package, and that a breach of them is seen."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CHECK = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(root: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", CHECK], cwd=root, env=environment, capture_output=True, text=True)


def test_imports_go_downwards():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "breach", "contract"),
    [
        ("metrics/vectors.py", "import proxynca_jax.runs.log", "know nothing of runs"),
        ("machine/arguments.py", "import proxynca_jax.config", "the machine at the bottom"),
        ("steps.py", "import torch", "PyTorch only in convert"),
    ],
)
def test_a_breach_is_seen(tmp_path, module, breach, contract):
    for folder in ("proxynca_jax", "convert", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "proxynca_jax" / module).open("a") as file:
        file.write(f"\n{breach}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.endswith("BROKEN") and contract in line]

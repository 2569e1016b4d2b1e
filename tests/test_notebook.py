"""The notebook docs/glyphs.md, from training to search, run as a reader would run it."""

import os
import pathlib
import re
import sys

import jupytext
import pytest
from nbclient import NotebookClient

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_the_notebook_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    scripts = pathlib.Path(sys.executable).parent  # has the command `proxynca`
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = jupytext.read(REPOSITORY / "docs" / "glyphs.md")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()

    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "epoch 2: R@1" in printed
    assert "(20, 64)" in printed
    right = re.search(r"(\d+) of 20 queries", printed)
    assert int(right[1]) >= 10
    assert (tmp_path / "neighbours.png").is_file()

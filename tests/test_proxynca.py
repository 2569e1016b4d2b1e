"""The command `proxynca`, its presets, and the package installed from a wheel."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import trees

from proxynca_jax.__main__ import COMMANDS
from proxynca_jax.errors import UserError
from proxynca_jax.training_options import find_preset, presets

REPOSITORY = pathlib.Path(__file__).parents[1]


def run(*words: object, folder: pathlib.Path = REPOSITORY, path: pathlib.Path = REPOSITORY) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of Python with some arguments."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_help_lists_every_command_in_a_line():
    status, out, _ = run("-m", "proxynca_jax", "--help")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_help_without_a_reader_ends_without_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "proxynca_jax", "--help"]
    done = subprocess.run(words, cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_its_options(name):
    status, out, err = run("-m", "proxynca_jax", name, "--help")
    assert (status, err) == (0, "")
    assert "--" in out


def test_an_unknown_command_is_refused_with_the_nearest_name():
    status, _, err = run("-m", "proxynca_jax", "trian")
    assert status == 1
    assert err.startswith("error: 'trian' is no command: did you mean 'train'?")


def test_presets_are_found_by_name_and_files_stay_as_they_are():
    assert set(presets()) == {"cars", "cars_lite0", "cub", "glyphs", "photos", "sop"}
    assert find_preset(["--config", "cars", "--run", "cub"]) == ["--config", str(presets()["cars"]), "--run", "cub"]
    assert find_preset(["--config=cub"]) == [f"--config={presets()['cub']}"]
    for words in (["--config", "configs/cars.py"], ["--config"], ["--config.data.root=cars"]):
        assert find_preset(words) == words
    with pytest.raises(UserError, match=r"--config car is no preset: did you mean 'cars'\?"):
        find_preset(["--config", "car"])


def test_importing_the_training_command_defines_no_global_flags():
    program = (
        "from absl import flags; before = set(flags.FLAGS); import proxynca_jax.train; print(set(flags.FLAGS) - before)"
    )
    status, out, err = run("-c", program)
    assert (status, err) == (0, "")
    assert "'run'" not in out
    assert "'config'" not in out


@pytest.mark.slow
def test_a_wheel_trains_without_a_checkout(tmp_path):
    source = tmp_path / "source"  # pip leaves a folder in it
    for folder in ("proxynca_jax", "convert", "configs"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheels", source]
    status, _, err = run(*words)
    assert status == 0, err
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    status, _, err = run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel)
    assert status == 0, err
    assert (tmp_path / "site" / "proxynca_jax" / "py.typed").exists()
    trees.draw_folder(tmp_path / "images", classes=4, images_per_class=4)
    options = ["--config.data.dataset=folder", f"--config.data.root={tmp_path / 'images'}", "--config.optim.epochs=1"]
    options += ["--config.optim.batch_size=4", "--config.evaluation.batch_size=8", "--config.evaluation.nmi=false"]
    command = ["-m", "proxynca_jax", "train", "--config", "glyphs", "--run", tmp_path / "run", *options]
    status, out, err = run(*command, folder=tmp_path, path=tmp_path / "site")
    assert status == 0, err
    assert "epoch 0  loss" in out

"""A full disk costs one line and no work: every writer leaves nothing half-written, and the run goes on later."""

import contextlib
import pathlib
import pwd
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import trees
from full_disk import FAULT, files_of
from test_checkpoint import ABANDONED, assert_equal, state_of
from test_train import EPOCH_STEPS, small, timeless
from written_runs import ALIKE, write_run

from proxynca_jax import steps, train
from proxynca_jax.config import DataConfig, TrainConfig
from proxynca_jax.data import inspection
from proxynca_jax.data.cache import cached
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.errors import UserError
from proxynca_jax.machine import command
from proxynca_jax.machine.atomic_file import append_line, replace_file
from proxynca_jax.optim import make_optimizer
from proxynca_jax.report.picture import draw
from proxynca_jax.report.runs import read_runs
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.embedding_files import Contents, write_embeddings
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.image_list import NAME, ListedImage, write_list
from proxynca_jax.training_options import find_preset
from proxynca_jax.weights import converted_file

ROWS = np.random.default_rng(0).standard_normal((4096, 4), np.float32)

PRINTS = """
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.machine.output import print_line
with exit_on_user_error():
    print_line("scores")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("folder")
    trees.draw_folder(root, classes=4, images_per_class=13)
    return root


def names_in(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write_vectors(path: pathlib.Path) -> None:
    write_embeddings(path, [ROWS, ROWS], Contents([str(row) for row in range(8192)], None, 4, {}))


def write_images(path: pathlib.Path) -> None:
    path.unlink()  # a list that is there stays
    write_list(path.parent, [ListedImage("train", "a", f"{row}.jpg", "0") for row in range(999)], {})


def draw_runs(path: pathlib.Path) -> None:
    draw(read_runs([path.parent / "run"]), None, path)


WRITERS: dict[str, Callable[[pathlib.Path], None]] = {
    "vectors.npz": write_vectors,
    "vectors.parquet": write_vectors,
    NAME: write_images,
    "comparison.png": draw_runs,
    "weights.safetensors": lambda path: converted_file.write(path, "tiny", {"params/x": ROWS}, source={}),
    "picture.png": lambda path: replace_file(path, bytes(5000)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_leaves_nothing(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"older")
    write_run(tmp_path / "run", ALIKE)
    with files_of(2000), pytest.raises(UserError, match=rf"cannot write .*{name}: {FAULT}\. Nothing half-written"):
        WRITERS[name](path)
    assert {found.name for found in tmp_path.iterdir()} <= {name, "run"}
    assert name == NAME or path.read_bytes() == b"older"


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    append_line(tmp_path / "log.txt", "first")
    with files_of(10), pytest.raises(UserError, match=FAULT):  # of which 6 are taken
        append_line(tmp_path / "log.txt", "second")
    append_line(tmp_path / "log.txt", "third")
    assert (tmp_path / "log.txt").read_text() == "first\nthird\n"


def test_a_run_that_cannot_be_opened_says_so(tmp_path):
    with files_of(0), contextlib.ExitStack() as locks, pytest.raises(UserError, match=f"cannot write .*run: {FAULT}"):
        open_run(tmp_path / "run", TrainConfig(), locks=locks)
    with contextlib.ExitStack() as locks:  # what it left is no obstacle
        open_run(tmp_path / "run", TrainConfig(), locks=locks)


def test_the_cache_of_images_is_there_as_a_whole_or_not_at_all(root, tmp_path):
    config = DataConfig(dataset="folder", root=str(root), cache=str(tmp_path))
    split = load_dataset(config).train
    with files_of(2000), pytest.raises(UserError, match=rf"(?s)cache file .*{FAULT}.* Nothing half-written"):
        cached(split, config, max_side=0)
    assert names_in(tmp_path) == set()
    assert len(cached(split, config, max_side=0).images) == len(split.labels)


def test_without_room_in_the_users_folder_images_are_read_again(root, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(inspection, "SETTLED_SECONDS", -1)
    config = DataConfig(dataset="folder", root=str(root))
    with files_of(100), pytest.warns(UserWarning, match=f"will be read again next time: cannot write .*{FAULT}$"):
        inspection.inspect_splits(load_dataset(config).sides(), config)
    assert names_in(tmp_path) == {"images"}


def test_programs_that_the_compiler_could_not_keep_are_dropped_and_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(command, "_cache_has_failed", False)
    folder = tmp_path / "proxynca_jax"
    folder.mkdir()
    for name in ("jit_fold-1-cache", "jit_embed-2-cache", "jit_embed_step-3-cache"):
        (folder / name).touch()
    for name in ("jit_fold", "jit_embed"):
        command._print_warning(f"Error writing persistent compilation cache entry for '{name}': OSError: no room")
    command._print_warning("something else")
    first, second = capsys.readouterr().err.splitlines()
    assert "'jit_fold'" in first
    assert second == "warning: something else"
    assert names_in(folder) == {"jit_embed_step-3-cache"}


@ABANDONED
def test_a_state_that_does_not_fit_leaves_the_older_ones(tmp_path, capfd):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("best", 5, state_of(5))
        checkpoints.save("latest", 9, state_of(9))
    before = names_in(tmp_path)
    told = rf"cannot save a state in .*: {FAULT}; the states on disk are kept: latest \(step 9\), best \(step 5\)\."
    with files_of(2000), pytest.raises(UserError, match=told), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", 12, state_of(12))  # in the background: the error comes at the end
    assert names_in(tmp_path) == before
    assert capfd.readouterr() == ("", "")
    with Checkpoints(tmp_path) as checkpoints:
        state, step, damages = checkpoints.restore_newest(state_of(0))
    assert (step, damages) == (9, [])
    assert_equal(state, state_of(9))


@ABANDONED
def test_a_run_goes_on_when_there_is_room_with_the_same_bits(root, tmp_path, monkeypatch):
    config = small(root)
    train.train(config, tmp_path / "whole")
    save, full = Checkpoints.save, contextlib.ExitStack()

    def save_on_full_disk(self: Checkpoints, kind: str, step: int, *rest) -> None:
        if (kind, step) == ("latest", 2 * EPOCH_STEPS):
            self.finish()
            full.enter_context(files_of(2000))
        save(self, kind, step, *rest)

    run = tmp_path / "run"
    with full, monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_on_full_disk)
        with pytest.raises(UserError, match=FAULT):
            train.train(config, run)
    train.train(config, run)
    assert timeless(run) == timeless(tmp_path / "whole")
    lines = (run / "log.txt").read_text().splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch -1", "epoch 0", "epoch 1"]
    assert len(set(lines)) == len(lines)
    optimizer = make_optimizer(config.optim, steps_per_epoch=EPOCH_STEPS)
    _, state = steps.init_state(config.model, optimizer, classes=2, seed=1)
    with Checkpoints(run, writes=False) as ours, Checkpoints(tmp_path / "whole", writes=False) as theirs:
        assert_equal(ours.restore(state), theirs.restore(state))


def test_reading_leaves_a_runs_folder_as_it_is(tmp_path):
    with Checkpoints(tmp_path / "no", writes=False) as none, pytest.raises(UserError, match="has no state"):
        none.restore_network("best", state_of(0).network())
    assert names_in(tmp_path) == set()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("best", 5, state_of(5))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoints(tmp_path, writes=False) as checkpoints:
        assert_equal(checkpoints.restore_network("best", state_of(0).network()), state_of(5).network())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="only on Linux")
def test_output_on_a_full_disk_is_one_line():
    with pathlib.Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot write the output: No space left on device. Make room, and give the same command again.\n"
    )


def test_a_user_without_a_home_folder(monkeypatch):
    def nobody(_: int):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match="~/nowhere"):
        load_dataset(DataConfig(dataset="folder", root="~/nowhere"))
    assert find_preset(["--config=~/x.py"]) == ["--config=~/x.py"]
    monkeypatch.setenv("HOME", "/home/me")
    assert find_preset(["--config=~/x.py"]) == ["--config=/home/me/x.py"]

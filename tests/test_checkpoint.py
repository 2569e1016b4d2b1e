"""Saved states: damage is noticed and named, the newest whole state is taken, and kills cost nothing but time."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from test_train import EPOCH_STEPS, records, small, timeless

from proxynca_jax import steps, train
from proxynca_jax.config import ModelConfig, OptimConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models.network import Variables
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs import checkpoint
from proxynca_jax.runs.checkpoint import Checkpoints, DamagedError

HERE = pathlib.Path(__file__).parent
KILLS = 20
# When a read fails, Orbax abandons those of other arrays, and Python complains when it collects them.
ABANDONED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(seed: int, classes: int = 4) -> steps.TrainState:
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=2)
    return steps.init_state(ModelConfig(backbone="tiny", embedding_dim=8), optimizer, classes=classes, seed=seed)[1]


def assert_equal(ours: Any, theirs: Any) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.fixture
def saved(tmp_path) -> pathlib.Path:
    """A run's folder whose latest state, of step 9, is that of seed 9; the best one, of step 5, is that of seed 5."""
    with Checkpoints(tmp_path) as checkpoints:
        for kind, step in (("best", 5), ("latest", 9)):
            checkpoints.save(kind, step, state_of(step))
    return tmp_path


def files_of(run: pathlib.Path, kind: str, step: int) -> list[pathlib.Path]:
    folder = run / "checkpoints" / kind / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_state_comes_back_as_it_was(saved):
    with Checkpoints(saved) as checkpoints:
        assert_equal(checkpoints.restore(state_of(0)), state_of(9))
        assert_equal(checkpoints.restore_network("best", state_of(0).network()), state_of(5).network())
        state, step, damages = checkpoints.restore_newest(state_of(0))
    assert (step, damages) == (9, [])
    assert_equal(state, state_of(9))


@ABANDONED
def test_no_flipped_bit_is_taken_for_the_state(saved):
    rng = np.random.default_rng(0)
    clean, outcomes = state_of(9), {"noticed": 0, "harmless": 0}
    for path in files_of(saved, "latest", 9)[::2]:
        content = path.read_bytes()
        for place in rng.integers(len(content), size=2) if content else ():
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with warnings.catch_warnings(), Checkpoints(saved) as checkpoints:
                warnings.simplefilter("ignore")
                try:
                    assert_equal(checkpoints.restore(state_of(0)), clean)
                    outcomes["harmless"] += 1  # times, and other notes of Orbax
                except UserError:
                    outcomes["noticed"] += 1
        path.write_bytes(content)
    print("bits flipped in the files of a state:", outcomes)
    assert outcomes["noticed"] > 2


@ABANDONED
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_files_that_are_cut_or_lost_are_damage(saved, damage):
    noticed = 0
    for path in files_of(saved, "latest", 9)[::2]:
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        with warnings.catch_warnings(), Checkpoints(saved) as checkpoints:
            warnings.simplefilter("ignore")
            try:
                assert_equal(checkpoints.restore(state_of(0)), state_of(9))
            except UserError:
                noticed += 1
        path.write_bytes(content)
    assert noticed > 1


def damage_numbers(run: pathlib.Path, kind: str, step: int) -> None:
    """Writes other numbers under the digests of the state, as a bit that flips before they are compressed would."""
    place = run / "checkpoints" / kind / str(step)
    kept = (place / "digests").rename(run / "kept")
    shutil.rmtree(place)
    with Checkpoints(run) as checkpoints:
        checkpoints.save(kind, step, state_of(77))
    shutil.rmtree(place / "digests")
    kept.rename(place / "digests")


def test_the_newest_whole_state_is_taken_and_the_damaged_one_put_aside(saved):
    damage_numbers(saved, "latest", 9)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(
            DamagedError, match=r"latest/9 is damaged: \d+ arrays have other numbers, the first is network/"
        ):
            checkpoints.restore_network("latest", state_of(0).network())
        state, step, (damage,) = checkpoints.restore_newest(state_of(0))
        assert_equal(state, state_of(5))
        assert (step, checkpoints.latest_step("latest")) == (5, None)
        assert "latest/9 is damaged" in damage
        checkpoints.save("latest", 7, state_of(7))
    assert (saved / "checkpoints/damaged-latest-9").is_dir()
    with Checkpoints(saved) as checkpoints:
        assert_equal(checkpoints.restore(state_of(0)), state_of(7))
    damage_numbers(saved, "latest", 7)
    damage_numbers(saved, "best", 5)
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError, match=r"(?s)latest/7 .*best/5 .*No state"):
        checkpoints.restore_newest(state_of(0))


def test_states_of_an_earlier_version_are_read_with_a_warning(saved):
    shutil.rmtree(saved / "checkpoints/latest/9/digests")
    with Checkpoints(saved) as checkpoints, pytest.warns(UserWarning, match="earlier version: damage to it cannot"):
        assert_equal(checkpoints.restore(state_of(0)), state_of(9))


def test_a_state_of_other_classes_is_not_called_damaged(saved):
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(
            UserError, match=r"of another network or other classes.*training/proxies is float32\[4, 8\]"
        ):
            checkpoints.restore(state_of(0, classes=5))
        network = state_of(0).network()
        narrow = Variables(network.params | {"other": jnp.zeros(3)}, network.batch_stats)
        with pytest.raises(UserError, match=r"network/params/other is missing there, float32\[3\] here"):
            checkpoints.restore_network("best", narrow)


def test_a_missing_kind_is_named_and_the_other_one_offered(saved):
    shutil.rmtree(saved / "checkpoints/best")
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(UserError, match=r"checkpoints/best has no state.*--checkpoint latest"),
    ):
        checkpoints.restore_network("best", state_of(0).network())


def test_the_state_is_saved_inside_an_epoch_when_it_is_due(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    with Checkpoints(tmp_path, every_minutes=10.0) as checkpoints:
        for now, expected in ((599.0, None), (601.0, 601), (1200.0, 601), (1202.0, 1202)):
            checkpoints.save_if_due(int(now), state_of(0))
            assert checkpoints.latest_step() == expected
    with Checkpoints(tmp_path / "never") as checkpoints:
        checkpoints.save_if_due(1, state_of(0))
        assert checkpoints.latest_step() is None


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    trees.draw_folder(tmp_path / "folder", classes=4, images_per_class=13)
    return tmp_path / "folder"


def test_a_lost_best_state_comes_back_if_it_is_the_latest_and_is_named_if_not(root, tmp_path):
    config, run = small(root), tmp_path / "run"
    train.train(config, run)
    log, best = run / "log.txt", max(records(run), key=lambda record: record["recall_at_1"])
    shutil.rmtree(run / "checkpoints/best")
    config.optim.epochs = 3
    train.train(config, run)
    was_latest = best["step"] == 2 * EPOCH_STEPS
    with Checkpoints(run) as checkpoints:
        assert (checkpoints.latest_step("best") is not None) == (was_latest or "lost" not in log.read_text())
    assert was_latest != (f"the best state, of epoch {best['epoch']}, is lost" in log.read_text())


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_is_not(root, tmp_path):
    options = [
        f"--config.data.root={root}",
        "--config.data.dataset=folder",
        "--config.data.image_size=32",
        "--config.data.resize_size=32",
        "--config.optim.batch_size=8",
        "--config.optim.epochs=30",
        "--config.optim.frozen_epochs=2",
        "--config.optim.warmup_epochs=3",
        "--config.optim.schedule=cosine",
        "--config.checkpoint.every_minutes=1e-9",
        "--config.log_every_steps=1",
        "--noconfig.evaluation.nmi",
    ]
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

    output = tmp_path / "output.txt"

    def begin(run: pathlib.Path) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            str(HERE / "tiny_train.py"),
            "--config",
            "configs/cub.py",
            "--run",
            str(run),
            *options,
        ]
        with output.open("wb") as file:
            return subprocess.Popen(command, env=environment, cwd=HERE.parent, stdout=file)

    assert begin(tmp_path / "whole").wait() == 0
    killed, run, moments = 0, tmp_path / "killed", random.Random(0)
    while True:
        process = begin(run)
        while process.poll() is None and "compiled in" not in output.read_text():
            time.sleep(0.01)
        if killed < KILLS:
            time.sleep(moments.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        killed += 1
    print(f"killed {killed} times")
    assert killed > KILLS / 2
    assert timeless(run) == timeless(tmp_path / "whole")
    assert json.loads((run / "config.json").read_text()) == json.loads((tmp_path / "whole/config.json").read_text())
    written = [
        (folder / "checkpoints" / kind).glob("*/digests/metadata")
        for folder in (run, tmp_path / "whole")
        for kind in checkpoint.KINDS
    ]
    contents = [[(path.parent.parent.name, path.read_text()) for path in paths] for paths in written]
    assert contents[:2] == contents[2:]

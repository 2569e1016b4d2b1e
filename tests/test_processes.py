"""Two processes on loopback that train together, are killed, stopped and started again."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
from test_train import EPOCH_STEPS, records, small

from proxynca_jax import steps, train
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.lock import only_writer

REPOSITORY = Path(__file__).parents[1]
EPOCHS = 4
# Runs the command line on the tiny network and, after some batches, ends the process or asks it to stop. Asked, it goes
# on slowly: the word takes up to a second to get around.
PROGRAM = """
import os, signal, sys, time
import tiny
from absl import logging
from proxynca_jax import train
from proxynca_jax.machine import progress
from proxynca_jax.models import BACKBONES

batches, number, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
logging.set_verbosity(logging.WARNING)
BACKBONES["tiny"] = tiny.TINY
advance, seen = progress.Progress.advance, 0

def advance_and_signal(self, images):
    global seen
    advance(self, images)
    seen += 1
    if seen == batches:
        os.kill(os.getpid(), number)
    time.sleep(0.5 if 0 < batches <= seen else 0)

progress.Progress.advance = advance_and_signal
train.main(arguments)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_two(settings: Path, run: Path, signals: tuple[tuple[int, int], tuple[int, int]]) -> tuple[list[int], list[str]]:
    """Both processes, with two devices each, until they end: their exit statuses and what they printed.

    Args:
        settings: a configuration file.
        run: the run's folder.
        signals: for each process, after how many batches it sends itself a signal (0: never), and which.
    """
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": paths}
    together = ["--distributed", f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    processes = []
    for index, (batches, number) in enumerate(signals):
        arguments = [str(batches), str(int(number)), f"--config={settings}", f"--run={run}", *together]
        command = [sys.executable, "-c", PROGRAM, *arguments, f"--process_id={index}"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], printed


def assert_same_scores(run: Path, other: Path):
    for ours, theirs in zip(records(run), records(other), strict=True):
        for name in theirs.keys() & {"step", "train_loss", "recall_at_1", "recall_at_2", "nmi"}:
            assert ours[name] == pytest.approx(theirs[name], rel=0, abs=1e-5), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of one process, and one of two that went through everything."""
    folder = tmp_path_factory.mktemp("processes")
    trees.draw_folder(folder / "images", classes=4, images_per_class=13)
    config = small(folder / "images", epochs=EPOCHS)
    train.train(config, folder / "alone")

    config.optim.shard_proxies = True
    open_run(folder / "settings", config)
    settings, together = folder / "settings" / "config.py", folder / "together"
    never, killed, asked = (0, 0), (2 + EPOCH_STEPS + 2 + 1, signal.SIGKILL), (2, signal.SIGINT)
    statuses, _ = run_two(settings, together, (killed, killed))  # in epoch 1
    assert statuses == [-signal.SIGKILL] * 2
    assert [record["step"] for record in records(together)] == [0, EPOCH_STEPS]
    statuses, printed = run_two(settings, together, (never, asked))  # one is asked, and both stop
    assert statuses == [130, 130]
    assert f"continuing from step {EPOCH_STEPS}, in epoch 1" in printed[0]
    stopped = re.search(r"stopped at step (\d+), in epoch", printed[0])
    assert stopped
    assert EPOCH_STEPS < int(stopped[1]) < EPOCHS * EPOCH_STEPS
    statuses, printed = run_two(settings, together, (never, never))
    assert statuses == [0, 0]
    assert f"continuing from step {stopped[1]}" in printed[0]
    assert "evaluation images are kept in host memory" in printed[0]
    assert "epoch" not in printed[1]  # the first one speaks for both
    assert "evaluation" not in printed[1]
    return {"alone": folder / "alone", "together": together}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(runs):
    steps_recorded = [record["step"] for record in records(runs["together"])]
    assert steps_recorded == [EPOCH_STEPS * epoch for epoch in range(EPOCHS + 1)]
    assert_same_scores(runs["together"], runs["alone"])


@pytest.mark.slow
def test_two_processes_share_a_cache_and_place_images_on_their_devices(tmp_path):
    trees.draw_folder(tmp_path / "images", classes=4, images_per_class=13)
    config = small(tmp_path / "images", placement="device")
    train.train(config, tmp_path / "alone")
    config.data.cache = str(tmp_path / "cache")
    open_run(tmp_path / "settings", config)
    statuses, _ = run_two(tmp_path / "settings" / "config.py", tmp_path / "together", ((0, 0), (0, 0)))
    assert statuses == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the training images and the evaluation images
    assert_same_scores(tmp_path / "together", tmp_path / "alone")


@pytest.mark.slow
def test_one_process_reads_what_two_wrote(runs):
    config = small(runs["alone"])
    states = []
    for run in runs.values():
        classes = 2 if run == runs["alone"] else 4  # two, padded for four devices
        optimizer = make_optimizer(config.optim, steps_per_epoch=EPOCH_STEPS)
        _, state = steps.init_state(config.model, optimizer, classes=classes, seed=1)
        with Checkpoints(run) as checkpoints:
            states.append(checkpoints.restore(state))
    alone, together = states
    np.testing.assert_allclose(together.params["proxies"][:2], alone.params["proxies"], atol=1e-5)
    kernels = (state.network().params["backbone"]["kernel"] for state in (together, alone))
    np.testing.assert_allclose(*kernels, atol=1e-5)
    assert int(together.step) == EPOCHS * EPOCH_STEPS


@pytest.mark.slow
def test_if_the_first_process_is_refused_both_end(tmp_path):
    trees.draw_folder(tmp_path / "images", classes=4, images_per_class=13)
    open_run(tmp_path / "settings", small(tmp_path / "images"))
    with only_writer(tmp_path / "run"):
        statuses, _ = run_two(tmp_path / "settings" / "config.py", tmp_path / "run", ((0, 0), (0, 0)))
    assert statuses == [1, 1]  # after a time limit they would be aborted

"""`benchmarks.gpu` with small settings, on any machine: its parts, its errors and its output."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import fake_variants
import jax
import numpy as np
import pytest

from benchmarks import gpu, gpu_run, torch_step, workers
from benchmarks.gpu import Comparison, Settings
from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.transforms import decode
from proxynca_jax.errors import UserError
from proxynca_jax.report.speed_table import STEPS, Measurement
from proxynca_jax.version import __version__

TINY = Settings(
    golden_options=("-k", "embedding_in_inference"),
    comparisons=(Comparison("embed", 2, ("ours", "eager")),),
    repeats=1,
    training_images=16,
    test_images=12,
    classes=4,
    train_program=(str(Path(__file__).with_name("tiny_train.py")),),
    train_options=(
        "--config.data.placement=device",
        "--config.model.compute_dtype=bfloat16",
        "--config.optim.epochs=2",
        "--config.optim.batch_size=4",
        "--config.data.image_size=64",
        "--config.data.resize_size=64",
        "--config.evaluation.kmeans_restarts=1",
        "--config.log_every_steps=2",
    ),
)


@pytest.mark.slow
def test_all_parts_with_small_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(torch_step, "peak", lambda _: 1e12)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on busy cores, several threads would wait for each other for seconds
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is quick then
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "the user's own"))
    assert gpu.measure(TINY, tmp_path / "gpu.json"), capsys.readouterr()
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == ["versions", "parity", "steps", "epoch", "repeat"]
    assert parts["versions"]["jax"] == jax.__version__
    assert parts["versions"]["proxynca_jax"] == __version__

    (distance,) = parts["parity"]["distances"]
    assert (distance["precision"], distance["kind"]) == ("float32", "embedding in inference")
    assert 0 < distance["distance"] < distance["bound"]
    assert (parts["parity"]["tests"], parts["parity"]["failed"]) == (1, [])

    assert [row["variant"] for row in parts["steps"]["rows"]] == ["ours", "eager"]
    assert parts["steps"]["rows"][0]["images_per_second"] > 0
    assert "ours, batch 2" in parts["steps"]["summary"]["embed: our best"]

    first, second = parts["epoch"], parts["repeat"]
    assert (first["images"]["training"], first["images"]["test"]) == (16, 12)
    assert first["first_images"] == 8
    for run in (first, second):
        moments = run["seconds_from_command"]
        assert 0 < moments["compiled"] < moments["first_evaluation"] < moments["first_images"] < run["command_seconds"]
        before, *epochs = run["epochs"]
        assert before["evaluation_seconds"] > 0
        assert all({"train_seconds", "images_per_second", "data_wait_share"} <= record.keys() for record in epochs)
        assert [record["epoch"] for record in epochs] == [0, 1]
    assert (first["compile_cache"], second["compile_cache"]) == ("empty", "filled")
    assert (second["different_records"], second["different_arrays"]) == ([], [])
    assert second["arrays"] > 5
    out = capsys.readouterr().out
    assert "  epoch 1  loss " in out
    assert "losses and scores of two runs" in out[out.index("summary") :]
    assert out.splitlines()[-1].endswith(str(tmp_path / "gpu.json"))


def test_a_failed_part_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu.json"

    def broken(settings, work, figures):
        """Breaks."""
        figures["before"] = 1
        raise ZeroDivisionError("division by zero")

    def refused(settings, work, figures):
        """Refuses."""
        raise UserError("needs a card")

    def sound(settings, work, figures):
        """Works."""
        assert list(json.loads(path.read_text())["parts"]) == ["broken", "refused"]
        figures["summary"] = {"what": "value"}

    monkeypatch.setattr(gpu, "PARTS", {part.__name__: part for part in (broken, refused, sound)})
    assert not gpu.measure(TINY, path)
    out, err = capsys.readouterr()
    parts = json.loads(path.read_text())["parts"]
    assert (parts["broken"]["before"], parts["broken"]["error"]) == (1, "ZeroDivisionError: division by zero")
    assert parts["refused"]["error"] == "needs a card"
    assert "error" not in parts["sound"]
    assert "  failed: needs a card\n" in out
    assert [line.split()[0] for line in out[out.index("summary") :].splitlines()[1:4]] == ["broken", "refused", "what"]
    assert err.count("Traceback") == 1


def test_a_variant_that_fails_is_a_row_and_fails_the_part(tmp_path, monkeypatch, capfd):
    variants = {"ours": fake_variants.variant(), "eager": fake_variants.variant("exits")}
    monkeypatch.setattr(torch_step, "VARIANTS", variants)
    monkeypatch.setattr(torch_step, "peak", lambda _: 1e12)
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.0)
    figures = {}
    with pytest.raises(UserError, match="failed: embed eager, batch 2"):
        gpu.steps(TINY, tmp_path, figures)
    assert [row["variant"] for row in figures["rows"]] == ["ours", "eager"]
    assert figures["summary"]["embed: our best"].endswith("(ours, batch 2)")
    assert "failed: the process exited with status 3" in capfd.readouterr().out


def test_a_failed_run_reports_its_status_and_last_line(tmp_path, capfd):
    settings = dataclasses.replace(TINY, train_program=("-c", "import sys; sys.exit('no such thing')"))
    with pytest.raises(UserError, match=r"status 1 .*no such thing"):
        gpu.train(settings, tmp_path, "first", {})
    settings = dataclasses.replace(TINY, train_program=("-c", "import time; time.sleep(20)"), timeout_seconds=1)
    with pytest.raises(UserError, match=r"status -9 .*limit: 1 s"):
        gpu.train(settings, tmp_path, "second", {})
    with pytest.raises(UserError, match="no first run"):
        gpu.repeat(TINY, tmp_path, {})


def test_parity_fails_if_no_golden_test_runs(tmp_path, capfd):
    settings = dataclasses.replace(TINY, golden_options=("-k", "no_such_test"))
    with pytest.raises(UserError, match="status 5"):
        gpu.parity(settings, tmp_path, {})


FAR = {"precision": "bfloat16", "kind": "loss", "of": "", "distance": 2.0, "bound": 1.0}
GOLDEN_FAILURE = f"""<testsuites><testsuite errors="0" failures="1" skipped="0" tests="2">
<testcase name="test_sound"/>
<testcase name="test_far"><properties><property name="distance" value={quoteattr(json.dumps(FAR))}/></properties>
<failure message="AssertionError: loss bfloat16">...</failure></testcase></testsuite></testsuites>"""


def test_parity_keeps_the_distance_of_a_failed_golden_test(tmp_path, monkeypatch, capsys):
    def run(command, **_):
        (report,) = (word.removeprefix("--junitxml=") for word in command if word.startswith("--junitxml="))
        Path(report).write_text(GOLDEN_FAILURE)
        return subprocess.CompletedProcess(command, 1, stdout="what pytest said")

    monkeypatch.setattr(subprocess, "run", run)
    figures = {}
    with pytest.raises(UserError, match="failed: test_far"):
        gpu.parity(TINY, tmp_path, figures)
    assert (figures["tests"], figures["failed"], figures["distances"]) == (2, ["test_far"], [FAR])
    out, err = capsys.readouterr()
    assert "beyond its bound" in out
    assert "what pytest said" in err


def test_worst_of_each_kind():
    rows = [
        {"precision": precision, "kind": kind, "of": "", "distance": distance, "bound": bound}
        for precision, kind, distance, bound in [
            ("float32", "loss", 1.0, 10.0),
            ("float32", "loss", 2.0, 40.0),
            ("bfloat16", "loss", 3.0, 4.0),
            ("bfloat16", "loss", float("nan"), 4.0),
        ]
    ]
    assert gpu.worst_of_each_kind(rows) == [rows[0], rows[3]]


def test_default_settings_name_existing_steps_and_variants():
    for step, _, variants in Settings().comparisons:
        assert step in STEPS
        assert set(variants) <= set(torch_step.VARIANTS)


def test_compare_with_pytorch_takes_the_best_of_equal_or_higher_precision():
    speeds = {"ours_bfloat16": 8, "ours_tensorfloat32": 6, "eager": 2, "compile_graphs": 3, "compile_graphs_amp": 4}
    rows = [Measurement("train", name, 32, 32 / speed, 1.0, 1.0, None, 1) for name, speed in speeds.items()]
    found = [(row["ours"], row["pytorch"], row["ratio"]) for row in gpu.compare_with_pytorch(rows)]
    assert found == [("ours_bfloat16", "compile_graphs_amp", 2), ("ours_tensorfloat32", "compile_graphs", 2)]
    assert gpu.compare_with_pytorch(rows[:2]) == []


@pytest.mark.filterwarnings("ignore:cub. found")
def test_drawn_images_are_all_different_and_in_cubs_layout(tmp_path):
    kb = gpu_run.draw_cub(tmp_path, training=10, test=7, classes=4)
    assert 50 < kb < 100
    dataset = load_dataset(DataConfig(root=str(tmp_path)))
    training, test = dataset.train, dataset.evaluation.queries
    assert (len(training.images), len(test.images)) == (10, 7)
    assert len({bytes(image) for image in (*training.images, *test.images)}) == 17
    assert len(training.class_names) == len(test.class_names) == 2
    assert decode(training.images[0], "first").shape == (gpu_run.HEIGHT, gpu_run.WIDTH, 3)


def test_different_records_and_arrays():
    record = {"epoch": 0, "train_loss": 2.0, "train_seconds": 5.0}
    assert gpu_run.different_records([record], [record | {"train_seconds": 6.0}]) == []
    assert gpu_run.different_records([record], [record | {"nmi": 3.0}]) == ["epoch 0 nmi: None and 3.0"]
    assert gpu_run.different_records([record], []) == ["1 records and 0"]
    array = np.array([0.0, np.nan], np.float32)
    assert gpu_run.different_arrays({"a": array}, {"a": array.copy()}) == []
    others = {"a": np.array([-0.0, np.nan], np.float32), "b": array}
    assert gpu_run.different_arrays({"a": array}, others) == ["a", "b"]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="this machine has a GPU")
def test_without_a_gpu_the_command_exits_with_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match=r"^error: JAX finds no GPU, only 1 × cpu.* pip install -e '.\[cuda\]'"):
        gpu.main()
    assert not list(tmp_path.iterdir())

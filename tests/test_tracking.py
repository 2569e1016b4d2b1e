"""What TensorBoard and Weights & Biases get of a run, and the time left that the log shows."""

import json
import pathlib

import pytest
import report_runs

from proxynca_jax import train
from proxynca_jax.config import TrackingConfig, TrainConfig
from proxynca_jax.errors import UserError
from proxynca_jax.machine import extras
from proxynca_jax.machine.progress import Progress
from proxynca_jax.runs import tracking
from proxynca_jax.runs.log import MetricLog
from proxynca_jax.runs.tracking import Tracking

RECORD = {
    "epoch": 0,
    "step": 7,
    "split": "test",
    "train_loss": 2.5,
    "recall_at_1": 40.0,
    "collapsed": True,
    "kmeans": "x",
}


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, float, int]]:
    """What is written, instead of files."""
    points = []

    class Writer:
        def __init__(self, *_: object):
            pass

        def write(self, values, step):
            points.extend((name, value, step) for name, value in values.items())

        def close(self):
            points.append(("closed", 0, 0))

    monkeypatch.setattr(tracking, "_TensorBoard", Writer)
    return points


def test_records_and_steps_are_passed_on(written):
    config = TrainConfig(tracking=TrackingConfig(tensorboard=True))
    with Tracking(pathlib.Path(), config, 0) as tracked:
        tracked.step(5, loss=3.0, images_per_second=100.0, data_wait_share=0.5)
        tracked.record(RECORD)
    assert written == [
        ("train/loss", 3.0, 5),
        ("train/images_per_second", 100.0, 5),
        ("train/data_wait_share", 0.5, 5),
        ("epoch/train_loss", 2.5, 7),
        ("test/recall_at_1", 40.0, 7),
        ("closed", 0, 0),
    ]


def test_nothing_is_written_unless_asked_for(written):
    with Tracking(pathlib.Path(), TrainConfig(), 0) as tracked:
        tracked.record(RECORD)
    with Tracking(pathlib.Path(), TrainConfig(tracking=TrackingConfig(tensorboard=True)), 0, writes=False) as tracked:
        tracked.record(RECORD)
    assert written == []


@pytest.mark.parametrize(
    ("fields", "package", "extra"),
    [
        ({"tracking": TrackingConfig(tensorboard=True)}, "tensorboardX", "tensorboard"),
        ({"tracking": TrackingConfig(wandb=True)}, "wandb", "wandb"),
        ({"report": True}, "bokeh", "report"),
    ],
)
def test_a_missing_extra_is_an_error_before_training(monkeypatch, tmp_path, fields, package, extra):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(UserError, match=rf"this needs {package}: pip install 'proxynca_jax\[{extra}\]'"):
        train.train(TrainConfig(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf, which both writers use
def test_a_run_writes_events_an_offline_run_and_its_report(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    pytest.importorskip("wandb")
    from tensorboardX.event_file_writer import EventFileWriter

    seen = []
    add_event = EventFileWriter.add_event

    def note(self, event, *rest, **options):
        seen.extend((value.tag, value.simple_value, event.step) for value in event.summary.value)
        add_event(self, event, *rest, **options)

    monkeypatch.setattr(EventFileWriter, "add_event", note)
    monkeypatch.setenv("WANDB_MODE", "online")  # training is offline whatever it says
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = tmp_path / "run"
    both = TrackingConfig(tensorboard=True, wandb=True)
    report_runs.train_tiny(report_runs.draw_images(tmp_path), run, epochs=1, tracking=both, report=True)
    records = MetricLog(run).records()
    recalls = {step: value for tag, value, step in seen if tag == "test/recall_at_1"}
    assert recalls == {record["step"]: pytest.approx(record["recall_at_1"]) for record in records}
    assert [step for tag, _, step in seen if tag == "train/loss"] == [2]
    assert list((run / "tensorboard").glob("events.*"))
    (offline,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    assert offline.stat().st_size > 0
    assert "Recall@1" in (run / "report.html").read_text()
    assert "report.html" in (run / "log.txt").read_text()


def test_tracking_and_report_may_change_when_a_run_goes_on(tmp_path, written):
    root = report_runs.draw_images(tmp_path)
    report_runs.train_tiny(root, tmp_path / "run", epochs=1)
    report_runs.train_tiny(root, tmp_path / "run", epochs=2, tracking=TrackingConfig(tensorboard=True))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tracking"] == {
        "tensorboard": True,
        "wandb": False,
    }
    assert {step for name, _, step in written if name == "test/recall_at_1"} == {6}


def test_the_time_left_is_shown_for_the_epoch_and_the_run(monkeypatch, capsys):
    from proxynca_jax.machine import progress

    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with Progress("epoch 2", images=100, later=(300, 20.0)) as bar:
        now += 1
        bar.show("loss 4.5")
        now += 4
        bar.advance(50)
        bar.show("loss 4.1")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("loss 4.5  left: epoch ?, run ?")
    # Ten images a second: 50 and 350 are left, and 20 seconds of evaluations.
    assert second == "epoch 2  50/100 images  10.0 img/s  loss 4.1  left: epoch 0:00:05, run 0:00:55"

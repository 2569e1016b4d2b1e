"""Log files and records of a run, and the progress display."""

import io
import sys
import types

import pytest

from proxynca_jax.machine import progress
from proxynca_jax.machine.progress import Progress
from proxynca_jax.runs.log import MetricLog
from proxynca_jax.scores import describe_record, describe_scores

RECORDS = [
    {"epoch": -1, "step": 0, "recall_at_1": 12.5, "evaluation_seconds": 0.1},
    {"epoch": 0, "step": 183, "train_loss": 1 / 3, "recall_at_1": 40.0, "evaluation_seconds": 0.1},
    {"epoch": 1, "step": 366, "train_loss": 2e-9, "recall_at_1": 52.63, "evaluation_seconds": 0.1},
]


@pytest.fixture
def log(tmp_path):
    log = MetricLog(tmp_path)
    for record in RECORDS:
        log.record(record)
    return log


@pytest.fixture
def clock(monkeypatch):
    """A fake clock of the module; tests set `now`, in seconds."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_records_come_back_as_written(log, tmp_path):
    assert log.records() == RECORDS
    assert MetricLog(tmp_path).records() == RECORDS  # another process reads the same


def test_no_records_yet(tmp_path):
    log = MetricLog(tmp_path)
    assert log.records() == []
    log.keep_records_until(5, describe_record)
    assert log.records() == []


@pytest.mark.parametrize(("step", "kept"), [(366, 3), (365, 2), (183, 2), (182, 1), (0, 1), (-1, 0)])
def test_keep_records_until(log, step, kept):
    log.keep_records_until(step, describe_scores)
    assert log.records() == RECORDS[:kept]
    log.record(RECORDS[2])  # a run that continues appends to them
    assert log.records() == [*RECORDS[:kept], RECORDS[2]]


def test_lines_are_printed_and_written(tmp_path, capsys):
    MetricLog(tmp_path).line("epoch 0  loss 4.5")
    MetricLog(tmp_path).line("epoch 1  loss 4.1")
    assert capsys.readouterr().out == "epoch 0  loss 4.5\nepoch 1  loss 4.1\n"
    assert (tmp_path / "log.txt").read_text() == "epoch 0  loss 4.5\nepoch 1  loss 4.1\n"


def test_a_run_that_goes_on_says_nothing_twice(tmp_path):
    def start(log: MetricLog, step: int) -> None:
        log.line("26 images")
        log.keep_records_until(step, describe_scores)
        for record in RECORDS:
            if record["step"] > step:
                log.record(record)
                log.line(describe_scores(record))
        log.line("best epoch 1")

    first, second, third = map(describe_scores, RECORDS)
    start(MetricLog(tmp_path), -1)
    start(MetricLog(tmp_path), 0)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines == ["26 images", first, "best epoch 1", second, third, "best epoch 1"]
    start(MetricLog(tmp_path), RECORDS[-1]["step"])  # has nothing to do
    assert (tmp_path / "log.txt").read_text().splitlines() == lines


def test_scores_as_one_line():
    record = {"epoch": 16, "step": 3, "recall_at_1": 52.634, "recall_at_16": 64.1, "nmi": 60.0, "train_loss": 1.5}
    assert describe_scores(record) == "R@1 52.63  R@16 64.10  NMI 60.00"
    assert describe_scores({"epoch": 16, "recall_at_1": 100.0}) == "R@1 100.00"


def test_progress_is_lines_without_a_terminal(clock, capsys):
    with Progress("epoch 2", images=10, done=4) as progress:
        clock.now += 2
        progress.advance(3)
        progress.show("loss 4.5000")
        clock.now += 1
        progress.advance(3)
        progress.show("loss 4.1000")
    captured = capsys.readouterr()
    # The throughput counts the images of this process, not the 4 images before it.
    assert captured.out == (
        "epoch 2  7/10 images  1.5 img/s  loss 4.5000\nepoch 2  10/10 images  2.0 img/s  loss 4.1000\n"
    )
    assert captured.err == ""
    assert progress.seconds() == 3


def test_padding_of_the_last_batch_does_not_count(clock, capsys):
    with Progress("embedding", images=10) as progress:
        clock.now += 4
        for _ in range(2):
            progress.advance(8)
        progress.show("done")
    assert capsys.readouterr().out == "embedding  10/10 images  2.5 img/s  done\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("epoch 2", images=10, done=4) as progress:
        progress.advance(3)
        progress.show("loss 4.5000")
    assert "epoch 2" in terminal.getvalue()
    assert "7/10" in terminal.getvalue()
    assert "loss 4.5000" in terminal.getvalue()
    assert capsys.readouterr().out == ""

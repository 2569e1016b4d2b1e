"""`proxynca_jax.bench`: synthetic images, derived columns, estimated epochs, and the command."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from proxynca_jax import bench
from proxynca_jax.data.transforms import decode
from proxynca_jax.report.speed_table import Measurement, print_table

ROW = Measurement(
    step="train",
    variant="host float32",
    batch_size=32,
    step_seconds=0.5,
    first_step_seconds=20.0,
    peak_mb=100.0,
    peak_flops=1e12,
    image_flops=4_000_000_000,
    data_wait_share=0.01,
)


def test_photographs_are_deterministic():
    first, second = bench.photographs(70), bench.photographs(70)
    assert first.images == second.images
    assert first.images[64] == first.images[0] != first.images[1]
    assert decode(first.images[0], "first").shape == (375, 500, 3)
    assert np.array_equal(first.labels[[0, 69]], [0, 69])


def test_images_per_second_and_utilisation():
    assert ROW.images_per_second() == 64
    assert ROW.utilisation() == pytest.approx(3 * 4e9 * 64 / 1e12)
    embedding = dataclasses.replace(ROW, step="embed")
    assert embedding.utilisation() == ROW.utilisation() / 3


def test_epoch_seconds_count_whole_batches_only():
    assert bench.epoch_seconds(ROW) == {"cub": 183 * 0.5, "cars": 251 * 0.5, "sop": 1860 * 0.5}


def test_table_ratios_are_relative_to_the_baseline(capsys):
    print_table([ROW, dataclasses.replace(ROW, variant="twice", step_seconds=0.25)], ROW)
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:5] == ["host", "float32", "64.0", "1.00", "500.0"]
    assert second.split()[:4] == ["twice", "128.0", "2.00", "250.0"]


@pytest.mark.slow
def test_last_line_of_the_command_is_json():
    words = [sys.executable, "-m", "proxynca_jax.bench", "--steps", "embed", "--dtypes", "float32", "--batch_size", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [(row["step"], row["variant"]) for row in rows] == [("embed", "host float32")]
    assert rows[0]["image_flops"] == pytest.approx(4.0977e9, rel=1e-4)
    assert all(rows[0][name] > 0 for name in ("images_per_second", "model_flops_utilisation", "peak_mb"))

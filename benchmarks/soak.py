"""Soaks training: many epochs in one process, and many processes that are killed and continue. Is anything left behind?

    python -m benchmarks.soak --epochs 300 --kills 200

Both parts train the same small run: EfficientNet-Lite0 on 32 pixels, 8 classes of 16 drawn images. It is saved after
each step and scored after each epoch. The first part samples its process after each epoch: resident memory, threads,
open files. The second part kills the process with SIGKILL at random moments and starts it again, and samples the disk:
the run's folder, the caches, the folder for temporary files. In the end its scores and the digests of its states must
be those of the first part. The exit status is 0 if they are.

docs/evaluation.md has the results.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
from PIL import Image

ROWS = 10  # of each table
LONGEST_LIFE = 4.0  # seconds that a process may train until it is killed
CLOCKS = ("train_seconds", "images_per_second", "data_wait_share", "evaluation_seconds")


def draw_images(root: pathlib.Path) -> None:
    """Draws 8 classes of 16 noisy planes, each class of a brightness of its own."""
    rng = np.random.default_rng(0)
    for label in range(8):
        (root / f"class_{label}").mkdir(parents=True)
        for number in range(16):
            pixels = rng.normal(30 * label, 40, (48, 48, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"class_{label}/{number}.png")


class Soak:
    """A folder with the images, the caches and the runs."""

    def __init__(self, folder: pathlib.Path, epochs: int):
        self.folder, self.epochs, self.output = folder, epochs, folder / "output.txt"
        draw_images(folder / "images")
        for name in ("home", "temporary"):
            (folder / name).mkdir()

    def start(self, run: pathlib.Path) -> subprocess.Popen[bytes]:
        """Starts or continues a run."""
        options = {
            "data.dataset": "folder",
            "data.root": self.folder / "images",
            "model.backbone": "efficientnet_lite0",
            "optim.epochs": self.epochs,
            "optim.batch_size": 16,
            "evaluation.recall_at": "1",
            "log_every_steps": 1,
            "checkpoint.every_minutes": 1e-9,  # after every step
        }
        command = [sys.executable, "-m", "proxynca_jax.train", "--config", "glyphs", "--run", str(run)]
        command += [f"--config.{name}={value}" for name, value in options.items()]
        environment = os.environ | {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "temporary")}
        environment.pop("XDG_CACHE_HOME", None)
        with (self.folder / "messages.txt").open("ab") as messages, self.output.open("wb") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=messages)

    def disk(self, run: pathlib.Path) -> list[str]:
        """Megabytes and files of the run, of the caches and of temporary files."""
        cells = []
        for folder in (run, self.folder / "home", self.folder / "temporary"):
            sizes = [size for path in folder.rglob("*") if (size := size_of(path)) is not None]
            cells.append(f"{sum(sizes) / 1e6:.1f} MB, {len(sizes)} files")
        return cells


def size_of(path: pathlib.Path) -> int | None:
    """Bytes of a file. None: it is a folder, or has just been deleted."""
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None


def records(run: pathlib.Path) -> list[dict[str, float]]:
    """A run's records without what the clock says."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        record = json.loads(line) if line.endswith("}") else {}
        found.append({name: value for name, value in record.items() if name not in CLOCKS})
    return found


def digests(run: pathlib.Path) -> dict[str, str]:
    """The digests of a run's states."""
    return {str(path.relative_to(run)): path.read_text() for path in sorted(run.rglob("digests/metadata"))}


def soak_process(soak: Soak, run: pathlib.Path) -> bool:
    """Trains in one process, and prints what the process has after each tenth of the epochs."""
    print("\n| epochs | resident memory | threads | open files | run | caches | temporary |\n" + "| --- " * 7 + "|")
    process, wanted = soak.start(run), 1
    sampled = psutil.Process(process.pid)
    while process.poll() is None:
        done = len(records(run)) - 1  # the first is of epoch -1
        if done >= wanted:
            try:
                cells = [f"{sampled.memory_info().rss / 1e6:.0f} MB", sampled.num_threads(), sampled.num_fds()]
            except psutil.Error:  # it has just ended
                break
            print("| " + " | ".join(map(str, [done, *cells, *soak.disk(run)])) + " |", flush=True)
            wanted = max(wanted + 1, round((wanted // (soak.epochs / ROWS) + 1) * soak.epochs / ROWS))
        time.sleep(0.05)
    return process.wait() == 0


def soak_kills(soak: Soak, run: pathlib.Path, kills: int) -> bool:
    """Kills a run at random moments until it has been killed so often, and lets it end. Prints the disk."""
    print("\n| kills | epochs | largest memory of a process | run | caches | temporary |\n" + "| --- " * 6 + "|")
    moments, killed, largest = random.Random(0), 0, 0
    while True:
        process = soak.start(run)
        sampled = psutil.Process(process.pid)
        while process.poll() is None and "compiled in" not in soak.output.read_text():
            time.sleep(0.02)
        if process.poll() is None and killed < kills:
            time.sleep(moments.uniform(0, LONGEST_LIFE))
            with_memory = sampled.memory_info().rss if sampled.is_running() else 0
            largest = max(largest, with_memory)
            process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return process.returncode == 0
        killed += 1
        if killed in (1, kills) or killed % max(kills // ROWS, 1) == 0:
            cells = [killed, len(records(run)) - 1, f"{largest / 1e6:.0f} MB", *soak.disk(run)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Runs the command."""
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=summary)
    parser.add_argument("--epochs", type=int, default=300, help="of the run (default: 300)")
    parser.add_argument("--kills", type=int, default=200, help="of the second part (default: 200)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(pathlib.Path(folder), options.epochs)
        whole, killed = (soak.folder / name for name in ("whole", "killed"))
        ended = soak_process(soak, whole) and soak_kills(soak, killed, options.kills)
        same = records(whole) == records(killed) and digests(whole) == digests(killed)
        tracebacks = (soak.folder / "messages.txt").read_text().count("Traceback")
        print(f"\nboth ended: {ended}; equal scores: {same}; {len(digests(whole))} states; {tracebacks} tracebacks")
    sys.exit(not (ended and same and not tracebacks))


if __name__ == "__main__":
    main()

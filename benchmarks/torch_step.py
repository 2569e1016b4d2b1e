"""Times our training and embedding steps beside PyTorch's, on whatever device both find.

    python -m benchmarks.torch_step [--steps train embed] [--variants ours eager ...] [--batch_size 32] [--repeats 5]

`eager` is the reference's own way, NCHW and one operation after the other; `channels_last` keeps NHWC as we do,
`compile` adds torch.compile to it, and `amp`, on a GPU only, bfloat16 by autocast. All train with ProxyNCA and Adam on
100 classes, from the same bytes, which lie on the device; the input pipeline has no part in it.

Each variant lives in a process of its own. When all have compiled and warmed up they take turns, each turn about a
second or one step, whatever is longer, while the others sleep; the table holds medians over the turns. Memory is the
device's peak on a GPU, elsewhere the peak of the process above what it held with the libraries loaded, compilers
included.
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES = 100  # CUB's
TURN_SECONDS = 1.0
Program = Callable[[int], None]  # runs so many steps and waits for their end


class Row(NamedTuple):
    """What was measured of a variant."""

    step: str
    variant: str
    batch_size: int
    step_seconds: float
    images_per_second: float
    first_step_seconds: float  # compilation and all else that happens once
    peak_mb: float


def make_batch(batch_size: int, image_size: int = 227) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, batch_size, np.int32)


def ours(step: str, batch_size: int) -> Program:
    import jax

    from proxynca_jax import steps
    from proxynca_jax.config import TrainConfig
    from proxynca_jax.optim import make_optimizer

    config = TrainConfig()
    optimizer = make_optimizer(config.optim, steps_per_epoch=100)
    graph, state = steps.init_state(config.model, optimizer, classes=CLASSES, seed=0)
    batch = jax.device_put(dict(zip(("image", "label"), make_batch(batch_size), strict=True)))
    train_step, embed_step = steps.make_train_step(graph, config.loss, optimizer), steps.make_embed_step(graph)

    def train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = train_step(state, batch)
        jax.block_until_ready(state)

    def embed(count: int) -> None:
        for _ in range(count):
            embeddings = embed_step(state.params["network"], state.batch_stats, batch["image"])
        jax.block_until_ready(embeddings)

    return {"train": train, "embed": embed}[step]


def torch(
    step: str, batch_size: int, *, channels_last: bool = True, compiled: bool = False, amp: bool = False
) -> Program:
    import torch
    from torch.nn import functional

    from convert.torch_network import TorchBNInception
    from proxynca_jax.config import TrainConfig

    config = TrainConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = TorchBNInception({"embedding_layer": config.model.embedding_dim}).to(device, memory_format=memory_format)
    network.train(step == "train")
    forward = torch.compile(network) if compiled else network
    images, labels = (torch.tensor(array, device=device) for array in make_batch(batch_size))
    # The network takes NHWC and sees NCHW: how the bytes lie in memory decides in which layout it computes.
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).permute(0, 2, 3, 1)
    proxies = torch.nn.Parameter(torch.randn(CLASSES, config.model.embedding_dim, device=device) / 8)
    groups = [
        {"params": network.parameters(), "lr": config.optim.learning_rate},
        {"params": [proxies], "lr": config.optim.proxy_learning_rate},
    ]
    adam = torch.optim.Adam(groups, betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.epsilon)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=amp)

    def train(count: int) -> None:
        for _ in range(count):
            adam.zero_grad()
            with autocast():
                embeddings = forward(images)
            x = config.loss.embedding_scale * functional.normalize(embeddings.float())
            p = config.loss.proxy_scale * functional.normalize(proxies)
            smoothing = config.loss.label_smoothing
            target = torch.full((batch_size, CLASSES), smoothing / (CLASSES - 1), device=device)
            target[torch.arange(batch_size), labels.long()] = 1 - smoothing
            functional.cross_entropy(-torch.cdist(x, p).square(), target).backward()
            adam.step()
        wait()

    def embed(count: int) -> None:
        with torch.no_grad(), autocast():
            for _ in range(count):
                forward(images)
        wait()

    return {"train": train, "embed": embed}[step]


VARIANTS: dict[str, Callable[[str, int], Program]] = {
    "ours": ours,
    "eager": functools.partial(torch, channels_last=False),
    "channels_last": torch,
    "compile": functools.partial(torch, compiled=True),
    "amp": functools.partial(torch, compiled=True, amp=True),
}
REFERENCE = "eager"


def peak_mb(variant: str) -> float:
    if variant == "ours":
        import jax

        if stats := jax.devices()[0].memory_stats():
            return stats["peak_bytes_in_use"] / 1e6
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def serve(connection: Connection, variant: str, step: str, batch_size: int) -> None:
    """Builds and warms up a variant, then answers each count of steps with the seconds they took, and 0 with memory."""
    importlib.import_module("proxynca_jax.steps" if variant == "ours" else "convert.torch_network")
    before_mb = peak_mb(variant)
    program = VARIANTS[variant](step, batch_size)
    start = time.perf_counter()
    program(1)
    connection.send(time.perf_counter() - start)
    for count in iter(connection.recv, 0):
        start = time.perf_counter()
        program(count)
        connection.send(time.perf_counter() - start)
    connection.send(peak_mb(variant) - before_mb)


class Worker:
    """A variant in a process of its own."""

    def __init__(self, variant: str, step: str, batch_size: int):
        self._variant, self._step, self._batch_size = variant, step, batch_size
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, variant, step, batch_size), daemon=True)
        self._process.start()
        other.close()
        try:
            self._first_seconds = self._connection.recv()
        except EOFError:
            sys.exit(f"{variant} failed; see above")
        self._count = max(1, round(TURN_SECONDS / self._ask(1)))
        self._seconds: list[float] = []

    def _ask(self, count: int) -> float:
        self._connection.send(count)
        return self._connection.recv()

    def take_turn(self) -> None:
        self._seconds.append(self._ask(self._count) / self._count)

    def end(self) -> Row:
        peak = self._ask(0)
        self._process.join()
        seconds = statistics.median(self._seconds)
        speed = self._batch_size / seconds
        return Row(self._step, self._variant, self._batch_size, seconds, speed, self._first_seconds, peak)


def compare(variants: list[str], step: str, batch_size: int, repeats: int) -> list[Row]:
    """Measures the variants of a step in turns."""
    workers = [Worker(variant, step, batch_size) for variant in variants]
    for _ in range(repeats):
        for worker in workers:
            worker.take_turn()
    return [worker.end() for worker in workers]


def print_table(rows: list[Row]) -> None:
    speeds = {row.variant: row.images_per_second for row in rows}
    print(f"{rows[0].step}, batch {rows[0].batch_size}")
    print(f"  {'variant':14} {'images/s':>9} {'ratio':>6} {'step s':>8} {'first s':>8} {'peak MB':>8}")
    for row in rows:
        ratio = f"{row.images_per_second / speeds[REFERENCE]:6.2f}" if REFERENCE in speeds else f"{'':6}"
        numbers = f"{row.step_seconds:8.3f} {row.first_step_seconds:8.1f} {row.peak_mb:8,.0f}"
        print(f"  {row.variant:14} {row.images_per_second:9.1f} {ratio} {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=["train", "embed"], default=["train", "embed"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", "eager", "channels_last"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each variant (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the variants share a GPU's memory
    rows = []
    for step in arguments.steps:
        found = compare(arguments.variants, step, arguments.batch_size, arguments.repeats)
        print_table(found)
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()

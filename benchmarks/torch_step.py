"""Times our training and embedding steps beside PyTorch's, on whatever device both find.

    python -m benchmarks.torch_step [--steps train embed] [--variants ours eager ...] [--batch_size 32] [--repeats 5]

`eager` is the reference's own way, NCHW and one operation after the other; `channels_last` keeps NHWC as we do,
`compile` adds torch.compile to it, and `amp`, on a GPU only, bfloat16 by autocast. All train with ProxyNCA and Adam on
100 classes, from the same bytes, which lie on the device; the input pipeline has no part in it.

Each variant lives in a process of its own. When all have compiled and warmed up they take turns, each turn about a
second or one step, whatever is longer, while the others sleep; the table, in the form of `proxynca_jax.bench`, holds
medians over the turns. The last line is the same as JSON.
"""

import argparse
import functools
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from proxynca_jax.arguments import integer
from proxynca_jax.config import COUNT, PAIR, ModelConfig, TrainConfig
from proxynca_jax.host_memory import keep_freed_memory
from proxynca_jax.measurement import (
    STEPS,
    Measurement,
    describe_device,
    in_own_process,
    peak_mb,
    print_table,
    process_peak_mb,
)
from proxynca_jax.model_flops import peak_flops

CLASSES = 100  # CUB's
TURN_SECONDS = 1.0
Program = Callable[[int], None]  # runs so many steps and waits for their end


def make_batch(batch_size: int, image_size: int = 227) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, batch_size, np.int32)


def ours(step: str, batch_size: int, *, dtype: str) -> Program:
    import jax

    from proxynca_jax import steps
    from proxynca_jax.optim import make_optimizer

    config = TrainConfig(model=ModelConfig(compute_dtype=dtype))
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
        folded = embed_step.fold(state.params["network"], state.batch_stats)  # as once for each evaluation
        # The device computes them one after the other, and has them all once it has the last one.
        *_, last = (embed_step.embed(folded, batch["image"]) for _ in range(count))
        jax.block_until_ready(last)

    return {"train": train, "embed": embed}[step]


def torch(
    step: str, batch_size: int, *, channels_last: bool = True, compiled: bool = False, amp: bool = False
) -> Program:
    import torch

    from benchmarks.torch_training import make_adam, proxy_nca
    from convert.torch_network import TorchBNInception

    config = TrainConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if amp and device.type == "cpu":
        sys.exit("amp is for GPUs, and PyTorch finds none")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = TorchBNInception({"embedding_layer": config.model.embedding_dim}).to(device, memory_format=memory_format)
    network.train(step == "train")
    forward = torch.compile(network) if compiled else network
    images, labels = (torch.tensor(array, device=device) for array in make_batch(batch_size))
    # The network takes NHWC and sees NCHW: how the bytes lie in memory decides in which layout it computes.
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).permute(0, 2, 3, 1)
    proxies = torch.nn.Parameter(torch.randn(CLASSES, config.model.embedding_dim, device=device) / 8)
    adam = make_adam(network, proxies, config.optim)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=amp)

    def train(count: int) -> None:
        for _ in range(count):
            adam.zero_grad()
            with autocast():
                embeddings = forward(images)
            proxy_nca(embeddings.float(), proxies, labels, config.loss).backward()
            adam.step()
        wait()

    def embed(count: int) -> None:
        with torch.no_grad(), autocast():
            for _ in range(count):
                forward(images)
        wait()

    return {"train": train, "embed": embed}[step]


def torch_peak_mb() -> float:
    """The most memory that the GPU, or else this process, has held for PyTorch so far."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else process_peak_mb()


class Variant(NamedTuple):
    """A way to compute the two steps."""

    make: Callable[[str, int], Program]  # of a step and a batch size
    load: Callable[[], Any]  # brings all that it needs into the process
    peak_mb: Callable[[], float]
    dtype: str  # of its products


def load_jax() -> None:
    keep_freed_memory()  # as the commands do
    importlib.import_module("proxynca_jax.steps")


def in_jax(dtype: str) -> Variant:
    return Variant(functools.partial(ours, dtype=dtype), load_jax, peak_mb, dtype)


def in_torch(dtype: str = "float32", **options: bool) -> Variant:
    load = functools.partial(importlib.import_module, "convert.torch_network")
    return Variant(functools.partial(torch, **options), load, torch_peak_mb, dtype)


REFERENCE = "eager"
VARIANTS = {
    "ours": in_jax("float32"),
    "ours_bfloat16": in_jax("bfloat16"),
    REFERENCE: in_torch(channels_last=False),
    "channels_last": in_torch(),
    "compile": in_torch(compiled=True),
    "amp": in_torch("bfloat16", compiled=True, amp=True),
}


def serve(connection: Connection, name: str, step: str, batch_size: int) -> None:
    """Builds and warms up a variant, then answers each count of steps with the seconds they took, and 0 with memory."""
    variant = VARIANTS[name]
    variant.load()
    before_mb = variant.peak_mb()
    program = variant.make(step, batch_size)
    start = time.perf_counter()
    program(1)
    connection.send(time.perf_counter() - start)
    for count in iter(connection.recv, 0):
        start = time.perf_counter()
        program(count)
        connection.send(time.perf_counter() - start)
    connection.send(variant.peak_mb() - before_mb)


class Worker:
    """A variant in a process of its own, which sleeps between its turns."""

    def __init__(self, name: str, step: str, batch_size: int):
        self._name, self._step, self._batch_size = name, step, batch_size
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, name, step, batch_size), daemon=True)
        self._process.start()
        other.close()
        try:
            self._first_seconds = self._connection.recv()
        except EOFError:
            sys.exit(f"{name} failed; the reason is above")
        self._count = max(1, round(TURN_SECONDS / self._ask(1)))
        self._seconds: list[float] = []

    def _ask(self, count: int) -> float:
        self._connection.send(count)
        return self._connection.recv()

    def take_turn(self) -> None:
        self._seconds.append(self._ask(self._count) / self._count)

    def end(self, peak_flops: float) -> Measurement:
        peak_mb = self._ask(0)
        self._process.join()
        return Measurement(
            step=self._step,
            variant=self._name,
            batch_size=self._batch_size,
            step_seconds=statistics.median(self._seconds),
            first_step_seconds=self._first_seconds,
            peak_mb=peak_mb,
            peak_flops=peak_flops,
        )


def compare(names: list[str], step: str, batch_size: int, repeats: int, peaks: dict[str, float]) -> list[Measurement]:
    """Measures the variants of a step in turns.

    Args:
        names: keys of VARIANTS.
        step: one of STEPS.
        batch_size: images.
        repeats: turns of each.
        peaks: FLOP/s that the device can reach, by dtype.
    """
    workers = [Worker(name, step, batch_size) for name in names]
    for _, worker in itertools.product(range(repeats), workers):
        worker.take_turn()
    return [worker.end(peaks[VARIANTS[name].dtype]) for name, worker in zip(names, workers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", REFERENCE, "channels_last"])
    parser.add_argument("--batch_size", type=integer(PAIR), default=32)
    parser.add_argument(
        "--repeats", type=integer(COUNT), default=5, help="turns of each variant (default: %(default)s)"
    )
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the variants share a GPU's memory
    _, device = in_own_process(describe_device)
    dtypes = {VARIANTS[name].dtype for name in options.variants}
    peaks = {dtype: in_own_process(peak_flops, dtype)[0] for dtype in dtypes}
    device = f"{device}, torch {importlib.metadata.version('torch')}"
    print(device, flush=True)
    rows = []
    for step in options.steps:
        found = compare(options.variants, step, options.batch_size, options.repeats, peaks)
        print_table(found, next((row for row in found if row.variant == REFERENCE), found[0]))
        rows += found
    print(json.dumps({"device": device, "rows": [row.record() for row in rows]}))


if __name__ == "__main__":
    main()

"""Benchmarks our training and embedding steps compared with PyTorch's, on the same GPU or CPU.

    python -m benchmarks.torch_step [--steps train embed] [--variants ours eager ...] [--batch_size 32] [--repeats 5]

    ours                   float32
    ours_tensorfloat32     convolutions and matrix products in TF32; GPUs only
    ours_bfloat16          activations and products in bfloat16
    eager                  as the reference: NCHW, without torch.compile
    channels_last          eager with NHWC, as ours
    compile                channels_last with torch.compile and fused Adam
    compile_graphs         compile with mode="reduce-overhead", PyTorch's CUDA graphs; GPUs only
    amp                    channels_last with bfloat16 by autocast; GPUs only
    compile_amp            compile and amp
    compile_graphs_amp     compile_graphs and amp

PyTorch's float32 rows use its defaults. On GPUs with TF32 these compute float32 convolutions in TF32, and float32
matrix products in full precision. Their MFU is relative to the TF32 peak. All rows train with ProxyNCA and Adam on 100
classes, from the same batch in device memory, without an input pipeline. PyTorch's loss and Adam are not compiled.

Each variant has a process of its own. PyTorch's variants take their first steps at the same time, so the "first s" of
each includes waiting for the others' compilation. Then our variants take their first steps one after the other, because
XLA chooses kernels by their time on the GPU. After the warm-up the variants take turns, while the others sleep. A turn
lasts about a second or one step, whichever is longer.

The table has the columns of `proxynca_jax.bench` and contains medians over the turns. If a variant fails or exceeds
--timeout_seconds, its row has the reason, and the traceback is on standard error. The last line is the table as JSON,
with an "error" in failed rows. The exit status is 1 if every row failed.

On a GPU, the library's profiler records ten more steps:

    busy ms     time per step in which the GPU computes or copies
    kernels     kernels, copies and memsets per step
    launches    calls of the host that launch kernels; a CUDA graph is one launch
    changes     calls that record or update a CUDA graph because addresses changed

Our embedding program first folds BatchNorm into the weights, so these columns contain a tenth of that.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Iterator

import numpy as np

from benchmarks.device_busy import Program, profile_jax, profile_torch
from benchmarks.workers import Timing, Variant, measure_in_turns
from proxynca_jax.config import COUNT, PAIR, ModelConfig, TrainConfig
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.peak_flops import peak_flops
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.machine.xla_messages import hide_xla_warnings
from proxynca_jax.report.speed_table import (
    STEPS,
    Failure,
    Measurement,
    describe_device,
    in_own_process,
    peak_mb,
    print_table,
    process_peak_mb,
)

CLASSES = 100  # CUB's
CUDA_GRAPHS = "reduce-overhead"  # the mode of torch.compile


def make_batch(batch_size: int, image_size: int = 227) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, batch_size, np.int32)


def ours(step: str, batch_size: int, *, dtype: str) -> Program:
    import jax

    from proxynca_jax import steps
    from proxynca_jax.optim import make_optimizer

    if dtype == "tensorfloat32" and jax.default_backend() == "cpu":
        raise UserError("TF32 is for GPUs, and JAX finds none")
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
        folded = embed_step.fold(state.network())  # once, as in an evaluation
        # The device runs steps in order, so all are done when the last one is.
        *_, last = (embed_step.embed(folded, batch["image"]) for _ in range(count))
        jax.block_until_ready(last)

    return {"train": train, "embed": embed}[step]


def torch(
    step: str, batch_size: int, *, channels_last: bool = True, mode: str | None = None, amp: bool = False
) -> Program:
    """Builds PyTorch's program for a step.

    Args:
        step: one of STEPS.
        batch_size: images.
        channels_last: True for NHWC, False for NCHW.
        mode: of torch.compile. None does not compile.
        amp: whether to use bfloat16 by autocast.

    Raises:
        UserError: `amp` or CUDA graphs need a GPU, and there is none.
    """
    import torch

    from benchmarks.torch_training import make_adam, proxy_nca
    from convert.bn_inception import TorchBNInception

    config = TrainConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and (amp or mode == CUDA_GRAPHS):
        raise UserError(f"{'amp is' if amp else 'CUDA graphs are'} for GPUs, and PyTorch finds none")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = TorchBNInception({"embedding_layer": config.model.embedding_dim}).to(device, memory_format=memory_format)
    network.train(step == "train")
    forward = torch.compile(network, mode=mode) if mode else network
    images, labels = (torch.tensor(array, device=device) for array in make_batch(batch_size))
    # The network takes NHWC and permutes it to NCHW. The memory format of the bytes decides the layout of its kernels.
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).permute(0, 2, 3, 1)
    proxies = torch.nn.Parameter(torch.randn(CLASSES, config.model.embedding_dim, device=device) / 8)
    adam = make_adam(network, proxies, config.optim, fused=True if mode else None)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=amp)
    # Allows CUDA graphs to reuse the memory of the previous step's results, including gradients.
    begin_step = torch.compiler.cudagraph_mark_step_begin if mode == CUDA_GRAPHS else lambda: None

    def train(count: int) -> None:
        for _ in range(count):
            adam.zero_grad()
            begin_step()
            with autocast():
                embeddings = forward(images)
            proxy_nca(embeddings.float(), proxies, labels, config.loss).backward()
            adam.step()
        wait()

    def embed(count: int) -> None:
        with torch.no_grad(), autocast():
            for _ in range(count):
                begin_step()
                forward(images)
        wait()

    return {"train": train, "embed": embed}[step]


def torch_peak_mb() -> float:
    """Returns PyTorch's peak memory so far, in MB: on the GPU if there is one, otherwise of this process."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else process_peak_mb()


def load_jax() -> None:
    keep_freed_memory()  # as the commands do
    hide_xla_warnings()
    importlib.import_module("proxynca_jax.steps")


def in_jax(dtype: str) -> Variant:
    """Returns a variant of our program with this `model.compute_dtype`."""
    return Variant(functools.partial(ours, dtype=dtype), load_jax, peak_mb, profile_jax, dtype, starts_alone=True)


def in_torch(dtype: str = "tensorfloat32", **options: bool | str) -> Variant:
    """Returns a variant of PyTorch's program. `options` are those of `torch`. GPUs with TF32 use it for float32."""
    load = functools.partial(importlib.import_module, "convert.bn_inception")
    return Variant(functools.partial(torch, **options), load, torch_peak_mb, profile_torch, dtype, starts_alone=False)


REFERENCE = "eager"
VARIANTS = {
    "ours": in_jax("float32"),
    "ours_tensorfloat32": in_jax("tensorfloat32"),
    "ours_bfloat16": in_jax("bfloat16"),
    REFERENCE: in_torch(channels_last=False),
    "channels_last": in_torch(),
    "compile": in_torch(mode="default"),
    "compile_graphs": in_torch(mode=CUDA_GRAPHS),
    "amp": in_torch("bfloat16", amp=True),
    "compile_amp": in_torch("bfloat16", mode="default", amp=True),
    "compile_graphs_amp": in_torch("bfloat16", mode=CUDA_GRAPHS, amp=True),
}


def device_peak(dtype: str) -> float:
    """Returns the peak FLOP/s of JAX's devices in the precision that they use for a `model.compute_dtype`."""
    return peak_flops(computed_in(dtype))[0]


@functools.cache
def peak(dtype: str) -> float | None:
    """Calls `device_peak` in a process of its own. If that fails, prints the traceback and returns None."""
    try:
        return in_own_process(device_peak, dtype)
    except Exception:  # only the MFU column depends on it
        traceback.print_exc()
        return None


@contextlib.contextmanager
def share_device_memory() -> Iterator[None]:
    """Makes JAX in new processes allocate GPU memory on demand, unless the user has set an allocation policy."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    before = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def compare(
    names: list[str], step: str, batch_size: int, repeats: int, timeout_seconds: float
) -> list[Measurement | Failure]:
    """Measures the variants of a step in turns.

    Args:
        names: keys of VARIANTS.
        step: one of STEPS.
        batch_size: images.
        repeats: turns of each variant.
        timeout_seconds: of `measure_in_turns`.

    Returns:
        One row per name.
    """
    chosen = {name: VARIANTS[name] for name in names}
    rows: list[Measurement | Failure] = []
    with share_device_memory():
        results = measure_in_turns(chosen, step, batch_size, repeats, timeout_seconds)
    for name, found in results.items():
        if not isinstance(found, Timing):
            rows.append(Failure(step, name, batch_size, str(found)))
            continue
        activity = found.activity
        row = Measurement(
            step=step,
            variant=name,
            batch_size=batch_size,
            step_seconds=found.step_seconds,
            first_step_seconds=found.first_step_seconds,
            peak_mb=found.peak_mb,
            peak_flops=peak(chosen[name].dtype),
            device_busy_seconds=activity and activity.busy_seconds,
            kernels=activity and activity.kernels,
            launches=activity and activity.launches,
            graph_changes=activity and activity.graph_changes,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", REFERENCE, "channels_last"])
    parser.add_argument("--batch_size", type=integer(PAIR), default=32)
    parser.add_argument(
        "--repeats", type=integer(COUNT), default=5, help="turns of each variant (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout_seconds",
        type=integer(COUNT),
        default=300,
        help="a variant fails if loading, its first step, or a turn takes longer (default: %(default)s)",
    )
    options = parser.parse_args()
    _, device = in_own_process(describe_device)
    device = f"{device}, torch {importlib.metadata.version('torch')}"
    print(device, flush=True)
    rows: list[Measurement | Failure] = []
    for step in options.steps:
        found = compare(options.variants, step, options.batch_size, options.repeats, options.timeout_seconds)
        measured = {row.variant: row for row in found if isinstance(row, Measurement)}
        print_table(found, measured.get(REFERENCE) or next(iter(measured.values()), None))
        sys.stdout.flush()  # so this table is visible even if the next step ends this process
        rows += found
    print(json.dumps({"device": device, "rows": [row.record() for row in rows]}))
    if all(isinstance(row, Failure) for row in rows):
        sys.exit("all variants failed; the reasons are above")


if __name__ == "__main__":
    main()

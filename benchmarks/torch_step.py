"""Benchmarks our training and embedding steps compared with PyTorch's, on the same GPU or CPU.

    python -m benchmarks.torch_step [--steps train embed] [--variants ours torch_keep ...] [--batch_size 32]
        [--repeats 5] [--backbone efficientnet_lite0] [--image_size 128] [--fixed_batch_norm]

    ours                   float32
    ours_tensorfloat32     convolutions and matrix products in TF32; GPUs only
    ours_bfloat16          activations and products in bfloat16
    torch_keep             channels_last with our allocator setting (`keep_freed_memory`), which changes nothing on GPUs
    channels_last          PyTorch with NHWC, as ours, and without torch.compile
    eager                  as the reference: NCHW, without torch.compile
    compile                channels_last with torch.compile and fused Adam
    compile_graphs         compile with mode="reduce-overhead", PyTorch's CUDA graphs; GPUs only
    amp                    channels_last with bfloat16 by autocast; GPUs only
    compile_amp            compile and amp
    compile_graphs_amp     compile_graphs and amp
    onnxruntime            the exported ONNX file; embedding only, on the CPU even if there is a GPU

By default these are ours, torch_keep, channels_last and, for embedding, onnxruntime. The column "ratio" is a variant's
speed divided by that of torch_keep. It is the fair opponent on a CPU: with glibc's own settings PyTorch takes and
returns memory in each step, and its times spread.

--backbone chooses the network: bn_inception (default) or efficientnet_lite0. --image_size is the side of the images in
pixels, by default the one that the network's weights expect: 227 or 224. With --fixed_batch_norm, training normalises
by the running statistics and leaves them as they are, as `model.fixed_batch_norm` does. All weights are random.

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

Our embedding program and onnxruntime's fold BatchNorm into the weights before the clock starts, as an evaluation does
once.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.device_busy import Program, profile_jax, profile_torch
from benchmarks.workers import Timing, Variant, Work, measure_in_turns
from proxynca_jax.config import COUNT, PAIR, ModelConfig, TrainConfig
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.peak_flops import peak_flops
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.machine.xla_messages import hide_xla_warnings
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import forward_flops
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
NETWORKS = ("bn_inception", "efficientnet_lite0")  # keys of torch_training.NETWORKS; that module imports PyTorch
CUDA_GRAPHS = "reduce-overhead"  # the mode of torch.compile


def make_batch(batch_size: int, image_size: int = 227) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, batch_size, np.int32)


def ours(work: Work, *, dtype: str) -> Program:
    import jax

    from proxynca_jax import steps
    from proxynca_jax.optim import make_optimizer

    if dtype == "tensorfloat32" and jax.default_backend() == "cpu":
        raise UserError("TF32 is for GPUs, and JAX finds none")
    config = TrainConfig(model=dataclasses.replace(work.model, compute_dtype=dtype))
    optimizer = make_optimizer(config.optim, steps_per_epoch=100)
    graph, state = steps.init_state(config.model, optimizer, classes=CLASSES, seed=0)
    arrays = make_batch(work.batch_size, work.image_size)
    batch = jax.device_put(dict(zip(("image", "label"), arrays, strict=True)))
    fixed = config.model.fixed_batch_norm
    train_step = steps.make_train_step(graph, config.loss, optimizer, fixed_batch_norm=fixed)
    embed_step = steps.make_embed_step(graph)

    def train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = train_step(state, batch)
        jax.block_until_ready(state)

    if work.step == "train":
        return train
    folded = embed_step.fold(state.network())

    def embed(count: int) -> None:
        # The device runs steps in order, so all are done when the last one is.
        *_, last = (embed_step.embed(folded, batch["image"]) for _ in range(count))
        jax.block_until_ready(last)

    return embed


def torch(work: Work, *, channels_last: bool = True, mode: str | None = None, amp: bool = False) -> Program:
    """Builds PyTorch's program for a step.

    Args:
        work: its step, network and batch.
        channels_last: True for NHWC, False for NCHW.
        mode: of torch.compile. None does not compile.
        amp: whether to use bfloat16 by autocast.

    Raises:
        UserError: `amp` or CUDA graphs need a GPU, and there is none.
    """
    import torch

    from benchmarks.torch_training import make_adam, make_network, proxy_nca

    config = TrainConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and (amp or mode == CUDA_GRAPHS):
        raise UserError(f"{'amp is' if amp else 'CUDA graphs are'} for GPUs, and PyTorch finds none")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = make_network(work.model, train=work.step == "train").to(device, memory_format=memory_format)
    forward = torch.compile(network, mode=mode) if mode else network
    images, labels = (torch.tensor(array, device=device) for array in make_batch(work.batch_size, work.image_size))
    # The network takes NHWC and permutes it to NCHW. The memory format of the bytes decides the layout of its kernels.
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).permute(0, 2, 3, 1)
    proxies = torch.nn.Parameter(torch.randn(CLASSES, work.model.embedding_dim, device=device) / 8)
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

    return {"train": train, "embed": embed}[work.step]


def onnxruntime(work: Work) -> Program:
    """Builds onnxruntime's program for the embedding step.

    Raises:
        UserError: the step is another, or onnxruntime is not installed.
    """
    from proxynca_jax.exported_files.onnx_file import onnxruntime_step
    from proxynca_jax.models.network import init_network

    if work.step != "embed":
        raise UserError("onnxruntime only embeds")
    _, variables = init_network(work.model, np.random.default_rng(0))
    embed_step = onnxruntime_step(work.model, variables, work.image_size)
    images, _ = make_batch(work.batch_size, work.image_size)

    folded = embed_step.fold(variables)

    def embed(count: int) -> None:
        for _ in range(count):
            embed_step.embed(folded, images)

    return embed


def torch_peak_mb() -> float:
    """Returns PyTorch's peak memory so far, in MB: on the GPU if there is one, otherwise of this process."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else process_peak_mb()


def load_jax() -> None:
    keep_freed_memory()  # as the commands do
    hide_xla_warnings()
    importlib.import_module("proxynca_jax.steps")


def load_torch() -> None:
    importlib.import_module("benchmarks.torch_training")


def load_torch_and_keep_memory() -> None:
    keep_freed_memory()  # before PyTorch starts its threads
    load_torch()


def no_profile(_program: Program, _steps: int) -> None:
    """Returns no profile: a GPU has no part in it."""


def in_jax(dtype: str) -> Variant:
    """Returns a variant of our program with this `model.compute_dtype`."""
    return Variant(functools.partial(ours, dtype=dtype), load_jax, peak_mb, profile_jax, dtype, starts_alone=True)


def in_torch(dtype: str = "tensorfloat32", load: Callable[[], None] = load_torch, **options: bool | str) -> Variant:
    """Returns a variant of PyTorch's program. `options` are those of `torch`. GPUs with TF32 use it for float32."""
    return Variant(functools.partial(torch, **options), load, torch_peak_mb, profile_torch, dtype, starts_alone=False)


REFERENCE = "torch_keep"
DEFAULTS = {"train": ["ours", REFERENCE, "channels_last"], "embed": ["ours", REFERENCE, "channels_last", "onnxruntime"]}
VARIANTS = {
    "ours": in_jax("float32"),
    "ours_tensorfloat32": in_jax("tensorfloat32"),
    "ours_bfloat16": in_jax("bfloat16"),
    REFERENCE: in_torch(load=load_torch_and_keep_memory),
    "channels_last": in_torch(),
    "eager": in_torch(channels_last=False),
    "compile": in_torch(mode="default"),
    "compile_graphs": in_torch(mode=CUDA_GRAPHS),
    "amp": in_torch("bfloat16", amp=True),
    "compile_amp": in_torch("bfloat16", mode="default", amp=True),
    "compile_graphs_amp": in_torch("bfloat16", mode=CUDA_GRAPHS, amp=True),
    "onnxruntime": Variant(onnxruntime, load_jax, process_peak_mb, no_profile, "float32", starts_alone=False),
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


def compare(names: list[str], work: Work, repeats: int, timeout_seconds: float) -> list[Measurement | Failure]:
    """Measures the variants of a step in turns.

    Args:
        names: keys of VARIANTS.
        work: of all variants.
        repeats: turns of each variant.
        timeout_seconds: of `measure_in_turns`.

    Returns:
        One row per name.
    """
    chosen = {name: VARIANTS[name] for name in names}
    rows: list[Measurement | Failure] = []
    with share_device_memory():
        results = measure_in_turns(chosen, work, repeats, timeout_seconds)
    for name, found in results.items():
        if not isinstance(found, Timing):
            rows.append(Failure(work.step, name, work.batch_size, str(found)))
            continue
        activity = found.activity
        row = Measurement(
            step=work.step,
            variant=name,
            batch_size=work.batch_size,
            step_seconds=found.step_seconds,
            first_step_seconds=found.first_step_seconds,
            peak_mb=found.peak_mb,
            peak_flops=peak(chosen[name].dtype),
            image_flops=forward_flops(work.model, work.image_size),
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
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="default: see above")
    parser.add_argument("--batch_size", type=integer(PAIR), default=32)
    parser.add_argument("--backbone", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--image_size", type=integer(COUNT), help="pixels (default: what the network's weights expect)")
    parser.add_argument("--fixed_batch_norm", action="store_true", help="train with fixed BatchNorm statistics")
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
    backbone = BACKBONES[options.backbone]
    image_size = options.image_size or backbone.preprocessing.image_size
    with exit_on_user_error():
        backbone.check_image_size(image_size)
    model = ModelConfig(backbone=options.backbone, fixed_batch_norm=options.fixed_batch_norm)
    _, device = in_own_process(describe_device)
    device = f"{device}, torch {importlib.metadata.version('torch')}"
    print(device, flush=True)
    rows: list[Measurement | Failure] = []
    for step in options.steps:
        work = Work(step, options.batch_size, model, image_size)
        found = compare(options.variants or DEFAULTS[step], work, options.repeats, options.timeout_seconds)
        measured = {row.variant: row for row in found if isinstance(row, Measurement)}
        print_table(found, measured.get(REFERENCE) or next(iter(measured.values()), None))
        sys.stdout.flush()  # so this table is visible even if the next step ends this process
        rows += found
    report = {"device": device, "backbone": model.backbone, "image_size": image_size}
    report |= {"fixed_batch_norm": model.fixed_batch_norm, "rows": [row.record() for row in rows]}
    print(json.dumps(report))
    if all(isinstance(row, Failure) for row in rows):
        sys.exit("all variants failed; the reasons are above")


if __name__ == "__main__":
    main()

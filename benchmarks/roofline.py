"""Roofline of our steps: their time compared with this machine's compute and memory bounds, and a profile by operation.

    python -m benchmarks.roofline [--steps train embed] [--batch_size 32] [--repeats 5]

The first line of a step says what share of the machine's peak it uses today: the model's FLOP/s divided by the FLOP/s
of XLA's product of two float32 matrices of 2048 × 2048, the fastest of five, measured in the same run. oneDNN's
convolutions can exceed it.

There are two bounds:

- compute: FLOP / that peak;
- memory: the bytes that operations read and write / the bytes/s of a large copy.

Both counts are the compiler's (`cost_analysis`). It counts the body of a loop once. On CPUs, gradients of large
activations are loops over images, so there the model's FLOP are the better count. Neither bound is strict: small
operands stay in caches, and a step computes and copies at the same time.

The profile of one step gives the seconds of each kind of operation, summed over threads. A fusion counts as the
convolution or matrix product in it, or otherwise as its last operation.
"""

import argparse
import collections
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from benchmarks.compiled_program import custom_calls, fused_products, operation_names
from benchmarks.torch_step import CLASSES, make_batch
from proxynca_jax import steps
from proxynca_jax.config import COUNT, PAIR, DataConfig, ModelConfig, TrainConfig
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.host_memory import keep_freed_memory
from proxynca_jax.machine.peak_flops import measured_matmul
from proxynca_jax.models.network import TRAINING_PASSES, forward_flops
from proxynca_jax.onednn import library
from proxynca_jax.optim import make_optimizer
from proxynca_jax.report.speed_table import STEPS

COPY_BYTES = 1 << 30  # larger than the caches
REST = "BatchNorm, ReLU, loss, Adam"
MOVING = "moving data"
PRODUCTS = {"convolution": "convolutions", "dot": "matrix products"}  # by XLA opcode
HANDLERS = {  # of `library`; the others are sums of BatchNorm
    **dict.fromkeys(("convolution", "convolutions_image_by_image"), "convolutions"),
    **dict.fromkeys(("gradient_of_images", "gradient_of_kernel", "gradient_of_depthwise_kernel"), "convolutions"),
    **dict.fromkeys(("max_pool", "gradient_of_max_pool", "average_pool"), "pools"),
}
PARTS = ("forward", "backward", "update", "compiler")  # "compiler": operations that the compiler adds or does not name
KINDS = {  # by the name of the JAX operation; a fusion has the name of its last operation
    "conv_general_dilated": "convolutions",
    "dot_general": "matrix products",
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum", "select_and_scatter_add"), "pools"),
    **dict.fromkeys(("copy", "transpose", "concatenate", "stack", "pad", "slice", "reshape", "rev"), MOVING),
}


def measured_copy() -> float:
    """Measures memory bandwidth: bytes/s, read plus written, of the fastest of five in-place passes over an array."""
    array = jnp.ones(COPY_BYTES // 4, jnp.float32)
    step = jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile()

    def run() -> jax.Array:
        nonlocal array
        array = step(array)
        return array

    return 2 * COPY_BYTES / min(seconds(run) for _ in range(5))


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compiled_steps(batch_size: int) -> dict[str, tuple[jax.stages.Compiled, Callable[[], Any]]]:
    """Compiles our two steps. Returns for each the compiled program and a function that runs it once."""
    config = TrainConfig()
    optimizer = make_optimizer(config.optim, steps_per_epoch=100)
    graph, state = steps.init_state(config.model, optimizer, classes=CLASSES, seed=0)
    images, labels = jax.device_put(make_batch(batch_size))
    batch = {"image": images, "label": labels}
    train = steps.make_train_step(graph, config.loss, optimizer).lower(state, batch).compile()
    embed_step = steps.make_embed_step(graph)
    network = embed_step.fold(state.network())
    embed = embed_step.embed.lower(network, images).compile()

    def run_training() -> Any:
        nonlocal state
        state, loss = train(state, batch)
        return state, loss

    return {"train": (train, run_training), "embed": (embed, lambda: embed(network, images))}


def profiled(program: jax.stages.Compiled, call: Callable[[], Any]) -> dict[tuple[str, str], float]:
    """Profiles a step. Returns seconds by kind of operation and part of the step."""
    text = program.as_text()
    names = operation_names(text)
    known = {fusion: PRODUCTS[product] for fusion, product in fused_products(text).items()}
    handlers = {library.target(handler): HANDLERS.get(handler, REST) for handler in library.HANDLERS}
    known |= {name: handlers[called] for name, called in custom_calls(text).items() if called in handlers}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        spent = collections.defaultdict(float)
        for operation, nanoseconds in operations(ProfileData.from_file(str(path))):
            name = names.get(operation, "")
            kind = known.get(operation) or (KINDS.get(name.rpartition("/")[2], REST) if name else MOVING)
            spent[kind, part_of(name)] += nanoseconds / 1e9
    return dict(spent)


def part_of(name: str) -> str:
    """Returns the part of a step, one of PARTS, of an operation with this name stack."""
    if not name:
        return "compiler"
    if "transpose(" in name:
        return "backward"
    return "forward" if "jvp(" in name or "train_step" not in name else "update"


def operations(profile: ProfileData) -> Iterator[tuple[str, float]]:
    """Yields each operation's name in the compiled program and its nanoseconds."""
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if operation := dict(event.stats).get("hlo_op"):
                    yield str(operation), event.duration_ns


def report(step: str, batch_size: int, program: jax.stages.Compiled, call: Callable[[], Any], repeats: int) -> None:
    """Measures a step and prints its time, its bounds and its profile."""
    flops_per_second, bytes_per_second = measured_matmul("float32"), measured_copy()
    jax.block_until_ready(call())
    measured = statistics.median(seconds(call) for _ in range(repeats))
    cost = program.cost_analysis()
    assert cost is not None
    passes = TRAINING_PASSES if step == "train" else 1
    model = passes * batch_size * forward_flops(ModelConfig(), DataConfig().image_size)
    share = f"{model / measured / flops_per_second:.0%} of the machine's peak of {flops_per_second / 1e9:.0f} GFLOP/s"
    print(f"{step}, batch {batch_size}: {measured:.3f} s, {batch_size / measured:.1f} images/s, {share}")
    for what, amount, speed, unit in (
        ("model FLOP", model, flops_per_second, "GFLOP"),
        ("compiled FLOP", cost["flops"], flops_per_second, "GFLOP"),
        ("bytes accessed", cost["bytes accessed"], bytes_per_second, "GB"),
    ):
        bound = f"{amount / speed:7.3f} s, {amount / speed / measured:4.0%} of the step's time"
        print(f"  {what:14} {amount / 1e9:8.1f} {unit:5} at {speed / 1e9:6.1f} {unit}/s: {bound}")
    print_kinds(profiled(program, call))


def print_kinds(spent: dict[tuple[str, str], float]) -> None:
    whole = sum(spent.values())
    parts = [part for part in PARTS if any(found == part for _, found in spent)]
    print(f"  {'seconds, sum over threads':28}" + "".join(f"{part:>10}" for part in [*parts, "share"]))
    for kind in dict.fromkeys([*KINDS.values(), REST]):
        row = [spent.get((kind, part), 0.0) for part in parts]
        print(f"  {kind:28}" + "".join(f"{value:10.3f}" for value in row) + f"{sum(row) / whole:10.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--batch_size", type=integer(PAIR), default=32)
    parser.add_argument("--repeats", type=integer(COUNT), default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    programs = compiled_steps(arguments.batch_size)
    for step in arguments.steps:
        report(step, arguments.batch_size, *programs[step], arguments.repeats)


if __name__ == "__main__":
    main()

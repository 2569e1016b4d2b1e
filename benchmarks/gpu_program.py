"""Compiles our training and embedding steps for H100s, on a machine without a GPU, and counts kernels and bytes.

    python -m benchmarks.gpu_program [--steps train embed] [--dtypes float32 tensorfloat32 bfloat16] [--devices 1 8]

It needs JAX's CUDA plugin (`pip install "jax[cuda13]"`, about 3 GB), but neither a GPU nor a driver. Without a driver,
set JAX_PLATFORMS=cpu; otherwise the plugin looks for one and fails. The benchmark prints

- the kernels of a step (fusions, library calls, copies), its CUDA graphs, and the launches outside them;
- the gigabytes of operands and results. This is an upper estimate, because a fusion that reads a slice of an operand
  counts the whole operand;
- copies, collectives with their bytes and overlapped launches, and memory;
- three lower bounds in milliseconds: launches at 3 µs each (less in CUDA graphs), memory traffic at 3.35 TB/s, and the
  arithmetic of the convolutions at the device's peak FLOP/s for the dtype.

No time is measured. XLA cannot autotune without a GPU, so it may choose other kernels on a real one.

Counts for the training step of 32 images on one H100, with jax 0.10.2. The rows between the first and the last were
taken during development.

    variant                                                             dtype     kernels        GB    copies
    1x1 convolutions as matrix products, gradients by differentiation   float32     1,468     16.26
    BatchNorm + ReLU with a custom gradient; pools that gather; one     float32     1,123      8.88
      convolution for the 1x1 convolutions of a block; average pools
      after projections
    the same, except for the pools' gradient                            bfloat16    1,149      5.18
    pools by platform; both sums of BatchNorm in two short stages;      bfloat16      740      5.28
      state not donated
    both sums in one reduction; gradients of vectors gathered           float32       721      8.67
                                                                        bfloat16      737      4.74
    kernels with output channels first                                  float32       661      8.56
                                                                        bfloat16      721      4.71
    BatchNorm as a factor and an offset; its estimate of the mean       float32       641      8.08
      computed in the same pass                                         bfloat16      692      4.64
    state donated (copies of 0.01 GB), so addresses repeat from step    float32       668      8.09        27
      to step                                                           bfloat16      730      4.64        38
    state's vectors packed; moments in one array; a pool's gradient     float32       608                   3
      from four windows; stem by blocks                                 bfloat16      631                   1

The last row has no bytes, because 40 fusions of the optimiser each read a slice of the moments and would each count all
of them.

The embedding step of 32 images, with BatchNorm folded, has no copies:

    dtype       kernels      GB
    float32          90    1.87
    bfloat16        130    1.06

Each program is one CUDA graph with no launches outside it, in each precision, on one GPU and on eight.

The training step on each of eight H100s, with 32 images on each. About 60 of the kernels gather BatchNorm's sums from
all devices, and about 150 more come from running on several devices. The last column has the buckets whose all-reduce
overlaps convolutions.

    all-reduce of the gradients     dtype       kernels      GB    buckets          overlapped
    XLA's default buckets           float32         859    9.49    11 MB, 30 MB     the 11 MB
                                    bfloat16        911    5.65    21 MB            none
    buckets of at most 5 MB         float32         873    8.44    11 above 1 MB    all but the last
                                    bfloat16        919    4.94    5 above 1 MB     all but the last
    the same; state packed,         float32         838            10 above 1 MB
      pools and stem as above       bfloat16        862            5 above 1 MB
"""

import argparse
import collections
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, Sharding

from benchmarks.compiled_program import Instruction, read_program, read_thunks
from proxynca_jax import steps
from proxynca_jax.config import COUNT, PAIR, LossConfig, ModelConfig, OptimConfig
from proxynca_jax.machine.arguments import integer
from proxynca_jax.machine.peak_flops import DATASHEET
from proxynca_jax.models.network import TRAINING_PASSES, forward_flops
from proxynca_jax.optim import make_optimizer
from proxynca_jax.sharding import AXIS, Layout

# XLA's description of an H100 with 80 GB (SXM).
H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version { major: 12 minor: 8 } dnn_version_info { major: 9 minor: 7 }
gpu_device_info {
  driver_version: "13.0.0" kernel_mode_driver_version: "580.159.4"
  runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 device_memory_size: 84929347584 l2_cache_size: 52428800
}
"""
BYTES_PER_SECOND = 3.35e12
SECONDS_PER_LAUNCH = 3e-6
FLOPS_PER_SECOND = DATASHEET["NVIDIA H100"]

CLASSES, EMBEDDING_DIM, IMAGE_SIZE = 100, 64, 227  # CUB's

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Account(NamedTuple):
    """Counts of a compiled step."""

    instructions: list[Instruction]
    graphs: int  # CUDA graphs
    outside: collections.Counter[str]  # launches outside them, by kind of thunk
    peak_bytes: int  # arguments, results and temporary arrays
    flops: float  # of one device

    def total(self, prefix: str = "") -> tuple[int, float]:
        """Returns the number of instructions whose kind has this prefix, and the gigabytes of operands and results."""
        chosen = [each for each in self.instructions if each.kind.startswith(prefix)]
        return len(chosen), sum(each.result_bytes + each.operand_bytes for each in chosen) / 1e9


def describe_h100s(count: int) -> Layout:
    """Returns a layout of H100s in one host. They need not exist: programs can be compiled for them, but not run."""
    try:
        topology = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{count}")
    except (RuntimeError, NotImplementedError, KeyError) as error:
        sys.exit(f'JAX cannot compile for CUDA here: {error}\nInstall its plugin: pip install "jax[cuda13]"')
    return Layout(Mesh(np.array(topology.devices), (AXIS,)))


def lower(step: str, dtype: str, batch_size: int, layout: Layout) -> Any:
    """Traces and lowers one of our steps, with the options of a run on GPUs."""
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=183)
    config = ModelConfig(embedding_dim=EMBEDDING_DIM, compute_dtype=dtype)
    graph, state = steps.init_state(config, optimizer, classes=CLASSES, seed=0)

    def describe(leaf: jax.Array, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    images = jax.ShapeDtypeStruct((batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8, sharding=layout.sharded)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=layout.sharded)
    options = steps.compiler_options("gpu")
    if step == "embed":
        embed_step: Any = steps.make_embed_step(graph, layout, options=options)
        network = jax.eval_shape(embed_step.fold, state.network())
        return embed_step.embed.lower(jax.tree.map(describe, network, layout.shardings(network)), images)
    train_step: Any = steps.make_train_step(graph, LossConfig(), optimizer, layout=layout, options=options)
    described = jax.tree.map(describe, state, layout.shardings(state))
    return train_step.lower(described, {"image": images, "label": labels})


def compile_for(step: str, dtype: str, batch_size: int, layout: Layout) -> Account:
    """Compiles one of our steps. This takes two cores half a minute to two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lower(step, dtype, batch_size, layout).compile(compiler_options={"xla_dump_to": folder})
        (thunks,) = Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt")
        graphs, outside = read_thunks(thunks.read_text())
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    images = batch_size / layout.mesh.size * (TRAINING_PASSES if step == "train" else 1)
    flops = forward_flops(ModelConfig(embedding_dim=EMBEDDING_DIM), IMAGE_SIZE) * images
    return Account(read_program(text), graphs, outside, peak + memory.temp_size_in_bytes, flops)


def report(title: str, account: Account, dtype: str) -> None:
    kernels, gigabytes = account.total()
    milliseconds = {
        "launches": kernels * SECONDS_PER_LAUNCH,
        "memory": gigabytes * 1e9 / BYTES_PER_SECOND,
        "arithmetic": account.flops / FLOPS_PER_SECOND[dtype],
    }
    bounds = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in milliseconds.items())
    print(
        f"{title}: {kernels} kernels, {gigabytes:.2f} GB, memory {account.peak_bytes / 1e9:.2f} GB; at least {bounds}"
    )
    print(f"  CUDA graphs {account.graphs}, outside them {sum(account.outside.values())} {dict(account.outside)}")
    copies = [each for each in account.instructions if each.kind.startswith("copy")]
    largest = max((each.result_bytes for each in copies if each.result_rank == 4), default=0)
    print(f"  copies {len(copies)}, the largest with four dimensions {largest / 1e6:.2f} MB")
    for name in COLLECTIVES:
        chosen = [each for each in account.instructions if each.kind.startswith(name)]
        if chosen:
            overlapped = sum(each.overlapped_launches > 0 for each in chosen)
            print(f"  {name} {len(chosen)}, {overlapped} of them overlapped")
        for each in chosen:
            if each.operand_bytes > 1e6:  # the small ones are BatchNorm's and would fill a page
                print(f"    {each.operand_bytes / 1e6:.1f} MB, {each.overlapped_launches} overlapped launches")
    for kind, count in collections.Counter(each.kind for each in account.instructions).most_common():
        print(f"  {kind:36} {count:5} {account.total(kind)[1]:8.3f} GB")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=("train", "embed"), default=["train", "embed"])
    parser.add_argument("--dtypes", nargs="+", choices=FLOPS_PER_SECOND, default=list(FLOPS_PER_SECOND))
    parser.add_argument("--devices", nargs="+", type=integer(COUNT), default=[1, 8])
    parser.add_argument("--batch_size", type=integer(PAIR), default=32, help="images per device (default: %(default)s)")
    arguments = parser.parse_args()
    for devices in arguments.devices:
        layout = describe_h100s(devices)
        for step in arguments.steps:
            for dtype in arguments.dtypes:
                account = compile_for(step, dtype, arguments.batch_size * devices, layout)
                report(f"{step} {dtype} on {devices}", account, dtype)


if __name__ == "__main__":
    main()

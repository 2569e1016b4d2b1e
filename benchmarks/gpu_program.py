"""Compiles our train and embed steps for described H100s, on a machine that needs none, and accounts for the programs.

    python -m benchmarks.gpu_program [--steps train embed] [--dtypes float32 tensorfloat32 bfloat16] [--devices 1 8]

It needs JAX's CUDA plugin (`pip install "jax[cuda13]"`, about 3 GB), but neither a GPU nor its driver; where they
are missing, set JAX_PLATFORMS=cpu, or the plugin looks for them and gives up. It prints

- the kernels of a step (fusions, library calls, copies), its CUDA graphs, and what is launched outside them;
- the gigabytes that operands and results span (an upper estimate: a fusion that reads a part counts the whole);
- copies, collectives with what they carry and what is launched before they have to be done, and memory;
- three lower bounds in milliseconds: launches at 3 µs each (less in CUDA graphs), memory traffic at 3.35 TB/s, and the
  arithmetic of the convolutions at the peak rate of the cores that compute the type.

No time is measured. XLA cannot tune without a GPU, so on one it may choose other kernels.

The training step of 32 images on one H100, with jax 0.10.2. Rows between the first and the last were taken while the
code moved.

    1x1 convolutions as matrix products, gradients by differentiation   float32   1,468 kernels  16.26 GB
    BatchNorm and ReLU with a gradient of their own; pools that gather;
      1x1 convolutions of a block as one; averages after projections    float32   1,123           8.88
    the same, but for the pools' gradient                               bfloat16  1,149           5.18
    pools by platform, both sums of BatchNorm in two short stages,
      the state not donated                                             bfloat16    740           5.28
    both sums in one reduction, gradients of vectors gathered           float32     721           8.67
                                                                        bfloat16    737           4.74
    kernels with their output channels first                            float32     661           8.56
                                                                        bfloat16    721           4.71
    BatchNorm as a factor and an offset, its guess taken in the pass    float32     641           8.08
                                                                        bfloat16    692           4.64

    the state donated (27 and 38 copies, 0.01 GB), so its addresses     float32     668           8.09
      repeat from step to step                                          bfloat16    730           4.64
    vectors of the state packed, moments in one array, a pool's         float32     608
      gradient from four windows, the stem by blocks (3 and 1 copies)   bfloat16    631

The last row has no bytes: 40 fusions of the optimiser each read a part of the moments, and the whole would be counted.

The embedding step of 32 images with BatchNorm folded: 90 kernels and 1.87 GB in float32, 130 and 1.06 GB in bfloat16,
no copy. Each program is one CUDA graph with nothing launched outside it, in each precision, on one GPU and on eight.

The training step on each of eight H100s, 32 images on each. Some 60 of the kernels gather BatchNorm's sums from all
devices, and about 150 more follow from there being several.

    gradients added up as XLA chooses: 11 and 30 MB, 21 in bfloat16;    float32     859 kernels   9.49 GB
      convolutions run during the 11 MB only                            bfloat16    911           5.65
    at most 5 MB at a time: 11 parts above 1 MB, 5 in bfloat16;         float32     873           8.44
      convolutions run during all but the last                          bfloat16    919           4.94
    the state packed, pools and stem as above; 10 parts, 5 in bfloat16  float32     838
                                                                        bfloat16    862
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
from proxynca_jax.models.flops import TRAINING, forward_flops
from proxynca_jax.optim import make_optimizer
from proxynca_jax.sharding import AXIS, Layout

# XLA's own words for an H100 of 80 GB (SXM).
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
    """What a compiled step is made of."""

    instructions: list[Instruction]
    graphs: int  # CUDA graphs
    outside: collections.Counter[str]  # what is launched outside them, by XLA's kind of thunk
    peak_bytes: int  # arguments, results and what lies between, at most at once
    flops: float  # of one device

    def total(self, prefix: str = "") -> tuple[int, float]:
        """How many instructions there are of the kinds that begin so, and the gigabytes that they span."""
        chosen = [each for each in self.instructions if each.kind.startswith(prefix)]
        return len(chosen), sum(each.result_bytes + each.operand_bytes for each in chosen) / 1e9


def describe_h100s(count: int) -> Layout:
    """That many H100s in one host, which need not exist: programs can be compiled for them and not run."""
    try:
        topology = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{count}")
    except (RuntimeError, NotImplementedError, KeyError) as error:
        sys.exit(f'JAX cannot compile for CUDA here: {error}\nInstall its plugin: pip install "jax[cuda13]"')
    return Layout(Mesh(np.array(topology.devices), (AXIS,)))


def lower(step: str, dtype: str, batch_size: int, layout: Layout) -> Any:
    """Traces one of our steps as a run on GPUs compiles it."""
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
        network = jax.eval_shape(embed_step.fold, *state.network())
        return embed_step.embed.lower(jax.tree.map(describe, network, layout.shardings(network)), images)
    train_step: Any = steps.make_train_step(graph, LossConfig(), optimizer, layout=layout, options=options)
    described = jax.tree.map(describe, state, layout.shardings(state))
    return train_step.lower(described, {"image": images, "label": labels})


def compile_for(step: str, dtype: str, batch_size: int, layout: Layout) -> Account:
    """Compiles one of our steps. Two cores take half a minute to two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lower(step, dtype, batch_size, layout).compile(compiler_options={"xla_dump_to": folder})
        (thunks,) = Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt")
        graphs, outside = read_thunks(thunks.read_text())
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    images = batch_size / layout.mesh.size * (TRAINING if step == "train" else 1)
    flops = forward_flops(IMAGE_SIZE, EMBEDDING_DIM) * images
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
    largest = max((each.result_bytes for each in copies if each.largest_dims == 4), default=0)
    print(f"  copies {len(copies)}, the largest of four dimensions {largest / 1e6:.2f} MB")
    for name in COLLECTIVES:
        chosen = [each for each in account.instructions if each.kind.startswith(name)]
        if chosen:
            hidden = sum(each.meanwhile > 0 for each in chosen)
            print(f"  {name} {len(chosen)}, {hidden} of them with launches meanwhile")
        for each in chosen:
            if each.operand_bytes > 1e6:  # the others would be a page of BatchNorm's
                print(f"    {each.operand_bytes / 1e6:.1f} MB, {each.meanwhile} launches meanwhile")
    for kind, count in collections.Counter(each.kind for each in account.instructions).most_common():
        print(f"  {kind:36} {count:5} {account.total(kind)[1]:8.3f} GB")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=("train", "embed"), default=["train", "embed"])
    parser.add_argument("--dtypes", nargs="+", choices=FLOPS_PER_SECOND, default=list(FLOPS_PER_SECOND))
    parser.add_argument("--devices", nargs="+", type=integer(COUNT), default=[1, 8])
    parser.add_argument("--batch_size", type=integer(PAIR), default=32, help="images a device")
    arguments = parser.parse_args()
    for devices in arguments.devices:
        layout = describe_h100s(devices)
        for step in arguments.steps:
            for dtype in arguments.dtypes:
                account = compile_for(step, dtype, arguments.batch_size * devices, layout)
                report(f"{step} {dtype} on {devices}", account, dtype)


if __name__ == "__main__":
    main()

"""Counts of kernels, bytes and launches, parsed from XLA's text of a GPU program."""

import collections
import importlib.util
import os
import subprocess
import sys

from benchmarks.compiled_program import read_program, read_thunks
from benchmarks.gpu_program import Account
from proxynca_jax import steps

PROGRAM = """HloModule jit_train_step

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %made = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%body
  %all-reduce-start = f32[8,4]{1,0} all-reduce-start(%made), to_apply=%sum
  %conv = (f32[8,4]{1,0}, u8[16]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convForward"
  %part = f32[8,4]{1,0} get-tuple-element(%conv), index=0
  %copy.1 = f32[8,4]{1,0} copy(%part)
  %all-reduce-done = f32[8,4]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %end = f32[8,4]{1,0} fusion(%copy.1, %all-reduce-done), kind=kLoop, calls=%body
}
"""


def test_read_program_counts_launches_and_their_bytes():
    account = Account(read_program(PROGRAM), 0, collections.Counter(), peak_bytes=0, flops=0)
    assert [each.kind for each in account.instructions] == [
        "fusion",
        "all-reduce-start",
        "__cudnn$convForward",
        "copy",
        "fusion",
    ]
    assert account.total("copy") == (1, 2 * 128e-9)
    assert account.total("__cudnn") == (1, (2 * 128 + 128 + 16) / 1e9)
    assert account.total()[0] == 5


def test_read_program_counts_launches_that_overlap_a_collective():
    assert [each.overlapped_launches for each in read_program(PROGRAM)] == [0, 2, 0, 0, 0]


THUNKS = """000: kCommandBuffer [source | next=006 (1)]
    001: kCustomKernel [source       | next=003 (2)] loop_convert_fusion grid: [9662, 1, 1]
    002: kConvolution  [prev=001 (1) | sink] kConvolution
006: kConvolution  [prev=000 (1) | sink] kConvolution
007: kCustomKernel [prev=006 (1) | sink] loop_add_fusion
"""


def test_read_thunks_counts_launches_outside_graphs():
    assert read_thunks(THUNKS) == (1, {"Convolution": 1, "CustomKernel": 1})


def test_compiler_options_put_convolutions_into_cuda_graphs_on_gpus_only():
    assert "CONVOLUTION" in steps.compiler_options("gpu")["xla_gpu_enable_command_buffer"].split(",")
    assert "xla_gpu_enable_command_buffer" not in steps.compiler_options("gpu", graphs=False)
    assert steps.compiler_options("cpu") == {}
    assert steps.embedding_options("gpu") == steps.compiler_options("gpu")


def test_an_embedding_step_has_options_on_cpus_if_this_xla_knows_them(monkeypatch):
    assert steps.embedding_options("cpu") == steps.WITHOUT_YNNPACK
    monkeypatch.setattr(steps, "WITHOUT_YNNPACK", {"xla_cpu_of_another_version": ""})
    assert steps.embedding_options("cpu") == {}


def test_each_program_is_one_cuda_graph():
    """Compiles if JAX's CUDA plugin is installed. Otherwise it checks the command's error message."""
    words = [sys.executable, "-m", "benchmarks.gpu_program", "--devices", "1", "--dtypes", "bfloat16"]
    done = subprocess.run(
        [*words, "--steps", "embed"], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        assert done.returncode == 1
        assert 'pip install "jax[cuda13]"' in done.stderr
    else:
        assert "CUDA graphs 1, outside them 0" in done.stdout, done.stderr

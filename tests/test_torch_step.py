"""`benchmarks.torch_step`: failed variants, the speed table, and GPU activity read from profiles."""

import contextlib
import dataclasses
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import fake_variants
import jax
import pytest
import torch
from jax.profiler import ProfileData
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from benchmarks import device_busy, torch_step, workers
from benchmarks.device_busy import Activity, merge, profile_jax, profile_torch, read_jax_profile, read_torch_profile
from benchmarks.torch_training import NETWORKS, make_adam, make_network
from benchmarks.workers import Timing, VariantError, Work, measure_in_turns
from proxynca_jax import steps
from proxynca_jax.config import ModelConfig, OptimConfig
from proxynca_jax.errors import UserError
from proxynca_jax.report.speed_table import Failure, Measurement, print_table

TURNS, WORK = fake_variants.BEFORE_TURNS, fake_variants.WORK
on_cpu = pytest.mark.skipif(
    torch.cuda.is_available() or jax.default_backend() != "cpu", reason="this machine has a GPU"
)


@pytest.fixture(autouse=True)
def _one_step_per_turn(monkeypatch):
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.0)


@pytest.fixture
def _no_device(monkeypatch):
    monkeypatch.setattr(torch_step, "in_own_process", lambda *_: ("cpu", "a device"))
    monkeypatch.setattr(torch_step, "peak", lambda _: 1e12)


def run_main(monkeypatch, variants, *options):
    monkeypatch.setattr(torch_step, "VARIANTS", variants)
    monkeypatch.setattr(sys, "argv", ["torch_step", "--steps", "train", "--variants", *variants, *options])
    torch_step.main()


@pytest.mark.usefixtures("_no_device")
def test_failed_variants_are_rows_and_the_others_are_measured(monkeypatch, capfd):
    variants = {
        "at once": fake_variants.variant("raises"),
        "sound": fake_variants.variant(),
        "killed": fake_variants.variant("is killed"),
        "in turn 2": fake_variants.variant("raises", TURNS + 1),
        "dies in turn 1": fake_variants.variant("exits", TURNS),
        "sound too": fake_variants.variant(),
    }
    run_main(monkeypatch, variants, "--repeats", "2")
    out, err = capfd.readouterr()
    errors = {
        "at once": "ZeroDivisionError: division by zero",
        "killed": "the process was killed by SIGKILL",
        "in turn 2": "ZeroDivisionError: division by zero",
        "dies in turn 1": "the process exited with status 3",
    }
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["variant"] for row in rows] == list(variants)
    assert {row["variant"]: row["error"] for row in rows if "error" in row} == errors
    for name, error in errors.items():
        assert f"  {name:22} failed: {error}\n" in out
    sound = {row["variant"]: row for row in rows if "error" not in row}
    assert list(sound) == ["sound", "sound too"]
    assert sound["sound"]["images_per_second"] > 0
    assert [sound["sound"][name] for name in ("kernels", "launches", "graph_changes")] == [7, 3, 0.5]
    assert "Traceback" not in out
    assert err.count("Traceback") == 2


@pytest.mark.usefixtures("_no_device")
def test_exit_status_is_1_if_all_variants_fail(monkeypatch, capfd):
    with pytest.raises(SystemExit, match="all variants failed"):
        run_main(monkeypatch, {"only": fake_variants.variant("exits")})
    (row,) = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"]
    assert row == {
        "step": "train",
        "variant": "only",
        "batch_size": 32,
        "error": "the process exited with status 3",
    }


def test_a_variant_that_takes_too_long_is_stopped():
    variants = {
        "never starts": fake_variants.variant("hangs"),
        "hangs in a turn": fake_variants.variant("hangs", TURNS),
        "sound": fake_variants.variant(),
    }
    found = measure_in_turns(variants, WORK, repeats=1, timeout_seconds=3)
    assert str(found["never starts"]) == "no first step within 3 seconds"
    assert str(found["hangs in a turn"]) == "no turn within 3 seconds"
    assert isinstance(found["sound"], Timing)


def test_first_steps_run_at_the_same_time_unless_a_variant_starts_alone(tmp_path):
    meets = {"alone 1": None, "one": tmp_path / "other", "alone 2": None, "other": tmp_path / "one"}
    variants = {
        name: fake_variants.variant(starts_alone=path is None, diary=tmp_path / name, meets=path)
        for name, path in meets.items()
    }
    found = measure_in_turns(variants, WORK, repeats=1, timeout_seconds=60)
    assert list(found) == list(variants)
    assert all(isinstance(timing, Timing) for timing in found.values()), found
    times = {name: list(map(float, (tmp_path / name).read_text().split())) for name in variants}
    assert times["alone 1"][0] > max(times["one"][1], times["other"][1])
    assert times["alone 2"][0] > times["alone 1"][1]


@pytest.mark.usefixtures("_no_device")
@pytest.mark.parametrize(
    ("options", "backbone", "image_size", "fixed"),
    [
        ("", "bn_inception", 227, False),
        ("--backbone efficientnet_lite0", "efficientnet_lite0", 224, False),
        ("--backbone efficientnet_lite0 --image_size 128 --fixed_batch_norm", "efficientnet_lite0", 128, True),
    ],
)
def test_options_choose_network_and_image_size(monkeypatch, capsys, options, backbone, image_size, fixed):
    def compare(names, work, repeats, timeout_seconds):
        assert work == Work("train", 32, ModelConfig(backbone=backbone, fixed_batch_norm=fixed), image_size)
        return [ROW]

    monkeypatch.setattr(torch_step, "compare", compare)
    run_main(monkeypatch, {"mine": fake_variants.variant()}, *options.split())
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [report[name] for name in ("backbone", "image_size", "fixed_batch_norm")] == [backbone, image_size, fixed]
    assert [row["variant"] for row in report["rows"]] == ["mine"]


def test_an_image_size_that_does_not_fit_is_one_clear_line(monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: .*image_size is 48, which does not fit BN-Inception"):
        run_main(monkeypatch, {"mine": fake_variants.variant()}, "--image_size", "48")


@pytest.mark.usefixtures("_no_device")
@pytest.mark.parametrize(
    ("backbone", "image_size", "flops"),
    [
        ("bn_inception", 227, 4.0977e9),
        # Published: 407 million products, 1.28 million of them in the classifier.
        ("efficientnet_lite0", 224, 2 * (407e6 - 1.28e6)),
    ],
)
def test_utilisation_is_relative_to_the_flops_of_the_network(monkeypatch, backbone, image_size, flops):
    work = WORK._replace(model=ModelConfig(backbone=backbone), image_size=image_size)
    monkeypatch.setattr(torch_step, "VARIANTS", {"mine": fake_variants.variant()})
    (row,) = torch_step.compare(["mine"], work, repeats=1, timeout_seconds=60)
    assert isinstance(row, Measurement)
    assert row.utilisation() == pytest.approx(3 * flops * row.images_per_second() / 1e12, rel=0.06)


def test_networks_of_the_command_are_those_in_pytorch():
    assert list(NETWORKS) == list(torch_step.NETWORKS)


@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("fixed", [True, False])
def test_fixed_batch_norm_keeps_the_statistics_of_the_pytorch_network(backbone, fixed):
    network = make_network(ModelConfig(backbone=backbone, fixed_batch_norm=fixed), train=True)
    assert network.training
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)).sum().backward()
    same = {torch.equal(value, before[name]) for name, value in network.named_buffers()}
    assert same == {fixed}
    assert all(value.grad is not None for value in network.parameters())


def test_activations_of_lite0_in_pytorch_do_not_shrink():
    torch.manual_seed(0)
    network = make_network(ModelConfig(backbone="efficientnet_lite0"), train=False)
    with torch.no_grad():
        images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
        deviations = {name: float(value.std()) for name, value in network.stages(images)}
    # PyTorch's own initial kernels: 1e-9 in the head.
    assert min(deviations[name] for name in ("stem", "block7", "block15", "head")) > 0.1, deviations


@on_cpu
def test_peak_of_tensorfloat32_is_that_of_float32_on_devices_without_it(monkeypatch):
    monkeypatch.setattr(torch_step, "peak_flops", lambda dtype: ({"float32": 1e12}[dtype], "a datasheet"))
    assert torch_step.VARIANTS["channels_last"].dtype == "tensorfloat32"
    assert torch_step.device_peak("tensorfloat32") == 1e12


def test_times_are_kept_if_the_profiler_ends_the_process():
    found = measure_in_turns({"one": fake_variants.variant(profile_fault="exits")}, WORK, 1, 60)["one"]
    assert isinstance(found, Timing)
    assert found.step_seconds > 0
    assert found.activity is None


def test_a_process_killed_between_turns_is_a_variant_error():
    others = set(multiprocessing.active_children())
    worker = workers.Worker(fake_variants.variant(), WORK, timeout_seconds=60)
    worker.begin_load()
    worker.end_load()
    worker.take_first_step()
    worker.measure_turn()
    (process,) = set(multiprocessing.active_children()) - others
    process.kill()
    process.join()
    with pytest.raises(VariantError, match="killed by SIGKILL"):
        worker.take_turn()
    worker.kill()


def test_describe_returns_one_short_line():
    assert workers.describe(UserError("needs\n  a GPU")) == "needs a GPU"
    reason = workers.describe(RuntimeError("out of memory\n" + "here and there " * 100))
    assert reason.startswith("RuntimeError: out of memory here")
    assert len(reason) <= workers.REASON_CHARACTERS
    assert str(VariantError(reason)) == reason


@on_cpu
@pytest.mark.parametrize("name", ["ours_tensorfloat32", "compile_graphs", "amp", "compile_amp", "compile_graphs_amp"])
def test_variants_for_gpus_raise_on_cpus(name):
    with pytest.raises(UserError, match="for GPUs"):
        torch_step.VARIANTS[name].make(WORK)


def test_fused_adam_computes_the_same_update():
    weights = []
    for fused in (None, True):
        torch.manual_seed(0)
        network, proxies = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.ones(4, 2))
        adam = make_adam(network, proxies, OptimConfig(), fused=fused)
        (network(torch.ones(1, 3)) * proxies).sum().backward()
        adam.step()
        assert adam.defaults["fused"] is fused
        weights.append([network.weight.detach(), proxies.detach()])
    torch.testing.assert_close(*weights)


ROW = Measurement(
    "train",
    "mine",
    32,
    step_seconds=0.5,
    first_step_seconds=20.0,
    peak_mb=100.0,
    peak_flops=1e12,
    image_flops=4_097_700_000,
)


def test_table_cells_without_a_value_are_empty(capsys):
    busy = dataclasses.replace(ROW, device_busy_seconds=0.25, kernels=641.0, launches=12.4, graph_changes=0.25)
    unknown = dataclasses.replace(ROW, peak_flops=None)
    print_table([busy, ROW, unknown], ROW)
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split()[3:8] == ["images/s", "ratio", "step", "ms", "busy"]
    assert lines[0].split()[1:8] == ["64.0", "1.00", "500.0", "250.0", "641", "12", "0.2"]
    assert lines[1].split() == ["mine", "64.0", "1.00", "500.0", "20.0", "100", "78.7%"]
    assert lines[2].split() == lines[1].split()[:-1]
    assert {len(line) for line in lines} == {len(titles)}


def test_table_without_a_baseline_has_no_ratio(capsys):
    print_table([ROW], None)
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["mine", "64.0", "500.0"]


def test_table_of_failures_only(capsys):
    print_table([Failure("train", "mine", 32, "why")], None)
    title, line = capsys.readouterr().out.splitlines()
    assert title.startswith("train, batch 32")
    assert line.split() == ["mine", "failed:", "why"]


def test_merge_overlapping_intervals():
    assert merge([(5, 6), (0, 2), (1, 3), (1.5, 2), (3, 4)]) == [(0, 3), (3, 4), (5, 6)]


def line(name, *events):
    """Returns a line of a profile as text. Events are (metadata id, start, duration), times in nanoseconds."""
    written = (f"events {{ metadata_id: {key} offset_ps: {s * 1000} duration_ps: {d * 1000} }}" for key, s, d in events)
    return f'lines {{ name: "{name}" {" ".join(written)} }}'


def plane(name, names, *lines):
    metadata = (
        f'event_metadata {{ key: {key} value {{ id: {key} name: "{name}" }} }}' for key, name in enumerate(names)
    )
    return f'planes {{ name: "{name}" {" ".join([*lines, *metadata])} }}'


KERNELS = [(0, 0, 400), (0, 400, 100), (1, 600, 100)]
GPU = plane(
    "/device:GPU:0",
    ["fusion", "MemcpyD2D"],
    line("Stream #13(Compute)", *KERNELS),
    line("Stream #14(Memcpy)", (1, 300, 200)),  # at the same time as both fusions
    line("XLA Ops", (0, 0, 900)),
)
HOST = plane(
    "/host:CPU",
    ["cuLaunchKernelEx", "cuGraphLaunch (CudaGraph:471)", "cudaGraphLaunch", "cuMemcpyAsync", "cuGraphExecUpdate"],
    line("one thread", (0, 0, 10), (2, 20, 10), (1, 22, 5), (3, 40, 10), (4, 60, 10)),  # the second calls the third
    line("another thread", (0, 5, 10)),
)


def test_read_jax_profile():
    other = plane("/device:GPU:1", ["fusion"], line("Stream #1", (0, 0, 1000)))
    profile = ProfileData.from_text_proto(GPU + other + HOST)
    expected = Activity(pytest.approx(300e-9), kernels=2, launches=1.5, graph_changes=0.5)
    assert read_jax_profile(profile, steps=2) == expected
    assert read_jax_profile(ProfileData.from_text_proto(HOST), steps=2) is None


def torch_event(name, start, end, *, device=DeviceType.CUDA, index=0, thread=1, annotation=False):
    options = {"device_type": device, "device_index": index, "is_user_annotation": annotation}
    return FunctionEvent(id=0, name=name, thread=thread, start_us=start, end_us=end, **options)


def test_read_torch_profile():
    launches = [
        torch_event("cudaLaunchKernelExC", 0, 2, device=DeviceType.CPU),
        torch_event("cuLaunchKernelEx", 1, 2, device=DeviceType.CPU),  # inside the call above
        torch_event("cudaGraphLaunch", 1, 3, device=DeviceType.CPU, thread=2),
        torch_event("cudaGraphExecKernelNodeSetParams", 4, 5, device=DeviceType.CPU),
        torch_event("aten::conv2d", 0, 9, device=DeviceType.CPU),
    ]
    events = [
        *launches,
        torch_event("conv", 10, 14),
        torch_event("Memcpy DtoD", 13, 15),
        torch_event("Optimizer.step#Adam.step", 0, 90, annotation=True),
        torch_event("Context Sync", 0, 90),
        torch_event("conv", 0, 90, index=1),
    ]
    expected = Activity(pytest.approx(2.5e-6), kernels=1, launches=1, graph_changes=0.5)
    assert read_torch_profile(events, steps=2) == expected
    assert read_torch_profile(launches, steps=2) is None


@on_cpu
def test_cpus_are_not_profiled(capsys):
    assert profile_jax(lambda _: pytest.fail("was run"), 1) is None
    assert profile_torch(lambda _: pytest.fail("was run"), 1) is None
    assert capsys.readouterr().err == ""


def test_profile_jax_reads_the_file_of_the_profiler(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(device_busy, "read_jax_profile", lambda profile, _: [plane.name for plane in profile.planes])
    assert "/host:CPU" in profile_jax(lambda _: jax.block_until_ready(jax.numpy.ones(3) + 1), 1)
    assert capsys.readouterr().err == ""


def test_unreadable_profiles_give_none(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.profiler, "trace", lambda _: contextlib.nullcontext())
    assert profile_jax(lambda _: None, 1) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: contextlib.nullcontext())
    assert profile_torch(lambda _: None, 1) is None
    assert capsys.readouterr().err.count("Traceback") == 2


@on_cpu
@pytest.mark.slow
def test_last_line_of_the_command_is_json():
    words = "-m benchmarks.torch_step --steps embed --variants ours eager amp --batch_size 2 --repeats 1"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, *words.split()], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, eager, amp = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert ours["images_per_second"] > 0
    assert eager["model_flops_utilisation"] > 0
    assert amp["error"] == "amp is for GPUs, and PyTorch finds none"
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("_no_device")
def test_variants_by_default(monkeypatch, capsys):
    chosen = {}

    def compare(names, work, repeats, timeout_seconds):
        chosen[work.step] = names
        return [dataclasses.replace(ROW, step=work.step, variant=name) for name in names]

    monkeypatch.setattr(torch_step, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["torch_step"])
    torch_step.main()
    assert chosen["train"] == ["ours", "torch_keep", "channels_last"]
    assert chosen["embed"] == [*chosen["train"], "onnxruntime"]
    assert set(chosen["embed"]) <= set(torch_step.VARIANTS)
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["variant"] for row in rows] == chosen["train"] + chosen["embed"]


def test_the_fold_is_outside_of_the_timed_embedding(monkeypatch):
    folds = []
    made = steps.make_embed_step

    def make_embed_step(graph):
        step = made(graph)
        return dataclasses.replace(step, fold=lambda variables: folds.append(1) or step.fold(variables))

    monkeypatch.setattr(steps, "make_embed_step", make_embed_step)
    embed = torch_step.ours(Work("embed", 2, ModelConfig(backbone="tiny"), 32), dtype="float32")
    assert folds == [1]
    embed(2)
    assert folds == [1]


def test_onnxruntime_only_embeds():
    model = ModelConfig(backbone="tiny")
    torch_step.onnxruntime(Work("embed", 2, model, 32))(2)
    with pytest.raises(UserError, match="onnxruntime only embeds"):
        torch_step.onnxruntime(Work("train", 2, model, 32))

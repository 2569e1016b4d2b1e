"""Wrappings of state dicts, dtypes and heads: undone and said, or named in the error."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from golden_cub import state_dict

from convert import __main__ as command
from proxynca_jax.errors import UserError
from proxynca_jax.weights import NAMES, conversion, converted_file
from proxynca_jax.weights.state_dict import StateDict, read_state_dict

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return {key: torch.tensor(value) for key, value in state_dict().items()}


def numbered(value: int) -> State:
    return {"conv.weight": torch.tensor([float(value)]), "conv.bias": torch.zeros(1)}


def read(content: Any, folder: pathlib.Path, entry: str | None = None) -> StateDict:
    torch.save(content, folder / "it.pt")
    return read_state_dict(folder / "it.pt", entry)


def value(found: StateDict) -> float:
    assert found.tensors.keys() == {"conv.weight", "conv.bias"}
    return float(found.tensors["conv.weight"][0])


def prefixed(prefix: str, tensors: State) -> State:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "net", "network", "ema", "state_dict_ema"])
def test_an_entry_is_opened_and_named(name, tmp_path):
    found = read({"epoch": 3, name: numbered(1), "optimizer": {"state": {0: torch.zeros(1)}}}, tmp_path)
    assert value(found) == 1
    assert found.notes == (f"used the entry {name!r}.",)


def test_entries_in_entries_are_opened(tmp_path):
    found = read({"state_dict": {"model": {"net": numbered(1)}, "step": 4}}, tmp_path)
    assert value(found) == 1
    assert len(found.notes) == 3
    found = read({"state_dict": {"model": numbered(1), "ema": numbered(2)}}, tmp_path)
    assert found.notes[-1] == "left out: 'ema'."  # --entry is of the top level


@pytest.mark.parametrize("average", ["ema", "model_ema", "shadow"])
def test_a_copy_that_is_left_out_is_named_and_can_be_chosen(average, tmp_path):
    content = {average: numbered(2), "state_dict": numbered(1), "args": {"lr": 0.1}}
    found = read(content, tmp_path)
    assert value(found) == 1
    assert found.notes[1] == f"left out: {average!r}. To take {average!r} instead, add --entry {average}."
    chosen = read(content, tmp_path, average)
    assert value(chosen) == 2
    assert chosen.notes[1].startswith("left out: 'state_dict'.")


def test_an_average_may_be_wrapped_again(tmp_path):
    content = {"ema": {"decay": 0.99, "module": {"model": numbered(2)}}, "model": numbered(1)}
    with pytest.raises(UserError, match=r"not a tensor \(2\): decay \(float\), module \(dict\)"):
        read(content, tmp_path, "ema")
    content["ema"] = {"decay": 0.99, "model": prefixed("module.", numbered(2))}
    assert value(read(content, tmp_path, "ema")) == 2
    assert value(read(content, tmp_path)) == 1


@pytest.mark.parametrize("wrong", ["emma", "epoch", ""])
def test_an_entry_that_is_none_is_refused(wrong, tmp_path):
    with pytest.raises(UserError, match=rf"--entry is '{wrong}', which is not a state dict in .*: .*ema, model"):
        read({"ema": numbered(2), "model": numbered(1), "epoch": 3}, tmp_path, wrong)


def test_a_checkpoint_of_itself_is_refused(tmp_path):
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content
    with pytest.raises(UserError, match="not a tensor"):
        read(content, tmp_path)


@pytest.mark.parametrize("content", [{1: torch.zeros(1)}, {"a\x1b[2J": torch.zeros(1)}, [torch.zeros(1)], None, 3, {}])
def test_what_has_no_names_is_refused(content, tmp_path):
    with pytest.raises(UserError, match="state dict"):
        read(content, tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.model.module."])
def test_prefixes_of_all_keys_are_removed_and_said(prefix, tmp_path):
    found = read({"state_dict": prefixed(prefix, numbered(1))}, tmp_path)
    assert value(found) == 1
    assert found.notes[1] == f"removed {prefix!r} from the start of every key."


def test_a_prefix_of_some_keys_stays(tmp_path):
    found = read(prefixed("model.", numbered(1)) | {"proxies": torch.zeros(2)}, tmp_path)
    assert found.tensors.keys() == {"model.conv.weight", "model.conv.bias", "proxies"}


def refusal(*words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        command.main([str(word) for word in words])
    return str(exit_.value.code)


def test_another_prefix_is_named(state, tmp_path):
    torch.save(prefixed("encoder.", state) | {"decoder.weight": torch.zeros(1)}, tmp_path / "it.pt")
    message = refusal(tmp_path / "it.pt")
    assert "missing (414): conv1_7x7_s2.bias, " in message
    assert "100% of the network's tensors are there with 'encoder.' before their keys" in message
    assert len(message) < 1500


def test_another_network_is_named(state, tmp_path):
    torch.save(prefixed("backbone.", state), tmp_path / "it.pt")
    message = refusal(tmp_path / "it.pt", "--backbone", "efficientnet_lite1")
    assert "they fit BN-Inception better: try --backbone bn_inception" in message
    assert "'backbone.'" in message
    torch.save({"w": torch.zeros(1)}, tmp_path / "it.pt")
    assert refusal(tmp_path / "it.pt").endswith("unknown (1): w")


def converted(state: dict[str, Any], folder: pathlib.Path, capsys: pytest.CaptureFixture, *words: str):
    torch.save(state, folder / "it.pt")
    command.main([str(folder / "it.pt"), "--output", str(folder / "it.safetensors"), *words])
    return converted_file.read(folder / "it.safetensors").tensors, capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said(dtype, state, tmp_path, capsys):
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    tensors, output = converted(other, tmp_path, capsys)
    count = sum(value.is_floating_point() for value in state.values())
    assert f"converted {count} tensors from {str(dtype).removeprefix('torch.')} to float32." in output
    for key, theirs in other.items():
        path, expected = NAMES["bn_inception"].to_flax(key, theirs.to(state[key].dtype).numpy())
        assert tensors[path].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[path], expected)


def test_halves_in_safetensors_are_converted_too(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2).bfloat16()}, tmp_path / "it.safetensors")
    assert read_state_dict(tmp_path / "it.safetensors").tensors["w"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("large", [torch.tensor(1e300).double(), torch.tensor(torch.inf).half()])
def test_what_is_not_finite_in_float32_is_refused(large, state):
    other = {key: value.numpy() for key, value in state.items()}
    other["conv2_3x3.bias"] = large.expand(192).numpy()
    with pytest.raises(UserError, match=r"not finite \(1\): conv2_3x3\.bias$"):
        conversion.accept(other, "bn_inception", "it")


def test_a_network_without_its_head_is_accepted_and_said(state, tmp_path, capsys):
    headless = {key: value for key, value in state.items() if not key.startswith("last_linear.")}
    tensors, output = converted(headless, tmp_path, capsys)
    assert "no last_linear and no embedding_layer: the backbone alone" in output
    assert "classifier" not in output
    assert not [name for name in tensors if "linear" in name]
    command.main(["--to-torch", str(tmp_path / "it.safetensors"), str(tmp_path / "back.pt")])
    assert torch.load(tmp_path / "back.pt", weights_only=True).keys() == headless.keys()


def test_the_command_line_says_what_it_left_out(state, tmp_path, capsys):
    average = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    content = {"state_dict": prefixed("module.", state), "state_dict_ema": average}
    tensors, output = converted(content, tmp_path, capsys)
    for said in ("used the entry 'state_dict'.", "add --entry state_dict_ema.", "removed 'module.'"):
        assert f"  {said}" in output or said in output
    chosen, output = converted(content, tmp_path, capsys, "--entry", "state_dict_ema")
    name = "params/backbone/conv2_3x3/bias"
    np.testing.assert_array_equal(chosen[name], tensors[name] + 1)
    assert "--entry state_dict_ema\n" in output  # in the command that verifies

"""The PyTorch network against the reference's numbers, and our network against it."""

import numpy as np
import pytest
import torch
from golden_cub import golden, made_weight, state_dict

from convert import __main__ as command
from convert.bn_inception import from_state_dict
from convert.verify import TOLERANCE, distance
from proxynca_jax.weights import converted_file


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The golden network, with its embedding layer."""
    heads = {"embedding_layer.weight": (64, 1024), "embedding_layer.bias": (64,)}
    return {key: torch.tensor(value) for key, value in state_dict().items()} | {
        key: torch.tensor(made_weight(key, shape)) for key, shape in heads.items()
    }


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    torch.save(state, folder / "weights.pt")
    command.main([str(folder / "weights.pt"), "--output", str(folder / "weights.safetensors")])
    return folder / "weights.pt", folder / "weights.safetensors"


def test_torch_network_computes_the_reference_embedding(state):
    network = from_state_dict(state).eval()
    with torch.no_grad():
        stages = dict(network.stages(torch.tensor(golden()["images"][8:16])))
    np.testing.assert_allclose(stages["embedding"], golden()["eval/embedding"], rtol=0, atol=2e-6)


def test_torch_network_trains_as_the_reference(state):
    network = from_state_dict(state).train()
    with torch.no_grad():
        stages = dict(network.stages(torch.tensor(golden()["images"][8:16])))
    # PyTorch on this processor is 3e-6 from PyTorch on the one that recorded the numbers.
    np.testing.assert_allclose(stages["embedding"], golden()["train/embedding"], rtol=0, atol=1e-5)
    running = {key: value for key, value in network.state_dict().items() if f"train/{key}" in golden()}
    assert running
    for key, value in running.items():
        np.testing.assert_allclose(value, golden()[f"train/{key}"], rtol=1e-4, atol=1e-4)


def test_distance_by_hand():
    found = distance(np.array([3, 4], np.float32), np.array([3, 0], np.float32))
    assert found.max_abs == 4
    assert found.relative_rms == pytest.approx(4 / 3)
    assert found.cosine == pytest.approx(3 / 5)
    zeros = distance(np.zeros(2, np.float32), np.zeros(2, np.float32))
    assert (zeros.max_abs, zeros.relative_rms, zeros.cosine) == (0, 0, 1)


@pytest.mark.slow
def test_verify_accepts_what_was_converted(files, state, capsys):
    command.main(["verify", *map(str, files)])
    output = capsys.readouterr().out
    with torch.no_grad():
        stages = [name for name, _ in from_state_dict(state).stages(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))]
    rows = [line.split()[0] for line in output.splitlines()[2:-1]]
    assert rows == [*stages, "running_mean,", "running_var,"]
    assert output.splitlines()[-1].startswith("verified: all 487 tensors are equal")


@pytest.mark.slow
def test_verify_finds_one_perturbed_tensor(files, tmp_path, capsys):
    tensors = converted_file.read(files[1]).tensors
    name = "params/backbone/inception_4c_3x3/kernel"
    tensors[name] = tensors[name] * np.float32(1.01)
    converted_file.write(tmp_path / "perturbed.safetensors", "bn_inception", tensors, source={})
    with pytest.raises(SystemExit) as exit_:
        command.main(["verify", str(files[0]), str(tmp_path / "perturbed.safetensors")])
    message = str(exit_.value.code)
    assert message.startswith("error: ")
    assert f"not equal (1): {name}" in message
    assert f"relative RMS above {TOLERANCE['inference']:.0e} in inference (7): inception_4c, " in message
    assert "inception_4b" not in message
    assert "verified" not in capsys.readouterr().out


def test_verify_refuses_another_networks_file(files, tmp_path):
    tensors = converted_file.read(files[1]).tensors
    del tensors["params/embedding_layer/kernel"]
    converted_file.write(tmp_path / "other.safetensors", "bn_inception", tensors, source={})
    with pytest.raises(SystemExit, match=r"missing \(1\): params/embedding_layer/kernel"):
        command.main(["verify", str(files[0]), str(tmp_path / "other.safetensors")])

"""PyTorch files to Flax and back through the real command line, and the loader that training uses."""

import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from golden_cub import fill, made_weight, state_dict

from convert import __main__ as command
from convert.bn_inception import from_state_dict
from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import Tree, Variables, init_network
from proxynca_jax.weights import NAMES, converted_file
from proxynca_jax.weights.pretrained import fill as fill_network
from proxynca_jax.weights.pretrained import read_weights
from proxynca_jax.weights.state_dict import git_blob_id, read_state_dict

WIDTH = 64
BN_INCEPTION = NAMES["bn_inception"]


def load_pretrained(path: pathlib.Path | str, variables: Variables, backbone: str) -> Variables:
    """What training does with `model.weights`."""
    return fill_network(variables, read_weights(path), backbone)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in state_dict().items()}


@pytest.fixture(scope="module")
def trained(state) -> dict[str, torch.Tensor]:
    """What the reference's training leaves: an embedding layer in the classifier's place."""
    shapes = {"embedding_layer.weight": (WIDTH, 1024), "embedding_layer.bias": (WIDTH,)}
    heads = {key: torch.tensor(made_weight(key, shape)) for key, shape in shapes.items()}
    return {key: value for key, value in state.items() if not key.startswith("last_linear.")} | heads


@pytest.fixture(scope="module")
def fresh() -> Variables:
    """A network before any file is loaded."""
    return init_network(ModelConfig(embedding_dim=WIDTH), np.random.default_rng(0))[1]


@pytest.fixture(scope="module")
def converted(state, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("converted")
    torch.save(state, folder / "weights.pt")
    command.main([str(folder / "weights.pt"), "--output", str(folder / "weights.safetensors")])
    return folder / "weights.safetensors"


def refusal(*words: object) -> str:
    """The message that the command line leaves with, and status 1."""
    with pytest.raises(SystemExit) as exit_:
        command.main([str(word) for word in words])
    assert isinstance(exit_.value.code, str)  # the interpreter prints it and exits with 1
    assert exit_.value.code.startswith("error: ")
    return exit_.value.code


def assert_trees_equal(ours: Tree, expected: Tree) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def save_legacy(state: dict, path: pathlib.Path) -> None:
    without_counters = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(without_counters, path, _use_new_zipfile_serialization=False)


def save_data_parallel(state: dict, path: pathlib.Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)


def save_parameters(state: dict, path: pathlib.Path) -> None:
    wrap = {key: torch.nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": wrap}, path)


def save_safetensors(state: dict, path: pathlib.Path) -> None:
    safetensors.numpy.save_file({key: value.numpy() for key, value in state.items()}, path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("legacy.pt", save_legacy),
        ("zip.pth", torch.save),
        ("parallel.pt", save_data_parallel),
        ("parameters.pt", save_parameters),
        ("plain.safetensors", save_safetensors),
    ],
)
def test_every_file_format_gives_the_golden_network(name, save, state, fresh, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(state, pathlib.Path(name))
    command.main([name])
    network, batch_stats = load_pretrained("weights/bn_inception.safetensors", fresh, "bn_inception")
    assert_trees_equal(network["backbone"], fill(fresh[0]["backbone"]))
    assert_trees_equal(network["embedding_layer"], fresh[0]["embedding_layer"])
    assert_trees_equal(batch_stats, fill(fresh[1]))
    assert [path.name for path in pathlib.Path("weights").iterdir()] == ["bn_inception.safetensors"]
    summary = capsys.readouterr().out
    for said in ("unrecognised", "last_linear", f"python -m convert verify {name}", "proxynca_jax.train"):
        assert said in summary


@pytest.mark.parametrize("save", [save_legacy, torch.save])
def test_round_trip_keeps_every_bit_and_loads_strictly(save, state, tmp_path):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pt"
    save(state, tmp_path / "weights.pt")
    command.main([str(tmp_path / "weights.pt"), "--output", str(there)])
    command.main(["--to-torch", str(there), str(back)])
    original, returned = (torch.load(path, weights_only=True) for path in (tmp_path / "weights.pt", back))
    assert original.keys() == returned.keys()
    for key, value in original.items():
        assert value.dtype == returned[key].dtype
        assert value.numpy().tobytes() == returned[key].numpy().tobytes(), key
    from_state_dict(returned)


def test_trained_checkpoint_brings_its_embedding_layer(trained, fresh, tmp_path):
    save_data_parallel(trained, tmp_path / "trained.pt")
    command.main([str(tmp_path / "trained.pt"), "--output", str(tmp_path / "trained.safetensors")])
    network, _ = load_pretrained(tmp_path / "trained.safetensors", fresh, "bn_inception")
    assert_trees_equal(network, fill(fresh[0]))
    narrow = fresh[0] | {"embedding_layer": jax.tree.map(lambda leaf: leaf[..., :8], fresh[0]["embedding_layer"])}
    start = Variables(narrow, fresh.batch_stats)
    network, _ = load_pretrained(tmp_path / "trained.safetensors", start, "bn_inception")
    assert_trees_equal(network, fill(fresh[0]) | {"embedding_layer": narrow["embedding_layer"]})


def test_converting_twice_gives_the_same_bytes(converted, tmp_path):
    source = converted.with_name("weights.pt")
    again = tmp_path / "again.safetensors"
    # A new process, whose hash seed differs, as safetensors orders several metadata keys by it.
    subprocess.run([sys.executable, "-m", "convert", str(source), "--output", str(again)], check=True)
    assert again.read_bytes() == converted.read_bytes()


def test_preprocessing_and_provenance_travel(converted):
    _, metadata = converted_file.read_safetensors(converted)
    about = json.loads(metadata[converted_file.METADATA_KEY])
    blob_id = git_blob_id(converted.with_name("weights.pt").read_bytes())
    assert about["backbone"] == "bn_inception"
    assert about["preprocessing"] == {
        "channel_order": "BGR",
        "scale": 1.0,
        "mean": [104.0, 117.0, 128.0],
        "std": [1.0, 1.0, 1.0],
        "image_size": 227,
        "resize_size": 256,
    }
    assert about["source"] == {"file": "weights.pt", "git_blob_id": blob_id}


def test_published_file_is_recognised_by_its_git_blob_id(converted, tmp_path, monkeypatch, capsys):
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    source = converted.with_name("weights.pt")
    published = dataclasses.replace(BN_INCEPTION, published_blob_id=git_blob_id(source.read_bytes()))
    monkeypatch.setitem(NAMES, "bn_inception", published)
    command.main([str(source), "--output", str(tmp_path / "out.safetensors")])
    assert "the published file, recognised" in capsys.readouterr().out


def test_table_is_one_to_one():
    paths = {}
    for key, value in state_dict().items():
        path, array = BN_INCEPTION.to_flax(key, value)
        back, returned = BN_INCEPTION.to_torch(path, array)
        assert back == key
        np.testing.assert_array_equal(returned, value)
        assert paths.setdefault(path, key) == key
    with pytest.raises(UserError, match="layer1"):
        BN_INCEPTION.to_flax("layer1.0.conv1.weight", np.zeros(1))
    with pytest.raises(UserError, match="params/proxies"):
        BN_INCEPTION.to_torch("params/proxies", np.zeros(1))


class CreatesAFile:
    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_file_is_refused_and_not_run(protocol, tmp_path):
    trap, source = tmp_path / "trap", tmp_path / "malicious.pt"
    content = pickle.dumps({"conv1_7x7_s2.weight": CreatesAFile(trap)}, protocol)
    pickle.loads(content)
    assert trap.exists()
    trap.unlink()
    source.write_bytes(content)
    assert str(source) in refusal(source)
    torch.save({"state_dict": CreatesAFile(trap)}, source)
    assert "it asks to run" in refusal(source)
    assert not trap.exists()


@pytest.mark.parametrize("save", [save_legacy, torch.save])
@pytest.mark.parametrize("length", [0, 100, 10_000_000])
def test_truncated_file_is_refused(save, length, state, tmp_path):
    source = tmp_path / "truncated.pt"
    save(state, source)
    source.write_bytes(source.read_bytes()[:length])
    message = refusal(source, "--output", tmp_path / "out.safetensors")
    assert f"({length:,} bytes)" in message
    assert "\n" not in message
    assert not (tmp_path / "out.safetensors").exists()


def test_flipped_bit_is_refused(converted, tmp_path):
    content = bytearray(converted.with_name("weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "flipped.pt")


def test_another_architecture_is_refused_on_the_real_command_line(tmp_path):
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.bn1.bias": torch.zeros(64)}
    torch.save(resnet, tmp_path / "resnet.pt")
    words = [sys.executable, "-m", "convert", str(tmp_path / "resnet.pt"), "--output", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'resnet.pt'} is not a state dict of BN-Inception")
    assert "unknown (2): conv1.weight, layer1.0.bn1.bias" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "resnet.pt"]


def test_every_offender_is_listed(state, tmp_path):
    wrong = dict(state)
    del wrong["conv1_7x7_s2.bias"], wrong["last_linear.bias"]
    wrong["inception_3c_pool_proj.weight"] = torch.zeros(1)
    wrong["conv2_3x3.weight"] = wrong["conv2_3x3.weight"].int()
    wrong["inception_3a_1x1.weight"] = wrong["inception_3a_1x1.weight"][:1]
    wrong["conv2_3x3.bias"] = torch.full((192,), torch.nan)
    torch.save(wrong, tmp_path / "wrong.pt")
    message = refusal(tmp_path / "wrong.pt")
    assert "missing (2): conv1_7x7_s2.bias, last_linear.bias\n" in message
    assert "unknown (1): inception_3c_pool_proj.weight\n" in message
    assert "wrong (2): conv2_3x3.weight is int32 (192, 64, 3, 3) and must be float32" in message
    assert "inception_3a_1x1.weight is float32 (1, 192, 1, 1) and must be float32 (64, 192, 1, 1)\n" in message
    assert message.endswith("not finite (1): conv2_3x3.bias")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(1), "contains a Tensor, not a state dict"),
        ({"net": {}, "epoch": 3}, r"not a tensor \(2\): net \(dict\), epoch \(int\)"),
        ({"generator": {"w": torch.zeros(1)}}, r"Choose an entry with --entry generator\."),
    ],
)
def test_files_without_a_state_dict_are_refused(content, said, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=said):
        read_state_dict(tmp_path / "other.pt")


def test_mistakes_on_the_command_line(converted, tmp_path, capsys):
    source = converted.with_name("weights.pt")
    assert "no weights file" in refusal(tmp_path / "nothing.pt")
    assert "--to-torch" in refusal(converted)
    assert "would overwrite" in refusal(source, "--output", source)
    assert "would overwrite" in refusal("--to-torch", converted, converted)
    assert "cannot write" in refusal(source, "--output", source / "out.safetensors")
    assert "python -m convert bn_inception" in refusal("--to-torch", source, tmp_path / "out.pt")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--to-torch", str(converted)])
    assert "--help" in capsys.readouterr().err


def test_missing_torch_names_the_extra(converted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'proxynca_jax[convert]'" in refusal("verify", converted, converted)
    assert "pip install 'proxynca_jax[convert]'" in refusal("--to-torch", converted, tmp_path / "out.pt")


def test_converting_needs_no_torch(converted, tmp_path):
    program = "import sys; sys.modules['torch'] = None; from convert.__main__ import main; main(sys.argv[1:])"
    words = [str(converted.with_name("weights.pt")), "--output", str(tmp_path / "again.safetensors")]
    subprocess.run([sys.executable, "-c", program, *words], check=True)
    assert (tmp_path / "again.safetensors").read_bytes() == converted.read_bytes()


def test_loader_refuses_other_files(converted, fresh, tmp_path, monkeypatch):
    safetensors.numpy.save_file({"weight": np.zeros(1)}, tmp_path / "other.safetensors")
    for path in (converted.with_name("weights.pt"), tmp_path / "other.safetensors", tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match=r"python -m convert bn_inception_weights_pt04\.pt"):
            load_pretrained(path, fresh, "bn_inception")
    backbone = BACKBONES["bn_inception"]
    rgb = dataclasses.replace(backbone.preprocessing, channel_order="RGB")
    monkeypatch.setitem(BACKBONES, "bn_inception", dataclasses.replace(backbone, preprocessing=rgb))
    with pytest.raises(UserError, match=r"'BGR'.*'RGB'"):
        load_pretrained(converted, fresh, "bn_inception")


def test_loader_reads_files_of_version_0_1(converted, fresh, tmp_path):
    tensors, metadata = converted_file.read_safetensors(converted)
    about = json.loads(metadata[converted_file.METADATA_KEY])
    del about["backbone"]
    about["preprocessing"] = {"channel_order": "BGR", "mean": [104.0, 117.0, 128.0], "image_size": 227}
    older = tmp_path / "older.safetensors"
    safetensors.numpy.save_file(tensors, older, {converted_file.METADATA_KEY: json.dumps(about)})
    assert converted_file.read(older).backbone == "bn_inception"
    network, _ = load_pretrained(older, fresh, "bn_inception")
    assert_trees_equal(network["backbone"], fill(fresh.params["backbone"]))


def test_loader_refuses_another_backbone(converted, fresh, tmp_path):
    with pytest.raises(
        UserError, match=r"of the backbone 'bn_inception', and model\.backbone is 'tiny'\. Set --config"
    ):
        load_pretrained(converted, fresh, "tiny")
    tensors, metadata = converted_file.read_safetensors(converted)
    about = json.loads(metadata[converted_file.METADATA_KEY]) | {"backbone": "bn_inceptoin"}
    newer = tmp_path / "newer.safetensors"
    safetensors.numpy.save_file(tensors, newer, {converted_file.METADATA_KEY: json.dumps(about)})
    with pytest.raises(UserError, match=r"newer\.safetensors is 'bn_inceptoin': did you mean 'bn_inception'"):
        converted_file.read(newer)
    assert "--backbone is 'resnet50': Valid names: bn_inception, efficient" in refusal(
        converted, "--backbone", "resnet50"
    )


def test_loader_lists_every_mismatch(converted, fresh, tmp_path):
    tensors = converted_file.read(converted).tensors
    del tensors["params/backbone/conv1_7x7_s2/kernel"], tensors["batch_stats/backbone/conv2_3x3_bn/mean"]
    tensors["params/backbone/conv2_3x3/bias"] = np.zeros(3, np.float32)
    tensors["params/backbone/surplus/bias"] = np.zeros(3, np.float32)
    converted_file.write(tmp_path / "wrong.safetensors", "bn_inception", tensors, source={})
    with pytest.raises(UserError) as error:
        load_pretrained(tmp_path / "wrong.safetensors", fresh, "bn_inception")
    for offender in ("conv1_7x7_s2/kernel", "conv2_3x3_bn/mean", "conv2_3x3/bias is float32 (3,)", "surplus/bias"):
        assert offender in str(error.value)

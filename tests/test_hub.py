"""Exported networks: folders of the Hub's form, their cards, and downloads of them."""

import hashlib
import inspect
import json
import pathlib
import sys
import types

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import errors
from written_runs import write_tiny_run

from proxynca_jax import Embedder, export
from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import new_folder
from proxynca_jax.runs.image_list import ListedImage
from proxynca_jax.runs.log import MetricLog, Record
from proxynca_jax.weights import hub_download

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), np.uint8)
# Of the classes that are trained on, three of four remain when a quarter is held out.
LISTED = [("train", "ant"), ("train", "bee"), ("train", "cat"), ("train", "dog"), ("query", "elk"), ("query", "fox")]
IMAGES = [ListedImage(side, name, f"secret/{name}{i}.jpg", f"{name}{i}") for side, name in LISTED for i in range(3)]
SCORES: Record = {"epoch": 2, "step": 12, "recall_at_1": 61.239, "recall_at_2": 70.0, "recall_at_4": 80.0}
SCORES |= {"recall_at_8": 90.0, "nmi": 55.5, "nmi_average": "geometric", "kmeans": "device", "kmeans_restarts": 7}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of the validation protocol, scored once on its test classes."""
    fields = {"protocol": "validation", "validation_fraction": 0.25}
    run = write_tiny_run(tmp_path_factory.mktemp("runs") / "run", IMAGES, **fields)
    log = MetricLog(run)
    for other in ({"split": "validation"}, {"split": "test", "step": 8}):
        log.record(SCORES | {"recall_at_1": 99.99} | other)
    log.record(SCORES | {"split": "test"})
    return run


@pytest.fixture(scope="module")
def whole(run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run, exported with the command."""
    folder = tmp_path_factory.mktemp("exported") / "my-network"
    export.main([str(run), "--format", "hub", "-o", str(folder)])
    return folder


@pytest.fixture
def folder(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy, to be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_exported_network_has_the_bits_of_the_run(run, whole):
    expected = Embedder.load(run).embed(PIXELS)
    for embedder in (Embedder.from_pretrained(whole), Embedder.load(str(whole))):
        np.testing.assert_array_equal(embedder.embed(PIXELS), expected)
        assert embedder.dim == 8


def test_the_settings_are_those_of_the_run(whole):
    about = json.loads((whole / "config.json").read_text())
    assert about["weights_sha256"] == hashlib.sha256((whole / "model.safetensors").read_bytes()).hexdigest()
    expected = {"backbone": "tiny", "embedding_dim": 8, "image_size": 32, "resize_size": 40, "squash": False}
    assert about.items() >= {**expected, "batch_size": 4, "compute_dtype": "float32"}.items()
    assert about["normalisation"]["std"] == [0.25, 0.25, 0.25]


def test_the_same_run_gives_the_same_bytes(run, whole, tmp_path):
    again = tmp_path / "again" / whole.name
    export.main([str(run), "--format", "hub", "-o", str(again)])
    names = sorted(path.name for path in whole.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert [(again / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]


def test_the_hub_reads_scores_from_the_card(whole):
    data = huggingface_hub.ModelCard.load(whole / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("proxynca_jax", "image-feature-extraction", None)
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"recall_at_1": 61.24, "recall_at_2": 70, "recall_at_4": 80, "recall_at_8": 90, "nmi": 55.5}
    assert data.model_name == "my-network"
    assert data.eval_results[0].dataset_name == "folder, 6 images of 2 classes"


def test_the_card_states_definitions_and_counts_and_nothing_private(run, whole):
    card = (whole / "README.md").read_text()
    for said in (
        "| R@1 | 61.24 | share of images with one of their class among the 1 nearest |",
        "geometric mean of their entropies",
        "by proxynca_jax's k-means, best of 7, seed 0",
        "chosen on 25% of the training classes, which were held out",
        "| training images | 12 images of 4 classes, 25% of the classes held out |",
        "| test images | 6 images of 2 classes |",
        "| started from | random weights |",
    ):
        assert said in card
    everything = b"".join(path.read_bytes() for path in whole.iterdir())
    assert [word for word in (b"secret", b"elk", b"/nowhere", bytes(run.parent)) if word in everything] == []


def test_the_card_of_an_old_run_without_scores(tmp_path):
    run = write_tiny_run(tmp_path / "run")
    export.main([str(run), "--format", "hub", "-o", str(tmp_path / "out"), "--checkpoint", "latest"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "no scores of this state" in card
    assert "an older version made the run" in card
    assert "model-index" not in yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("library_name", "timm", "does not describe a network of proxynca_jax"),
        ("backbone", "resnet50", "backbone is 'resnet50': Valid names"),
        ("embedding_dim", 16, "describe different networks"),
        ("embedding_dim", "8", "embedding_dim is '8'; it must be of the type int"),
        ("image_size", 33, "data.image_size is 33, which does not fit the tiny network"),
        ("image_size", 64, "data.resize_size is 40; it must be at least data.image_size, 64"),
        ("squash", None, "squash is None; it must be of the type bool"),
        ("normalisation", {"scale": 1}, r"describes images as \{'scale': 1\}, this version .* wrote it: "),
        ("weights_sha256", "0" * 64, "model.safetensors is damaged, or not the file .* must be 00000"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, field, value, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=said):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\udcff"])
def test_a_configuration_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config.json (cannot be read|does not describe a network)"):
        Embedder.load(folder)


def test_damaged_weights_are_refused(folder):
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        Embedder.load(folder)


def test_incomplete_folders_and_runs_are_no_exported_networks(run, folder):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config.json"):
        Embedder.from_pretrained(folder)
    with pytest.raises(UserError, match=r"no exported network: it has no model.safetensors. `Embedder.load` reads"):
        Embedder.from_pretrained(run)


@pytest.mark.parametrize("words", [["--checkpoint", "best"], ["--checkpoint", "latest"]])
def test_an_existing_folder_is_refused_by_name(run, folder, words, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit, match=f"{folder} exists. Name a folder"):
        export.main([str(run), "--format", "hub", "-o", str(folder), *words])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_no_run_leaves_nothing(folder, tmp_path):
    for source, said in ((folder, "is an exported network: it has no data set"), (tmp_path, "not the folder of a run")):
        with pytest.raises(SystemExit, match=said):
            export.main([str(source), "--format", "hub", "-o", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_folder_is_complete_or_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot write"), new_folder(tmp_path / "new") as partial:
        (partial / "missing" / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "parent" / "new") as partial:
        (partial / "file").touch()
        assert not (tmp_path / "parent" / "new").exists()
    assert [path.name for path in (tmp_path / "parent").rglob("*")] == ["new", "file"]


def test_a_damaged_log_is_named(folder, tmp_path):
    run = write_tiny_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(SystemExit, match=r"metrics.jsonl is damaged"):
        export.main([str(run), "--format", "hub", "-o", str(tmp_path / "out")])


def test_a_repository_is_downloaded(whole, monkeypatch, tmp_path):
    asked = {}
    accepted = inspect.signature(huggingface_hub.snapshot_download)

    def download(*args: object, **options: object) -> str:
        asked.update(accepted.bind(*args, **options).arguments)
        return str(whole)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    embedder = Embedder.from_pretrained("owner/name", revision="v1", cache_dir=tmp_path)
    np.testing.assert_array_equal(embedder.embed(PIXELS), Embedder.load(whole).embed(PIXELS))
    assert (asked["repo_id"], asked["revision"], asked["cache_dir"]) == ("owner/name", "v1", str(tmp_path))
    assert set(asked["allow_patterns"]) == {path.name for path in whole.iterdir()}


def test_a_repository_of_something_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the repository owner/name has no model.safetensors"):
        Embedder.from_pretrained("owner/name")


def test_a_folder_comes_before_a_repository(whole, monkeypatch):
    monkeypatch.chdir(whole.parent.parent)
    name = f"{whole.parent.name}/{whole.name}"
    assert Embedder.from_pretrained(name).dim == 8
    with pytest.raises(UserError, match=r"revision is 'v1', and .* is a folder here"):
        Embedder.from_pretrained(name, revision="v1")


def failure(kind: type[Exception]) -> Exception:
    """An error of the download, made without the server's response that some of them need."""
    error = kind.__new__(kind)
    error.args = ("the first line\nthe second",)
    return error


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (errors.RepositoryNotFoundError, "the Hub has no such repository, or you may not read it"),
        (errors.GatedRepoError, "hf auth login"),
        (errors.RevisionNotFoundError, "the repository owner/name has no revision 'v1'"),
        (errors.LocalEntryNotFoundError, "the first line. Check the connection .*hf download owner/name"),
        (ConnectionError, "the first line. Check the connection"),
    ],
)
def test_a_download_that_fails_gets_one_clear_error(kind, said, monkeypatch, tmp_path):
    def fail(*_args: object, **_options: object) -> str:
        raise failure(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        hub_download.find("owner/name", revision="v1")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_a_repository_is_not_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.ModuleType("unused"))
    monkeypatch.chdir(tmp_path)
    for name in ("/nowhere/network", "network", "a/b/c", "../b", "a b/c"):
        with pytest.raises(UserError, match=r"there is no folder .*owner/name"):
            hub_download.find(name)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'proxynca_jax\[hub\]'"):
        hub_download.find("owner/name")

"""An index kept up to date with photographs: nothing embedded twice, nothing lost, nothing of two networks mixed."""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import trees
from PIL import Image
from written_runs import write_tiny_run

from proxynca_jax import Embedder, Index, index, search
from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.machine import arguments
from proxynca_jax.machine.signals import Interrupted
from proxynca_jax.models.network import init_network
from proxynca_jax.report.contact_sheet import GAP, LINE, TILE
from proxynca_jax.runs import verification_file
from proxynca_jax.runs.lock import only_writer
from proxynca_jax.vector_index import engine as engines
from proxynca_jax.vector_index import open_engine, update
from proxynca_jax.weights import converted_file

DIM = 8


def write_network(path: pathlib.Path, seed: int, dim: int = DIM) -> pathlib.Path:
    config = ModelConfig(backbone="tiny", embedding_dim=dim)
    _, variables = init_network(config, np.random.default_rng(seed))
    leaves = {name: np.asarray(leaf) for name, leaf in converted_file.flatten(variables._asdict()).items()}
    converted_file.write(path, "tiny", leaves, source={})
    return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """Two networks of random weights."""
    folder = tmp_path_factory.mktemp("networks")
    return [write_network(folder / f"{seed}.safetensors", seed) for seed in range(2)]


@pytest.fixture
def photographs(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three classes of four images, `class_00` to `class_02`, and one image above them."""
    folder = tmp_path / "photographs"
    trees.draw_folder(folder, classes=3, images_per_class=4)
    Image.new("RGB", (40, 40), "gold").save(folder / "single.png")
    return folder


def images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file())


def rows(address: pathlib.Path) -> dict[str, tuple]:
    """Label, digest and vector of each row, by path."""
    engine = open_engine(str(address))
    return {path: tuple(rest) for path, *rest in engines.columns(engine, ("path", "label", "digest", "vector"))}


def vectors(address: pathlib.Path) -> dict[str, list[float]]:
    return {path: vector for path, (_, _, vector) in rows(address).items()}


def stop_at_fourth_call() -> Callable[[], None]:
    """A check that lets three batches pass."""
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 3:
            raise Interrupted

    return check


def test_rows_are_what_the_embedder_makes(photographs, networks, tmp_path):
    address, paths = tmp_path / "i.lance", images(photographs)
    changes = Index.open(address, networks[0]).add(photographs)
    assert changes == (13, 0, 0, 0, {})
    expected = Embedder.load(networks[0]).embed(paths)
    found = rows(address)
    np.testing.assert_array_equal([found[str(path)][2] for path in paths], expected)
    assert [found[str(path)][0] for path in paths] == [
        path.parent.name if path.name != "single.png" else "" for path in paths
    ]


def test_each_kind_of_change(photographs, networks, tmp_path, monkeypatch):
    address, paths = tmp_path / "i.lance", images(photographs)
    index = Index.open(address, networks[0])
    index.add(photographs)
    assert index.add(photographs) == (0, 0, 13, 0, {})
    moved, copied, touched, changed, same_size, removed, damaged = paths[:7]
    (photographs / "new" / "deep").mkdir(parents=True)
    moved.rename(photographs / "new" / "deep" / "moved.jpg")
    shutil.copyfile(copied, photographs / "new" / "copy.jpg")
    os.utime(touched, ns=(1, 1))
    changed.write_bytes(paths[8].read_bytes() + b"\0")  # behind the image's end, so it is another content
    pixels = np.asarray(Image.open(same_size))
    content = same_size.read_bytes()
    same_size.write_bytes(content[:-40] + bytes(len(content[-40:-2])) + content[-2:])
    assert same_size.stat().st_size == len(content)
    assert not np.array_equal(pixels, np.asarray(Image.open(same_size)))
    removed.unlink()
    damaged.write_bytes(b"no image")
    changes = index.add(photographs)
    assert changes[:4] == (2, 3, 7, 3)  # moved, copied and touched ones are recognised; the row of a damaged one goes
    assert list(changes.left_out) == [str(damaged)]
    assert "cannot decode" in changes.left_out[str(damaged)]
    now = [path for path in images(photographs) if path != damaged]
    found = vectors(address)
    assert sorted(found) == list(map(str, now))
    np.testing.assert_allclose([found[str(path)] for path in now], Embedder.load(networks[0]).embed(now), atol=1e-6)
    assert rows(address)[str(photographs / "new" / "deep" / "moved.jpg")][0] == "new"


def test_rows_of_other_folders_stay(photographs, networks, tmp_path):
    address = tmp_path / "i.lance"
    other = tmp_path / "photographs 2"  # a name that begins alike
    shutil.copytree(photographs / "class_00", other)
    index = Index.open(address, networks[0])
    index.add(photographs)
    assert index.add(other) == (0, 4, 0, 0, {})
    (photographs / "single.png").unlink()
    assert index.add(photographs) == (0, 0, 12, 1, {})
    assert len(index) == 16


def test_a_stopped_update_keeps_what_it_has_and_goes_on(photographs, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "ROWS_PER_ADD", 4)
    address = tmp_path / "i.lance"
    index = Index.open(address, networks[0])
    index._embedder.config.evaluation.batch_size = 4
    with pytest.raises(Interrupted):
        index.add(photographs, stop_at_fourth_call())
    kept = len(rows(address))
    assert 0 < kept < 13
    assert kept % 4 == 0
    assert Index.open(address).add(photographs) == (13 - kept, 0, kept, 0, {})


def test_search_equals_numpy(photographs, networks, tmp_path):
    address, paths = tmp_path / "i.lance", images(photographs)
    Index.open(address, networks[0]).add(photographs)
    index = Index.open(address)
    queries = index.embedder.embed(paths[:3])
    scores = queries @ index.embedder.embed(paths).T
    for found, score in zip(index.search(paths[:3], k=5), scores, strict=True):
        best = np.argsort(-score, kind="stable")[:5]
        np.testing.assert_allclose([match.score for match in found], score[best], atol=1e-6)
    (found,) = index.search(paths[:1], k=100, where="label = 'class_01'")
    assert sorted(match.path for match in found) == [str(path) for path in paths if path.parent.name == "class_01"]
    assert index.search(paths[:1], where="label = 'it''s'") == [[]]
    with pytest.raises(UserError, match=r"the condition 'label =' cannot be used: .* SQL on the columns path, label"):
        index.search(paths[:1], where="label =")


def test_another_network_is_refused_and_rebuilds(photographs, networks, tmp_path, monkeypatch):
    address, paths = tmp_path / "i.lance", images(photographs)
    other = tmp_path / "elsewhere"
    trees.draw_folder(other, classes=1, images_per_class=2, seed=7)
    for folder in (photographs, other):
        Index.open(address, networks[0]).add(folder)
    with pytest.raises(UserError, match=rf"was made with another network, {networks[0]}: weights .* --rebuild"):
        Index.open(address, networks[1])
    before = vectors(address)
    index = Index.open(address, networks[1], rebuild=True)
    monkeypatch.setattr(update, "ROWS_PER_ADD", 4)
    index._embedder.config.evaluation.batch_size = 4
    with pytest.raises(Interrupted):
        index.add(photographs, stop_at_fourth_call())
    assert vectors(address) == before  # searches see the old rows until the new ones are complete
    changes = Index.open(address, networks[1], rebuild=True).add(photographs)
    assert changes == (0, 0, 13, 0, {})  # all were embedded again before
    now = [*paths, *images(other)]
    found = vectors(address)
    np.testing.assert_allclose([found[str(path)] for path in now], Embedder.load(networks[1]).embed(now), atol=1e-6)
    assert Index.open(address).about["model"] == str(networks[1])
    assert [path.name for path in address.glob("images_*")] == [f"{engines.table_name(index.about)}.lance"]


def test_a_network_that_changed_under_its_name_is_refused(photographs, networks, tmp_path):
    network = tmp_path / "network.safetensors"
    shutil.copyfile(networks[0], network)
    Index.open(tmp_path / "i.lance", network).add(photographs)
    shutil.copyfile(networks[1], network)
    with pytest.raises(UserError, match=r"is not the network any more that made .* weights .* --rebuild"):
        Index.open(tmp_path / "i.lance").search([photographs / "single.png"])
    shutil.copyfile(networks[0], tmp_path / "moved.safetensors")
    index = Index.open(tmp_path / "i.lance", tmp_path / "moved.safetensors")  # the same network elsewhere
    index.add(photographs)
    assert Index.open(tmp_path / "i.lance").about["model"] == str(tmp_path / "moved.safetensors")


def test_one_writer(photographs, networks, tmp_path):
    index = Index.open(tmp_path / "i.lance", networks[0])
    with (
        only_writer(tmp_path / "i.lance", doing="written to"),
        pytest.raises(UserError, match=rf"is being written to by process {os.getpid()} .* choose another index"),
    ):
        index.add(photographs)


def test_processes_share_the_files(photographs, networks, tmp_path):
    address, paths = tmp_path / "i.lance", images(photographs)
    first = Index.open(address, networks[0]).add(photographs, share=(0, 2))
    assert 0 < first.embedded < 13
    second = Index.open(address, networks[0]).add(photographs, share=(1, 2))
    assert second == (13 - first.embedded, 0, 0, 0, {})
    paths[0].unlink()
    removed = [Index.open(address).add(photographs, share=(number, 2)).removed for number in range(2)]
    assert sorted(removed) == [0, 1]
    assert len(rows(address)) == 12
    with only_writer(address, among_others=True):
        Index.open(address).add(photographs, share=(0, 2))
        with pytest.raises(UserError, match="is being written to by"):
            Index.open(address).add(photographs)
    with pytest.raises(UserError, match="--rebuild is for one process"):
        Index.open(address, networks[1], rebuild=True).add(photographs, share=(0, 2))


@pytest.mark.parametrize(
    ("environment", "options", "share"),
    [
        ({}, [], (0, 1)),
        ({}, ["--distributed", "--num_processes=3", "--process_id=2"], (2, 3)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, ["--distributed"], (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, ["--distributed", "--process_id=1"], (1, 2)),
    ],
)
def test_the_share_of_a_process(monkeypatch, environment, options, share):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parser = argparse.ArgumentParser()
    arguments.add_share(parser)
    assert arguments.share_of(parser.parse_args(options)) == share


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--distributed"], "process None of None. Give --num_processes"),
        (["--distributed", "--num_processes=2", "--process_id=2"], "process 2 of 2"),
        (["--num_processes=2"], "go with --distributed"),
    ],
)
def test_a_share_that_is_none(options, said):
    parser = argparse.ArgumentParser()
    arguments.add_share(parser)
    with pytest.raises(UserError, match=said):
        arguments.share_of(parser.parse_args(options))


@pytest.mark.parametrize(
    ("folder", "said"),
    [("nothing", "nothing is not a folder"), ("empty", r"empty has no images, that is files ending in \.bmp")],
)
def test_a_wrong_folder_makes_no_index(networks, tmp_path, folder, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        Index.open(tmp_path / "i.lance", networks[0]).add(tmp_path / folder)
    with pytest.raises(UserError, match=r"there is no index at .*i\.lance\. Make one: proxynca index"):
        Index.open(tmp_path / "i.lance")
    assert not (tmp_path / "i.lance").exists()


def test_a_file_is_no_index(photographs):
    with pytest.raises(UserError, match="is a file; an index is a folder"):
        Index.open(photographs / "single.png")


def test_odd_names_and_files(networks, tmp_path):
    folder = tmp_path / 'it\'s 100%_"odd" \\ ünïcode'
    folder.mkdir()
    trees.draw_odd_images(folder)
    with open(os.fsencode(folder) + b"/not-utf8-\xff.png", "wb") as file:  # noqa: PTH123
        Image.new("RGB", (8, 8)).save(file, "PNG")
    changes = Index.open(tmp_path / "i.lance", networks[0]).add(folder)
    faults = "\n".join(changes.left_out.values())
    assert re.search(r"truncated.jpg: cannot decode", faults)
    assert "its name is not UTF-8. Rename it." in faults
    assert Index.open(tmp_path / "i.lance").add(folder)[:4] == (0, 0, changes.embedded, 0)
    for path in rows(tmp_path / "i.lance"):
        pathlib.Path(path).unlink()
    Image.new("RGB", (8, 8), "red").save(folder / "last.png")
    assert Index.open(tmp_path / "i.lance").add(folder)[3] == changes.embedded


def test_the_commands(photographs, networks, tmp_path, capsys):
    address, query = str(tmp_path / "i.lance"), photographs / "single.png"
    (photographs / "damaged.jpg").write_bytes(b"no image")
    index.main([str(photographs), "-o", address, "--model", str(networks[0])])
    done = capsys.readouterr()
    assert done.out == f"{address}: 13 images (13 embedded, 0 recognised, 0 unchanged, 0 removed)\n"
    assert "1 files cannot be used and are left out:\n" in done.err
    search.main([str(query), "--index", address, "-k", "2", "--picture", str(tmp_path / "found.png")])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"1.0000  {query}"
    assert re.fullmatch(rf"-?\d\.\d{{4}}  {photographs}/class_\d\d/.*\.\w+  class_\d\d", second)
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.size == (GAP + 3 * (TILE + GAP), GAP + TILE + 2 * LINE + GAP)
    search.main([str(query), str(query), "--index", address, "-k", "1", "--json"])
    objects = json.loads(capsys.readouterr().out)
    expected = {"path": str(query), "label": "", "score": pytest.approx(1, abs=1e-6)}
    assert objects == [{"query": str(query), "matches": [expected]}] * 2


def test_an_index_takes_the_thresholds_of_its_run(photographs, tmp_path, capsys):
    run, address = write_tiny_run(tmp_path / "run"), tmp_path / "i.lance"
    paths = images(photographs)
    index = Index.open(address, run)
    index.add(photographs)
    with pytest.raises(UserError, match=rf"i\.lance has no thresholds\. .*evaluate --run {run} --verification"):
        index.search(paths[:1], max_far=0.01)
    least = sorted(match.score for match in index.search(paths[:1], k=100)[0])[-4]
    points = [{"far": 0.01, "threshold": least}, {"far": 0.001, "threshold": 2.0}]
    thresholds = run / verification_file.NAME
    thresholds.write_text(json.dumps({"weights": "of another step", "operating_points": points}))
    assert "operating_points" not in Index.open(address, run).about
    thresholds.write_text(json.dumps({"weights": index.about["weights"], "operating_points": points}))
    Index.open(address, run).add(photographs)
    thresholds.unlink()
    Index.open(address, run).add(photographs)  # keeps them
    index = Index.open(address)
    assert [match.score >= least for match in index.search(paths[:1], k=100, max_far=0.01)[0]] == [True] * 4
    assert index.search(paths[:1], max_far=0.001) == [[]]
    with pytest.raises(UserError, match=r"false accept rate of 0\.1; measured: 0\.01, 0\.001\. .*--verification"):
        index.threshold(0.1)
    words = [str(paths[0]), "--index", str(address), "--max_far", "1e-3"]
    search.main(words)
    assert capsys.readouterr().out == "None of these is the same: no image has a similarity of 2.0000 or more.\n"
    search.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == [{"query": str(paths[0]), "threshold": 2.0, "matches": []}]
    thresholds.write_text("{")
    with pytest.raises(UserError, match=rf"verification\.json is damaged: .* evaluate --run {run} --verification"):
        Index.open(address, run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{here}/text.jpg", "--index", "{here}/i.lance"], r"text\.jpg: cannot decode"),
        (["{here}/none.jpg", "--index", "{here}/i.lance"], r"no image file at .*none\.jpg"),
        (["{here}/text.jpg", "--index", "{here}/none.lance"], r"there is no index at"),
        (["{here}/text.jpg", "--index", "{here}/i.lance", "--picture", "a.jpg"], r"must end in \.png"),
    ],
)
def test_wrong_searches(photographs, networks, tmp_path, words, said):
    Index.open(tmp_path / "i.lance", networks[0]).add(photographs)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(SystemExit, match=said):
        search.main([word.format(here=tmp_path) for word in words])


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing(networks, tmp_path):
    folder, address = tmp_path / "photographs", tmp_path / "i.lance"
    trees.draw_folder(folder, classes=20, images_per_class=60)  # far more than are wanted, so none ends by itself
    command = [sys.executable, str(pathlib.Path(__file__).parent / "tiny_index.py"), str(folder), "-o", str(address)]
    expected = dict(zip(map(str, images(folder)), Embedder.load(networks[0]).embed(images(folder)), strict=True))
    rng, before = np.random.default_rng(0), 0
    for _ in range(4):
        process = subprocess.Popen([*command, "--model", str(networks[0])], stdout=subprocess.DEVNULL)
        wanted = before + rng.integers(1, 150)
        while process.poll() is None and rows_now(address) < wanted:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        found = vectors(address)
        assert len(found) > before
        np.testing.assert_allclose(list(found.values()), [expected[path] for path in found], atol=1e-6)
        before = len(found)
    assert before < len(expected)
    subprocess.run([*command, "--model", str(networks[0])], check=True, capture_output=True)
    assert vectors(address).keys() == expected.keys()


def rows_now(address: pathlib.Path) -> int:
    described = open_engine(str(address)).describe()
    return 0 if described is None else described[1]

"""Near-duplicates: groups worked by hand, and all pairs compared at once; the command."""

import json

import numpy as np
import PIL.Image
import pytest
from index_rows import ABOUT, table, unit
from scipy.sparse.csgraph import connected_components

from proxynca_jax import duplicates as command
from proxynca_jax.vector_index import duplicates, open_engine
from proxynca_jax.vector_index.duplicates import find_duplicates
from proxynca_jax.vector_index.index import Index


def make_index(address, paths, vectors, digests=None):
    engine = open_engine(str(address))
    engine.begin(ABOUT | {"dimensions": vectors.shape[1]})
    rows = table(paths, vectors, labels=["ünit"] * len(paths))
    if digests:
        rows = rows.set_column(4, "digest", [digests])
    engine.add(rows)
    engine.publish(ABOUT | {"dimensions": vectors.shape[1]})
    return engine


def at(*degrees):
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_groups_worked_by_hand(tmp_path):
    # Ten degrees apart: a cosine of 0.985. b is similar to a and to c; e and f are similar; d is alone.
    engine = make_index(tmp_path / "i", ["/c", "/a", "/b", "/f", "/e", "/d"], at(20, 0, 10, 95, 90, 50))
    found = find_duplicates(engine, 0.98)
    assert [[image.path for image in group] for group in found] == [["/a", "/b", "/c"], ["/e", "/f"]]
    assert [image.score for image in found[0]] == pytest.approx(np.cos(np.radians([0, 10, 20])), abs=1e-6)
    assert found[0][0].label == "ünit"
    assert [len(group) for group in find_duplicates(engine, 0.99)] == [2]
    assert find_duplicates(engine, 0.999) == []


def test_files_of_the_same_content_are_a_group_whatever_their_vectors(tmp_path):
    engine = make_index(tmp_path / "i", ["/a", "/b", "/c"], at(0, 90, 45), digests=["1", "2", "1"])
    [group] = find_duplicates(engine, 1.0)
    assert [(image.path, image.same_content) for image in group] == [("/a", True), ("/c", True)]


def test_tiles_find_what_one_product_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "TILE", 64)
    monkeypatch.setattr(duplicates, "PAIRS_AT_ONCE", 100)
    vectors = unit(500, dim=3)
    paths = [f"/{number:03d}" for number in range(500)]
    _, groups = connected_components(vectors @ vectors.T >= 0.998, directed=False)
    wanted = {frozenset(np.flatnonzero(groups == group)) for group in groups}
    found = find_duplicates(make_index(tmp_path / "i", paths, vectors), 0.998)
    sizes = [len(group) for group in found]
    assert sizes == sorted(sizes, reverse=True)
    assert {frozenset(int(image.path[1:]) for image in group) for group in found} == {g for g in wanted if len(g) > 1}
    assert 1 < len(found) < len(wanted), "groups and images of no group"


def test_the_default_score_depends_on_the_network(tmp_path):
    make_index(tmp_path / "i", ["/a", "/b"], at(0, 10))  # a cosine of 0.985
    index = Index.open(tmp_path / "i")
    assert len(index.duplicates()) == 1
    index.about = {**index.about, "checkpoint": "best"}
    assert len(index.duplicates()) == 0


def test_the_command_prints_groups_and_draws_them(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a.png", "b\x1b.png", "other.png")]
    for path, colour in zip(paths, ("red", "darkred", "blue"), strict=True):
        PIL.Image.new("RGB", (40, 30), colour).save(path)
    make_index(tmp_path / "i", paths, at(0, 5, 90))
    arguments = ["--index", str(tmp_path / "i"), "--picture", str(tmp_path / "sheet.png")]
    command.main(arguments)
    printed = capsys.readouterr().out
    assert "2 images\n  1.0000" in printed
    assert "\\x1b.png  ünit" in printed
    assert printed.endswith("1 groups with 2 of 3 images\n")
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 600
    command.main([*arguments, "--json"])
    [[first, second]] = json.loads(capsys.readouterr().out)
    assert (first["path"], second["path"]) == tuple(paths[:2])
    assert second["score"] == pytest.approx(np.cos(np.radians(5)), abs=1e-6)
    command.main([*arguments, "--min_score", "1"])
    assert capsys.readouterr().out == "0 groups with 0 of 3 images\n"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--min_score", "1.5"], "1.5 is not from 0.0 to 1.0"),
    (["--picture", "x.jpg"], "it must end in .png"),
    ([], "there is no index at"),
])  # fmt: skip
def test_wrong_arguments_are_said(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        command.main(["--index", str(tmp_path / "none"), *arguments])
    assert said in f"{caught.value.code}{capsys.readouterr().err}"

"""Scores of files that anyone wrote, against a set scored by hand, and what is refused."""

import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proxynca_jax import evaluate
from proxynca_jax.config import TrainConfig
from proxynca_jax.runs.folder import open_run

# Six images on a circle, three classes, the last with one image. In their order, the ranks of the five others are
# 1, 1, 1, 3 and 2. Of the class "ant", R = 2, each finds one image, as its second: average precision 1/4, R-precision
# 1/2. Of "bee", R = 1, neither finds any.
DEGREES = np.array([0, 10, 50, 4, 62, 200])
LABELS = ["ant", "ant", "ant", "bee", "bee", "cat"]
VECTORS = np.stack([np.cos(np.radians(DEGREES)), np.sin(np.radians(DEGREES))], axis=1).astype(np.float32)
# The clusters are {0, 10, 4}, {50, 62} and {200} degrees, as large as the classes, so all entropies are the same.
ENTROPY = np.log(2) / 2 + np.log(3) / 3 + np.log(6) / 6
MUTUAL_INFORMATION = np.log(4 / 3) / 3 + np.log(3 / 2) / 6 + np.log(6) / 6
BY_HAND = {"R@1": 0, "R@2": 60, "R@4": 100, "R@8": 100, "MAP@R": 15, "R-precision": 30}
BY_HAND["NMI"] = 100 * MUTUAL_INFORMATION / ENTROPY


def write(path: pathlib.Path, vectors=VECTORS, labels=LABELS, **others) -> pathlib.Path:
    if path.suffix == ".npz":
        np.savez(path, embeddings=vectors, labels=labels, **others)
    else:
        pq.write_table(pa.table({"embedding": list(vectors), "label": labels, **others}), path)
    return path


def card(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, float], str]:
    """The scores that the command prints, by name, and all of its output."""
    evaluate.main([str(argument) for argument in arguments])
    output = capsys.readouterr().out
    return {name: float(value) for name, value in re.findall(r"^(\S+) +(\d+\.\d\d) %", output, re.MULTILINE)}, output


def refusal(*arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluate.main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, str)  # which Python prints, with exit status 1
    return caught.value.code


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("labels", [LABELS, [7, 7, 7, -1, -1, 2**40]], ids=["strings", "integers"])
def test_scores_are_those_worked_by_hand(suffix, labels, tmp_path, capsys):
    scores, output = card(capsys, "--embeddings", write(tmp_path / f"file{suffix}", labels=labels))
    assert scores == pytest.approx(BY_HAND, abs=0.005)
    assert f"file{suffix}  R@1 0.00  R@2 60.00  R@4 100.00  R@8 100.00  NMI {BY_HAND['NMI']:.2f}\n" in output


def test_the_card_tells_what_scores_depend_on(tmp_path, capsys):
    options = ["--nmi_average", "geometric", "--kmeans", "scikit-learn", "--kmeans_restarts", 3, "--seed", 5]
    _, output = card(capsys, "--embeddings", write(tmp_path / "file.npz"), *options)
    facts = ["6 of 3 classes, 2 dimensions", "1 of the images", "by cosine distance"]
    facts += [
        "geometric mean",
        "3 of the images, by scikit-learn's k-means",
        "lowest inertia of 3, k-means++ and Lloyd, seed 5",
        f"numpy {np.__version__}",
    ]
    for fact in facts:
        assert fact in output


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapse_is_scored_worst_and_said(value, tmp_path, capsys):
    path = write(tmp_path / "file.npz", np.full((6, 2), value))
    with pytest.warns(UserWarning, match="the embeddings have collapsed: their mean squared distance"):
        scores, output = card(capsys, "--embeddings", path, "--no-nmi")
    # The three ants have three wrong images before the right ones, the two bees have four.
    assert scores == {"R@1": 0, "R@2": 0, "R@4": 60, "R@8": 100, "MAP@R": 0, "R-precision": 0}
    assert re.search(r"^spread +0, the mean squared distance", output, re.MULTILINE)


def test_options_choose_the_scores(tmp_path, capsys):
    scores, output = card(capsys, "--embeddings", write(tmp_path / "file.npz"), "--recall_at", 3, 1, "--no-nmi")
    assert scores == {"R@3": 80, "R@1": 0, "MAP@R": 15, "R-precision": 30}
    assert "NMI" not in output.splitlines()[0]
    assert "k-means" not in output


@pytest.mark.parametrize(("distance", "found"), [("cosine", 100), ("squared_euclidean", 0)])
def test_queries_look_into_a_gallery(distance, found, tmp_path, capsys):
    """The image of the query's class is the nearer one by angle, not by distance; one query has nothing to find."""
    queries = write(tmp_path / "queries.npz", [[1.0, 0.0], [0.0, 1.0]], ["x", "z"])
    gallery = write(tmp_path / "gallery.parquet", [[1.0, 1.0], [10.0, 0.0], [1.0, 1.1]], ["y", "x", "y"])
    options = ["--embeddings", queries, "--gallery", gallery, "--distance", distance, "--recall_at", 1, 3]
    scores, output = card(capsys, *options)
    assert scores == {"R@1": found, "R@3": 100, "MAP@R": found, "R-precision": found, "NMI": 100}
    assert "3 others, of 2 classes" in output
    assert "1 of the queries" in output


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.int8(), 2)], ids=str)
def test_any_list_of_numbers_is_read(kind, tmp_path, capsys):
    table = pa.table({"label": pa.array(["a", "b", "a"]).dictionary_encode(), "embedding": [[3, 0], [0, 2], [2, 1]]})
    pq.write_table(table.set_column(1, "embedding", table["embedding"].cast(kind)), tmp_path / "file.parquet")
    scores, _ = card(capsys, "--embeddings", tmp_path / "file.parquet", "--recall_at", 1, "--no-nmi")
    assert scores == {"R@1": 100, "MAP@R": 100, "R-precision": 100}


def test_verification_of_a_file(tmp_path, capsys):
    """All six images: four pairs of one class, of which the ants' are 10, 40 and 50 degrees wide, the bees' 58."""
    options = ["--embeddings", write(tmp_path / "file.npz"), "--no-nmi", "--verification"]
    _, output = card(capsys, *options, "--record", tmp_path / "record.json", "--roc", tmp_path / "roc.png")
    measured = json.loads((tmp_path / "record.json").read_text())
    assert measured["pairs"] == {"genuine": 4, "impostor": 11}
    assert measured["operating_points"] == []
    assert re.search(
        r"^TAR@1e-1 +not measured: it needs 100 pairs of two classes, and there are 11$", output, re.MULTILINE
    )
    # Those of two classes that are at most 52 degrees wide: 4, 6, 12, 46 and 52.
    assert measured["eer"] == pytest.approx((4 / 11 + 1 / 4) / 2)
    assert np.cos(np.radians(52)) < measured["eer_threshold"] < np.cos(np.radians(50)) + 1e-6
    assert re.search(r"^EER +30\.68 %  threshold 0\.\d{4} \[", output, re.MULTILINE)
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.size == (1040, 840)


def test_thresholds_of_one_class_in_a_gallery_need_no_open_set(tmp_path, capsys):
    queries = write(tmp_path / "queries.npz", labels=["ant"] * 6)
    options = ["--embeddings", queries, "--gallery", write(tmp_path / "gallery.npz"), "--no-nmi", "--verification"]
    _, output = card(capsys, *options, "--record", tmp_path / "record.json")
    assert re.search("^open set +not measured: Of 1 classes, 1 have an image to enrol", output, re.MULTILINE)
    measured = json.loads((tmp_path / "record.json").read_text())
    assert measured["identification"] is None
    assert sum(measured["pairs"].values()) == 36


def test_verification_needs_two_classes(tmp_path, capsys):
    path = write(tmp_path / "file.npz", labels=["ant"] * 6)
    assert "have no pairs of two classes" in refusal("--embeddings", path, "--no-nmi", "--verification")
    assert "R@1" in capsys.readouterr().out  # what was computed is printed


WITH_NAN = np.where(np.arange(6)[:, None] == 4, np.nan, VECTORS)
FAULTS = {
    "a row that is not finite": ({"vectors": WITH_NAN}, "Row 4 of the 6"),
    "no class twice": ({"labels": list("abcdef")}, "None of the 6 queries"),
    "labels that are fractions": ({"labels": np.arange(6) / 2}, "labels .* of type float64; .* integers or strings"),
    "embeddings that are words": ({"vectors": [["a", "b"]] * 6}, "embeddings .* of type .*; .* numbers"),
    "no embedding": (
        {"vectors": np.zeros((0, 2)), "labels": np.zeros(0, np.int64)},
        r"shape \(0, 2\) .*\(N, D\) and \(N,\)|has no rows",
    ),
}


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("fault", FAULTS)
def test_contents_that_cannot_be_scored(fault, suffix, tmp_path):
    contents, told = FAULTS[fault]
    assert re.search(told, refusal("--embeddings", write(tmp_path / f"file{suffix}", **contents)))


def test_an_npz_file_of_another_kind(tmp_path):
    path = tmp_path / "file.npz"
    assert "there is no file" in refusal("--embeddings", path)
    np.savez(path, embedings=VECTORS, targets=LABELS)
    assert "'embeddings'; required: embeddings, labels. did you mean 'embedings'?" in refusal("--embeddings", path)
    np.savez(path, embeddings=VECTORS, labels=np.array(LABELS, object))
    assert "np.array(labels, str)" in refusal("--embeddings", path)
    assert "(6, 2) and labels of shape (5,)" in refusal("--embeddings", write(path, labels=LABELS[1:]))
    path.write_bytes(write(path).read_bytes()[:300])
    assert "is not a complete .npz file" in refusal("--embeddings", path)


def test_a_parquet_file_of_another_kind(tmp_path):
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"vector": list(VECTORS), "label": LABELS}), path)
    assert "no column 'embedding'; required: embedding, label. Valid names: label, vector" in refusal(
        "--embeddings", path
    )
    assert "2 in row 0, 3 in row 1" in refusal("--embeddings", write(path, [[1.0, 2.0], [1.0, 2.0, 3.0]], [1, 1]))
    assert "empty cells" in refusal("--embeddings", write(path, labels=[*LABELS[1:], None]))
    assert "of type double; each must be a list" in refusal("--embeddings", write(path, DEGREES / 2))
    path.write_bytes(write(path).read_bytes()[:-9])
    assert "cannot be read as a .parquet file" in refusal("--embeddings", path)


def test_what_does_not_go_together(tmp_path, capsys):
    path = write(tmp_path / "file.npz")
    flat = write(tmp_path / "flat.npz", VECTORS[:, :1])
    assert "differ in dimensions, 2 and 1" in refusal("--embeddings", path, "--gallery", flat)
    numbered = write(tmp_path / "numbered.npz", labels=np.arange(6))
    assert "differ in kind of labels, text and integers" in refusal("--embeddings", path, "--gallery", numbered)
    assert "ends in '.csv'; embedding files end in .npz or .parquet" in refusal("--embeddings", tmp_path / "file.csv")
    for options, told in (
        (["--run", "x", "--embeddings", "y"], "not allowed with"),
        (["--run", "x", "--gallery", "y"], "--gallery goes with --embeddings"),
        (["--embeddings", "x", "--checkpoint", "best"], "--checkpoint goes with --run"),
        (["--embeddings", "x", "--recall_at", "0"], "0 is not from 1"),
        (["--embeddings", "x", "--roc", "roc.png"], "--roc goes with --verification"),
        (["--embeddings", "x", "--verification", "--roc", "roc.pdf"], "it must end in .png"),
    ):
        with pytest.raises(SystemExit, match="2"):
            evaluate.main(options)
        assert told in capsys.readouterr().err


def test_a_run_that_has_saved_nothing(tmp_path):
    assert "is not the folder of a run" in refusal("--run", tmp_path / "nowhere")
    open_run(tmp_path / "run", TrainConfig())
    assert "checkpoints/latest has no state" in refusal("--run", tmp_path / "run", "--checkpoint", "latest")


def test_vectors_far_from_the_origin_are_no_collapse_for_the_euclidean_distance(tmp_path, capsys):
    near, far = (write(tmp_path / f"{name}.npz", np.array(VECTORS) + shift) for name, shift in (("a", 0), ("b", 1e4)))
    options = "--distance", "squared_euclidean", "--no-nmi"
    scores, text = card(capsys, "--embeddings", near, *options)
    shifted, same_text = card(capsys, "--embeddings", far, *options)
    assert scores == shifted
    assert "spread" not in text + same_text

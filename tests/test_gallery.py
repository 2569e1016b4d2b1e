"""A data set whose queries search a separate gallery: trained, evaluated and embedded by the commands."""

import collections
import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
import trees

from proxynca_jax import Embedder, embed, evaluate, job, train
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.data import evaluation_images, transforms
from proxynca_jax.data.datasets import DATASETS, DataSetSource, load_dataset
from proxynca_jax.data.datasets.class_folders import read_class_folders
from proxynca_jax.data.evaluation_images import CACHE, DEVICE, HOST, NOWHERE, choose_place
from proxynca_jax.data.split import DataSet, Evaluation
from proxynca_jax.data.transforms import decode
from proxynca_jax.runs import verification_file
from proxynca_jax.runs.embedding_files import read_embeddings

QUERIES, GALLERY = 2 * 5, 3 * 7  # images; one class of the gallery has no query
BATCH = 4


def read_shop(root: pathlib.Path, _: DataConfig) -> DataSet:
    """Reads `train/`, `queries/` and `gallery/`, each with one folder per class."""
    train, queries, gallery = (read_class_folders(root / name, "") for name in ("train", "queries", "gallery"))
    return DataSet(train, Evaluation(dataclasses.replace(queries, class_names=gallery.class_names), gallery))


@pytest.fixture(scope="module", autouse=True)
def shop():
    """The row, and the small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "shop", DataSetSource(read_shop, "A shop is train/, queries/ and gallery/."))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("shop")
    for seed, (folder, classes, images) in enumerate([("train", 4, 6), ("queries", 2, 5), ("gallery", 3, 7)]):
        trees.draw_folder(root / folder, classes, images, seed=seed)
    # The gallery's first and last class change names, so the queries of the first one find none of their class.
    first, last, beside = (root / "gallery" / name for name in ("class_00", "class_02", "beside"))
    for before, after in (first, beside), (last, first), (beside, last):
        before.rename(after)
    return root


def config_of(root: pathlib.Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(dataset="shop", root=str(root), image_size=32, resize_size=32, crop_area_min=0.5, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=8),
        optim=OptimConfig(epochs=1, batch_size=8, learning_rate=1e-3, proxy_learning_rate=0.01, epsilon=0.1),
        evaluation=EvaluationConfig(batch_size=BATCH, recall_at=(1, 2), kmeans_restarts=1),
    )


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> pathlib.Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train.train(config_of(root), run)
    return run


def scores(run: pathlib.Path) -> list[tuple[float, ...]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["recall_at_1"], record["recall_at_2"], record["nmi"]) for record in records]


def test_the_log_counts_queries_and_gallery(run):
    first = (run / "log.txt").read_text().splitlines()[0]
    assert "training 24 images of 4 classes, queries 10 images of 2 classes, gallery 21 images of 3 classes;" in first


def test_verification_writes_the_thresholds_of_the_runs_network(run, tmp_path, capsys):
    nowhere = tmp_path / "no folder" / "roc.png"
    with pytest.raises(SystemExit, match=r"cannot write .*roc\.png"):
        evaluate.main(["--run", str(run), "--no-nmi", "--verification", "--roc", str(nowhere)])
    path = run / verification_file.NAME
    assert f"thresholds are in {path}\n" in capsys.readouterr().out  # they are not lost with the picture
    measured = json.loads(path.read_text())
    pairs = sum(measured["pairs"].values())
    assert (pairs, measured["protocol"]["pairs"]) == (QUERIES * GALLERY, "queries x gallery")
    points = verification_file.operating_points(run, Embedder.load(run).about["weights"])
    assert points == measured["operating_points"]
    assert [point["far"] for point in points or []] == [0.1]
    assert verification_file.operating_points(run, "of other weights") is None


def test_files_score_as_the_run_does(run, tmp_path, capsys):
    evaluate.main(["--run", str(run), "--checkpoint", "latest"])
    title, *card = capsys.readouterr().out.splitlines()
    recall_at_1, recall_at_2, nmi = scores(run)[-1]
    assert f"R@1 {recall_at_1:.2f}  R@2 {recall_at_2:.2f}  NMI {nmi:.2f}" in title
    assert any(re.match(r"queries +10 of 2 classes", line) for line in card)
    assert any(re.match(r"gallery +21 others, of 3 classes", line) for line in card)
    assert any(re.match(r"clusters +2 of the queries", line) for line in card)

    queries = tmp_path / "queries.npz"
    embed.main(["--run", str(run), "--checkpoint", "latest", "--split", "test", "--output", str(queries)])
    _, first, then = capsys.readouterr().out.splitlines()
    embed.main(first.split("proxynca_jax.embed ")[1].split())
    gallery = tmp_path / "queries-gallery.npz"
    assert f"--gallery {gallery}" in capsys.readouterr().out
    evaluate.main(then.split("proxynca_jax.evaluate ")[1].split())
    assert capsys.readouterr().out.splitlines()[1:] == card

    (vectors, labels), (others, other_labels) = read_embeddings(queries), read_embeddings(gallery)
    assert (len(labels), len(other_labels)) == (QUERIES, GALLERY)
    nearest = other_labels[np.argsort(-vectors @ others.T, axis=1)]
    found = [100 * np.mean([label in row[:k] for label, row in zip(labels, nearest, strict=True)]) for k in (1, 2)]
    assert found == pytest.approx([recall_at_1, recall_at_2])
    assert found == [50, 50]
    assert nmi == 100  # the queries alone: they cluster without a fault


@pytest.mark.parametrize(("place", "decoded"), [(DEVICE, 1), (HOST, 1), (CACHE, 1), (NOWHERE, 2)])
def test_queries_and_gallery_are_kept_alike_and_score_the_same(root, run, tmp_path, monkeypatch, place, decoded):
    names = []

    def decode_and_note(image, name):
        if isinstance(image, bytes):  # the cache contains arrays
            names.append(name)
        return decode(image, name)

    monkeypatch.setattr(transforms, "decode", decode_and_note)
    monkeypatch.setattr(job, "choose_place", lambda *_: (place, place))
    config = config_of(root)
    config.data.cache = str(tmp_path / "cache") if place == CACHE else ""
    train.train(config, tmp_path / "run")
    assert scores(tmp_path / "run") == scores(run)
    counts = collections.Counter(names)
    splits = load_dataset(config.data).evaluation.splits()
    assert [counts[name] for split in splits for name in split.names] == [decoded] * (QUERIES + GALLERY)
    if place == CACHE:
        assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_place_has_room_for_queries_and_gallery(root, monkeypatch):
    evaluation, config = load_dataset(config_of(root).data).evaluation, config_of(root)
    needed = (12 + 24) * 32 * 32 * 3  # bytes, with padding
    for free, place in (2 * needed, HOST), (2 * needed - 1, NOWHERE):
        monkeypatch.setattr(evaluation_images, "free_on_device", lambda: None)
        monkeypatch.setattr(evaluation_images, "free_on_host", lambda free=free: free)
        assert choose_place(evaluation, config)[0] == place


def test_the_validation_protocol_searches_the_gallery_at_the_end(root, run, tmp_path, capsys):
    config = config_of(root)
    config.evaluation.protocol, config.evaluation.validation_fraction = "validation", 0.5
    train.train(config, tmp_path / "run")
    first, *_, last = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert "evaluation 12 images of 2 classes;" in first
    capsys.readouterr()
    evaluate.main(["--run", str(tmp_path / "run")])
    title, *_ = capsys.readouterr().out.splitlines()
    assert last.startswith("test classes, at that epoch")
    assert last[last.index("R@1") :] in title

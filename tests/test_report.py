"""The page of a run: what it finds, what it shows, and the errors of its command."""

import pathlib
import re

import numpy as np
import pytest
import report_runs
from report_runs import SCRIPT

from proxynca_jax.config import EvaluationConfig
from proxynca_jax.data.split import Evaluation
from proxynca_jax.machine import extras
from proxynca_jax.metrics.alignment import alignment, uniformity
from proxynca_jax.metrics.intervals import interval_over_classes
from proxynca_jax.metrics.neighbours import Neighbours, nearest
from proxynca_jax.report.__main__ import main
from proxynca_jax.report.run_page.findings import Findings, class_scores, confusions, find, worst_queries
from proxynca_jax.report.run_page.health import examine
from proxynca_jax.report.run_page.pictures import Pictures
from proxynca_jax.report.run_page.projection import project
from proxynca_jax.report.run_page.read import read_scored, read_trained
from proxynca_jax.runs.log import MetricLog


def unit(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_neighbours_are_exact_leave_the_query_out_and_put_wrong_ones_first():
    found = nearest(unit(0, 90, 10, 0, 200), np.array([0, 0, 1, 1, 0]), count=3)
    assert found.found.tolist()[0] == [3, 2, 1]
    np.testing.assert_allclose(found.distances[0], 1 - np.cos(np.radians([0, 10, 90])), atol=1e-6)
    tied = nearest(unit(0, 40, 40, 40), np.array([0, 0, 1, 0]), count=3)
    assert tied.found[0, 0] == 2  # as `retrieval.ranks` counts


def test_neighbours_in_a_gallery_by_blocks(monkeypatch):
    monkeypatch.setattr("proxynca_jax.metrics.neighbours.BLOCK_BYTES", 40)
    rng = np.random.default_rng(0)
    queries, gallery = (unit(*rng.uniform(0, 360, count)) for count in (7, 5))
    found = nearest(queries, np.zeros(7, int), count=9, gallery=(gallery, np.arange(5) + 1))
    np.testing.assert_array_equal(found.found, np.argsort(-(queries @ gallery.T), 1))


def test_alignment_and_uniformity_by_hand():
    vectors, labels = unit(0, 90, 180, 270), np.array([0, 0, 1, 1])
    assert alignment(vectors, labels) == pytest.approx(2.0)  # both classes span a right angle
    pairs = [2, 4, 2, 2, 4, 2]  # squared distances
    assert uniformity(vectors) == pytest.approx(np.log(np.mean(np.exp(-2.0 * np.array(pairs)))), abs=1e-6)
    assert uniformity(unit(5, 5)) == pytest.approx(0, abs=1e-6)
    assert np.isnan(alignment(vectors, np.arange(4)))


def test_the_interval_draws_whole_classes():
    labels = np.repeat(np.arange(50), 20)
    by_image = np.random.default_rng(0).permutation(np.repeat([0.0, 1.0], 500))
    by_class = (labels % 2).astype(float)
    narrow, wide = (interval_over_classes(values, labels, seed=0) for values in (by_image, by_class))
    assert narrow[0] < 0.5 < narrow[1]
    # Of 50 classes that are all right or all wrong, the standard error is that of 50 draws.
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * 0.5 / 50**0.5, rel=0.1)
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_the_worst_query_of_each_class_comes_first():
    labels = np.array([0, 0, 0, 1, 1, 2])
    neighbours = Neighbours(np.zeros((6, 1), np.int64), np.zeros((6, 1), np.float32))
    found = Findings(np.array([9, 8, 0, 2, 7, -1], np.int32), np.ones(6, np.float32), neighbours)
    assert worst_queries(found, labels, 10) == [0, 4, 1, 3]
    assert worst_queries(found, labels, 3) == [0, 4, 1]


def test_pca_keeps_what_is_in_a_plane():
    rng = np.random.default_rng(0)
    flat = (rng.standard_normal((30, 2)) @ rng.standard_normal((2, 6))).astype(np.float32)
    points, text = project(flat, "pca", seed=0)
    assert "100%" in text
    distances = [np.linalg.norm(rows[:, None] - rows, axis=-1) for rows in (points, flat)]
    np.testing.assert_allclose(*distances, atol=1e-4)
    assert project(flat[:, :1], "pca", seed=0)[0].shape == (30, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two epochs, and one that was not trained."""
    folder = tmp_path_factory.mktemp("report")
    root = report_runs.draw_images(folder)
    report_runs.train_tiny(root, folder / "first")
    report_runs.train_tiny(root, folder / "second", seed=1, epochs=0)
    return folder


@pytest.fixture(scope="module")
def page(runs: pathlib.Path) -> str:
    main([str(runs / "first")])
    return (runs / "first" / "report.html").read_text()


def test_the_page_says_what_was_trained_on_what_and_how_good_it_is(runs, page):
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "trained with the loss proxy_nca" in text
    assert "30 images of 5 classes of the data set folder" in text
    assert "tested on 30 images of 5 other classes" in text
    record = max(MetricLog(runs / "first").records(), key=lambda record: record["recall_at_1"])
    assert f"{record['recall_at_1']:.1f} % Recall@1" in text
    assert f"{record['nmi']:.1f} %" in text
    assert "95 % interval" in text
    assert "scores are optimistic" in text
    assert f"proxynca train --config {runs / 'first'}/config.py" in text


def test_the_page_escapes_names_and_loads_nothing(page):
    assert SCRIPT not in page
    assert "&lt;script&gt;document.title" in page
    page = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+""", page) == []


def labels_of_nearest(scored, found) -> np.ndarray:
    return scored.searched.labels[found.neighbours.found[:, 0]]


def test_findings_agree_with_the_log(runs):
    scored = read_scored(runs / "first", "best")
    found = find(scored)
    record = scored.record()
    assert record is not None
    assert 100 * found.right.mean() == pytest.approx(record["recall_at_1"])
    classes = class_scores(scored, found)
    assert np.mean([score.recall_at_1 for score in classes]) == pytest.approx(record["recall_at_1"])
    own = labels_of_nearest(scored, found) == scored.evaluation.queries.labels
    np.testing.assert_array_equal(own, found.right)  # though the images hardly differ
    pairs = confusions(scored, found, 100)
    assert sum(pair.times for pair in pairs) == found.wrong.sum()
    assert found.wrong.sum() > 0
    labels = scored.evaluation.queries.labels
    for pair in pairs:
        for query in pair.queries:
            assert {labels[query], labels[found.neighbours.found[query, 0]]} == {pair.one, pair.other}


def test_health_measures_proxies_duplicates_and_the_clock(runs):
    scored = read_scored(runs / "first", "best")
    trained = read_trained(scored)
    assert trained.proxies is not None
    labels, names = scored.train.labels, scored.train.class_names
    means = np.stack([trained.embeddings[labels == label].mean(0) for label in range(len(names))])
    cosines = (trained.proxies * means).sum(1) / np.linalg.norm(means, axis=1)
    health = examine(scored, trained)
    facts = {fact.name: fact for fact in health.facts}
    assert facts["angle of proxy and class mean"].value.startswith(f"{np.median(np.degrees(np.arccos(cosines))):.0f}°")
    assert health.far_proxies[0][0] == names[int(cosines.argmin())]
    assert facts["test images that are training images"].value == "0 of 30"
    assert "waiting for data" in facts
    assert facts["MFU"].value == "not known" or facts["MFU"].value.endswith("%")
    digests = scored.train.digests
    assert digests is not None
    assert scored.evaluation.queries.digests is not None
    scored.evaluation.queries.digests[4] = digests[7]
    health = examine(scored, trained)
    assert (health.twins[0].query, health.twins[0].train, health.twins[0].same_content) == (4, 7, True)
    assert next(fact for fact in health.facts if "are training images" in fact.name).bad


@pytest.mark.parametrize(
    ("devices", "peak", "value", "meaning"),
    [
        ("8 × NVIDIA H100", 1e12, "not known", "It was trained on 8 × NVIDIA H100"),
        (None, 1.0, "not known", "More than 100 %"),
        (None, 1e15, "0%", "the share of the device's peak"),
    ],
)
def test_mfu_is_said_only_if_it_is_known(runs, monkeypatch, devices, peak, value, meaning):
    monkeypatch.setattr("proxynca_jax.report.run_page.health.peak_flops", lambda _: (peak, "measured"))
    scored = read_scored(runs / "first", "best")
    if devices:
        for record in scored.records:
            record["devices"] = devices
    mfu = next(fact for fact in examine(scored, read_trained(scored)).facts if fact.name == "MFU")
    assert mfu.value == value
    assert meaning in mfu.meaning


def test_two_runs_show_the_queries_that_differ(runs):
    main([str(runs / "first"), str(runs / "second"), "-o", str(runs / "both.html")])
    page = (runs / "both.html").read_text()
    right = [find(read_scored(runs / name, "best")).right for name in ("first", "second")]
    only = [int((one & ~other).sum()) for one, other in (right, right[::-1])]
    assert sum(only) > 0
    assert [page.count(f'data-outcome="{name}"') for name in ("first", "second")] == only
    assert [row for row in re.findall(r"<td>(seed|\w+\.\w+)</td>", page)] == ["seed", "optim.epochs"]


def test_two_runs_of_other_images_are_an_error(runs, tmp_path):
    root = report_runs.draw_images(tmp_path)
    (root / SCRIPT / "0.jpg").write_bytes((root / SCRIPT / "2.jpg").read_bytes()[:-2] + b"\xff\xd9 ")
    report_runs.train_tiny(root, tmp_path / "third", epochs=0)
    with pytest.raises(SystemExit, match=r"of which 29 are the same.*need the same evaluation images"):
        main([str(runs / "first"), str(tmp_path / "third")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["/nowhere"], "/nowhere is not the folder of a run"), (["/nowhere", "-o", "a.pdf"], r"must end in \.html")],
)
def test_mistakes_are_one_clear_error(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "bokeh" else name)
    with pytest.raises(SystemExit, match=r"needs bokeh: pip install 'proxynca_jax\[report\]'"):
        main(["/nowhere"])


def test_pictures_stop_when_they_are_full(runs, monkeypatch):
    split = read_scored(runs / "first", "best").train
    pictures = Pictures()
    assert pictures.key("train", split, 0) == pictures.key("train", split, 0) == "train0"
    assert pictures.uris["train0"].startswith("data:image/jpeg;base64,")
    monkeypatch.setattr("proxynca_jax.report.run_page.pictures.MOST_BYTES", 10)
    assert pictures.key("train", split, 0) == "train0"
    assert pictures.key("train", split, 1) == ""


def test_the_validation_protocol_is_said_and_its_classes_are_not_trained_on(tmp_path):
    held_out = EvaluationConfig(batch_size=8, kmeans_restarts=1, protocol="validation", validation_fraction=0.4)
    report_runs.train_tiny(report_runs.draw_images(tmp_path), tmp_path / "run", epochs=1, evaluation=held_out)
    main([str(tmp_path / "run")])
    text = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "run" / "report.html").read_text()).split())
    assert "18 images of 3 classes of the data set folder" in text
    assert "chosen on 40% of the training classes, which were held out" in text
    assert "angle of a proxy to the nearest other" in text


def test_queries_may_search_a_gallery(runs, tmp_path, monkeypatch):
    scored = read_scored(runs / "first", "best")
    queries = scored.evaluation.queries
    both = scored._replace(evaluation=Evaluation(queries, queries), gallery=(scored.embeddings, queries.labels))
    monkeypatch.setattr("proxynca_jax.report.run_page.one_run.read_scored", lambda *_: both)
    main([str(runs / "first"), "-o", str(tmp_path / "page.html")])
    text = " ".join(re.sub(r"<[^>]+>", " ", (tmp_path / "page.html").read_text()).split())
    assert "which search a gallery of 30 images" in text
    assert "gallery 30 others, of 5 classes" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ImportWarning", "ignore::DeprecationWarning")  # of umap and numba
def test_the_map_can_be_umap(runs, tmp_path):
    main([str(runs / "first"), "--map", "umap", "-o", str(tmp_path / "page.html")])
    assert "UMAP: near images are near here" in (tmp_path / "page.html").read_text()

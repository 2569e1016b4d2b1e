"""`compare --published`: the data, the table with the run among it, and what differs in the protocols."""

from pathlib import Path

import pytest
from written_runs import flat, shifted, write_run

from proxynca_jax import compare
from proxynca_jax.report.published import DATA_SETS, PROTOCOLS, PUBLISHED
from proxynca_jax.report.reference import REFERENCES
from proxynca_jax.runs.image_list import ListedImage, write_list


@pytest.fixture
def published(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command on a run with these fields. Returns its lines about published results."""

    def run(*options: str, images: list[ListedImage] | None = None, runs: int = 1, **fields: object) -> list[str]:
        tests = flat(5) if fields.get("evaluation.protocol") == "validation" else None
        folders = [write_run(tmp_path / str(seed), shifted(seed), tests, seed=seed, **fields) for seed in range(runs)]
        if images:
            write_list(folders[0], images, {})
        compare.main([*map(str, folders), "--published", *options])
        lines = capsys.readouterr().out.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("published results"))
        return lines[start:]

    return run


def row(lines: list[str], text: str) -> str:
    return next(line for line in lines if text in line)


def test_entries_are_complete_and_plausible():
    assert DATA_SETS == ("cub", "cars", "sop", "in_shop")
    assert len(PUBLISHED) == 32
    for entry in PUBLISHED:
        assert all([entry.method, entry.network, entry.source, entry.protocol, entry.scores])
        for scores in entry.scores.values():
            recalls = [score for name, score in scores.items() if name != "nmi"]
            assert recalls == sorted(recalls)  # R@K grows with K
            assert all(25 < score < 100 for score in scores.values())


def test_the_references_entries_are_those_of_its_curves():
    paper, reference = PUBLISHED[:2]
    for name, known in REFERENCES.items():
        quoted = known.records[known.quoted_epoch + 1]
        assert paper.scores[name] == {key: score for key, score in known.paper.items() if key != "epoch"}
        assert reference.scores[name] == {key: pytest.approx(quoted[key], abs=0.006) for key in reference.scores[name]}


def test_the_run_stands_among_published_results(published):
    lines = published()
    own = next(number for number, line in enumerate(lines) if line.startswith("> this run, BN-Inception 64"))
    assert lines[own].split()[-5:] == ["52.63", "64.64", "75.76", "84.52", "60.64"]
    assert lines[own - 1].startswith("[6] HTL, BN-Inception 512")  # 57.1
    assert lines[own + 1].startswith("[2] ProxyNCA, reference, BN-Inception 64")  # 52.63, rounded from this run's
    assert lines[own + 2].startswith("[1] ProxyNCA, paper, BN-Inception 64")  # 49.21
    assert lines[0].endswith("differs in")


def test_what_differs_is_named(published):
    lines = published()
    assert row(lines, "[2] ProxyNCA, reference").rstrip().endswith("60.64")  # nothing differs
    assert row(lines, "[7] SoftTriple, BN-Inception 512").endswith("  dimensions")
    assert row(lines, "[11] Proxy-Anchor, repository").endswith("  dimensions, notes")
    assert row(lines, "[22] DINO, ").endswith("  network, dimensions, protocol")
    assert row(lines, "[28] OML, triplet").endswith("  network, dimensions not stated")
    text = "\n".join(lines)
    assert "This run: epoch chosen on the test classes." in text
    assert "max pooling, LayerNorm" in text
    assert "tjddus9597/HIER-CVPR23, misc/table.png: epoch chosen on the test classes" in text
    assert "random weights" not in text


def test_a_validation_protocol_differs_from_most(published):
    lines = published(**{"evaluation.protocol": "validation", "model.weights": "", "data.image_size": 128})
    assert row(lines, "[2] ProxyNCA, reference").endswith("  protocol")
    assert row(lines, "[17] ProxyNCA++, abstract").endswith("  network, dimensions, notes")
    text = "\n".join(lines)
    assert f"This run: {PROTOCOLS['validation']}." in text
    assert "started from random weights" in text
    assert "sees images of 128 pixels; the reference's have 227" in text


def test_other_numbers_of_images_are_said(published):
    sides = ["train"] * 3 + ["query"] * 2
    images = [ListedImage(side, side, f"{place}.jpg", str(place)) for place, side in enumerate(sides)]
    text = " ".join(published(images=images))
    assert "3 training and 2 evaluation images, the published data set 5,864 training and 5,924" in text


def test_runs_are_averaged(published):
    assert "53.13" in row(published(runs=2), "> mean of 2 runs, BN-Inception 64")


def test_in_shop_is_named_for_a_table(published):
    lines = published("--reference", "in_shop", **{"data.dataset": "table"})
    assert "96.70" in row(lines, "[31] Unicom, supervised")
    assert not any(line.startswith("[1] ") for line in lines)  # the paper has no figure of In-Shop


def test_nothing_published_is_an_error(tmp_path: Path):
    run = write_run(tmp_path / "run", flat(1, 20), **{"data.dataset": "glyphs"})
    with pytest.raises(SystemExit) as caught:
        compare.main([str(run), "--published"])
    assert "no published results are known for data set 'glyphs'" in str(caught.value.code)
    assert "cub" in str(caught.value.code)

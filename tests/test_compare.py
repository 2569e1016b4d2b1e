"""`proxynca_jax.compare`: the reference's figures, the tables and notes of the report, and the plot."""

import runpy
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from written_runs import ALIKE, flat, shifted, write_run

from proxynca_jax import compare
from proxynca_jax.errors import UserError
from proxynca_jax.report.reference import REFERENCES, other_settings
from proxynca_jax.report.runs import best_epoch, read_runs
from proxynca_jax.report.summary import estimate, median_seconds, summarise
from proxynca_jax.runs.log import Record

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]):
    """Runs the command. Returns its output as lines, and as one line with single spaces to search for sentences."""

    def run(*arguments: object) -> tuple[list[str], str]:
        compare.main([str(argument) for argument in arguments])
        output = capsys.readouterr().out
        return output.splitlines(), " ".join(output.split())

    return run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures that the command saves, instead of writing files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def picture_size(run: Path) -> tuple[int, int]:
    with Image.open(run / "comparison.png") as image:
        return image.size


def curves(figure: Figure) -> list[dict[str, list[float]]]:
    """Returns the y values of each panel's lines by legend label. If a label repeats, the last line counts."""
    return [{str(line.get_label()): list(line.get_ydata()) for line in axes.lines} for axes in figure.axes]


# From the reference's README and the paper: best epoch, its R@1 and NMI, means of the last five epochs, the paper's.
@pytest.mark.parametrize(
    ("name", "epochs", "epoch", "quoted", "last_five", "paper"),
    [
        ("cub", 20, 17, (52.63, 60.64), (51.62, 59.60), (49.21, 59.53)),
        ("cars", 50, 15, (72.19, 62.45), (70.79, 60.77), (73.22, 64.90)),
        ("sop", 50, 16, (74.07, None), (73.22, None), (73.73, None)),
    ],
)
def test_reference_figures_match_readme_and_paper(tmp_path: Path, name, epochs, epoch, quoted, last_five, paper):
    reference = REFERENCES[name]
    assert [record["epoch"] for record in reference.records] == list(range(-1, epochs))
    assert reference.quoted_epoch == epoch
    run = write_run(tmp_path / "run", reference.records, **{"data.dataset": name, "evaluation.nmi": name != "sop"})
    *_, mean = summarise(read_runs([run]), reference)
    for record, (recall, nmi) in (
        (reference.records[epoch + 1], quoted),
        (mean.reference, last_five),
        (mean.ours[0], last_five),
        (reference.paper, paper),
    ):
        assert record["recall_at_1"] == pytest.approx(recall, abs=0.005)
        assert record.get("nmi") == (nmi if nmi is None else pytest.approx(nmi, abs=0.005))


def test_sop_has_a_better_epoch_than_the_one_its_readme_quotes(tmp_path: Path, report):
    assert [best_epoch(REFERENCES[name].records)["epoch"] for name in ("cub", "cars", "sop")] == [17, 15, 44]
    fields = {"data.dataset": "sop", "evaluation.nmi": False}
    words = report(write_run(tmp_path / "run", REFERENCES["sop"].records, **fields))[1]
    assert "quotes epoch 16, R@1 74.07; in its log, R@1 is highest at epoch 44." in words
    assert "sop-scaling_x_1-scaling_p_8-lr_10.log" in words
    assert "scaling_p_12" not in words
    assert "NMI" not in words
    assert picture_size(tmp_path / "run") == (1680, 720)


@pytest.mark.parametrize("name", REFERENCES)
def test_configs_have_the_references_settings(name: str):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    assert other_settings(config, REFERENCES[name]) == []
    config.loss.proxy_scale = 12.0
    assert other_settings(config, REFERENCES[name]) == [
        f"loss.proxy_scale 12.0 (reference {8.0 if name == 'sop' else 3.0})"
    ]


def test_estimate_worked_by_hand():
    # Student's t for 95 % and 2 degrees of freedom is 4.30265; the standard error is 1/√3.
    assert estimate([50.0, 51.0, 52.0]) == pytest.approx((51, 1, 51 - 2.48414, 51 + 2.48414), abs=1e-4)


def test_seconds_are_the_median_of_finished_epochs():
    records = flat(1, 2, 3, 4)
    records[1]["train_seconds"] = 1000.0
    assert median_seconds(records) == 12


def test_one_run_compared_with_the_reference(tmp_path: Path, report):
    run = write_run(tmp_path / "run", flat(10, 40, 54, 41, 42, 43, 44, 45))
    lines, words = report(run)
    table = lines[lines.index("percent                 R@1    R@2    R@4    R@8    NMI") :]
    assert table[1:11] == [
        "best epoch",
        "  this run            54.00  55.00  57.00  61.00  64.00",
        "  reference           52.63  64.64  75.76  84.52  60.64",
        "last epoch",
        "  this run            45.00  46.00  48.00  52.00  55.00",
        "  reference           50.95  63.57  74.16  83.39  58.99",
        "mean of the last 5 epochs",
        "  this run            43.00  44.00  46.00  50.00  53.00",
        "  reference           51.62  64.09  74.91  83.74  59.60",
        "paper (test classes)  49.21  61.90  67.90  72.40  59.53",
    ]
    assert lines[2].split() == ["run", "seed", "epochs", "best", "epoch", "s/epoch"]
    assert lines[3].split() == [str(run), "0", "7", "1", "13.0"]
    assert lines[4].split()[2:] == ["–", "20", "17", "36.4"]
    assert lines[0] == "cub, protocol 'reference': every epoch is scored on the test classes"
    assert "One run gives no confidence interval, so a difference may be due to chance." in words
    assert '"Best epoch" of the reference and of these runs: the one of highest R@1 on the evaluation' in words
    assert "NMI: arithmetic mean of the entropies, best of 10 k-means runs. The reference took the geometric" in words
    assert "K-means implementation: 'scikit-learn'." in words
    assert "The runs do not end at the same epoch" in words
    for absent in "averaged", "Settings that differ", "random weights", "README", "±", "95%":
        assert absent not in words


def test_differences_from_the_reference_are_listed(tmp_path: Path, report):
    fields = {"loss.embedding_scale": 4.0, "model.weights": "", "evaluation.nmi_average": "geometric"}
    words = report(write_run(tmp_path / "run", flat(10, 40, 42, 44), **fields))[1]
    assert "Settings that differ from the reference's: loss.embedding_scale 4.0 (reference 3.0)." in words
    assert "started from random weights, the reference from weights pretrained" in words
    assert "NMI: geometric mean of the entropies" in words
    assert "Fewer than 5 epochs are finished; epochs averaged: 3." in words
    assert "this run 42.00 43.00 45.00 49.00 52.00 reference 51.62" in words


def test_several_seeds_give_an_interval_and_a_note_on_chance(tmp_path: Path, report):
    runs = [write_run(tmp_path / str(seed), shifted(seed - 1), seed=seed) for seed in range(3)]
    lines, words = report(*runs)
    # The means of the last five epochs are the reference's mean - 1, + 0 and + 1, so the interval is ± 2.484.
    assert "3 runs, mean ± sd 51.62 ± 1.00 64.09 ± 1.00 74.91 ± 1.00 83.74 ± 1.00 59.60 ± 1.00" in words
    assert "95% interval 49.14 to 54.10" in words
    assert (
        "The reference's figures for the mean of the last 5 epochs: "
        "R@1 51.62, R@2 64.09, R@4 74.91, R@8 83.74, NMI 59.60 inside. The reference is a single run" in words
    )
    assert "One run" not in words
    assert "The runs do not end at the same epoch" not in words
    assert lines[-1] == str(runs[0] / "comparison.png")
    assert picture_size(runs[0]) == (2520, 720)
    assert not list(tmp_path.glob("[12]/*.png"))


@pytest.mark.parametrize(("by", "side"), [(-2.6, "outside"), (-2.4, "inside"), (2.4, "inside"), (2.6, "outside")])
def test_note_on_chance_changes_at_the_ends_of_the_interval(tmp_path: Path, report, by: float, side: str):
    runs = [write_run(tmp_path / str(seed), shifted(by + seed - 1), seed=seed) for seed in range(3)]
    assert f"R@1 51.62, R@2 64.09, R@4 74.91, R@8 83.74, NMI 59.60 {side}." in report(*runs)[1]


def test_scores_outside_the_interval_are_listed_separately(tmp_path: Path, report):
    runs = []
    for seed in range(2):
        records = [{**record, "nmi": record["nmi"] + 9 + 0.1 * seed} for record in shifted(seed)]
        runs.append(write_run(tmp_path / str(seed), records, seed=seed))
    assert "R@1 51.62, R@2 64.09, R@4 74.91, R@8 83.74 inside; NMI 59.60 outside." in report(*runs)[1]


def test_runs_of_unequal_length(tmp_path: Path, report, drawn: list[Figure]):
    elsewhere = {"seed": 1, "optim.epochs": 30, "data.root": "/elsewhere"}
    runs = [write_run(tmp_path / "0", flat(1, 20, 30, 40)), write_run(tmp_path / "1", flat(3, 24, 32), **elsewhere)]
    words = report(*runs)[1]
    assert "epochs averaged: 3, 2." in words
    assert "2 runs, mean ± sd 29.00 ± 1.41" in words  # means 30 and 28
    assert curves(drawn[0])[1]["mean of 2 runs"] == [2, 22, 31]


def test_validation_protocol_compares_the_test_classes_only(tmp_path: Path, report, drawn: list[Figure]):
    stale, final = flat(0, 33, 44)[1:]
    fields = {"evaluation.protocol": "validation"}
    run = write_run(tmp_path / "run", flat(60, 70, 90, 80), [stale, final], **fields)
    lines, words = report(run)
    table = lines[lines.index("chosen epoch, test classes") :]
    assert [line.split()[:3] for line in table[1:3]] == [["this", "run", "44.00"], ["reference", "52.63", "64.64"]]
    assert table[3] == "last epoch, validation classes"
    assert table[4].split()[:3] == ["this", "run", "80.00"]
    assert table[5] == "mean of the last 5 epochs, validation classes"
    assert table[6].split()[:3] == ["this", "run", "80.00"]
    assert table[7].startswith("paper (test classes)")
    assert "protocol 'validation': every epoch is scored on held-out training classes" in lines[0]
    assert "chosen by recall_at_1 on classes held out of training, 20% of the training classes." in words
    assert '"Best epoch" of the reference: the one of highest R@1 on the evaluation (test) classes.' in words
    loss, recall, _ = curves(drawn[0])
    assert set(loss) == {"this run, validation"}
    assert recall["this run, validation"] == [60, 70, 90, 80]
    assert recall["this run's chosen epoch, test"] == [44]
    assert "reference" not in recall


def test_note_on_chance_is_about_the_chosen_epoch_in_the_validation_protocol(tmp_path: Path, report):
    runs = []
    for seed in range(2):
        test = {**ALIKE[18], "recall_at_1": 52.5 + 0.2 * seed}
        fields = {"seed": seed, "evaluation.protocol": "validation"}
        runs.append(write_run(tmp_path / str(seed), flat(60, 70, 90 + seed), [test], **fields))
    assert "figures for the chosen epoch, test classes: R@1 52.63, R@2" in report(*runs)[1]


def test_report_of_a_data_set_without_reference(tmp_path: Path, report, drawn: list[Figure]):
    fields = {"data.dataset": "glyphs", "evaluation.recall_at": (1, 2)}
    runs = [write_run(tmp_path / str(seed), flat(1, 20 + seed, 30), seed=seed, **fields) for seed in range(2)]
    lines, words = report(*runs)
    assert "percent R@1 R@2 NMI best epoch 2 runs, mean ± sd 30.00 ± 0.00 31.00 ± 0.00 40.00 ± 0.00" in words
    assert "No reference is known for data set 'glyphs'; --reference names one: cub, cars, sop." in words
    assert '"Best epoch" of these runs: the one of highest R@1' in words
    assert "95% interval: Student's t, for the mean of 2 runs." in words
    assert not any(line.strip().startswith(("paper", "reference")) for line in lines)
    assert set(curves(drawn[0])[1]) == {"each run", "mean of 2 runs", "each run's best epoch"}


def test_plot_shows_every_epoch_the_reference_and_the_paper(tmp_path: Path, report, drawn: list[Figure]):
    report(*[write_run(tmp_path / str(seed), shifted(2.0 * seed), seed=seed) for seed in range(2)])
    (figure,) = drawn
    loss, recall, nmi = curves(figure)
    assert loss["reference"] == [record["train_loss"] for record in ALIKE[1:]]
    assert recall["reference"] == [record["recall_at_1"] for record in ALIKE]
    assert recall["mean of 2 runs"] == pytest.approx([record["recall_at_1"] + 1 for record in ALIKE])
    assert recall["each run"] == pytest.approx([record["recall_at_1"] + 2 for record in ALIKE])
    assert recall["paper"] == [49.21, 49.21]
    assert nmi["paper"] == [59.53, 59.53]
    assert nmi["reference's best epoch"] == [60.64]
    assert recall["each run's best epoch"] == pytest.approx([54.633])
    assert [axes.get_ylabel() for axes in figure.axes] == ["Training loss (nats)", "Recall@1 (%)", "NMI (%)"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"Epoch"}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(recall)


def error_of(*arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        compare.main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, str)  # Python prints it and exits with status 1
    return caught.value.code


def test_reference_option_and_the_nearest_name_for_a_typo(tmp_path: Path, report):
    run = write_run(tmp_path / "run", flat(1, 20), **{"data.dataset": "tfds"})
    assert "reference 72.19" in report(run, "--reference", "cars")[1]
    message = error_of(run, "--reference", "car")
    assert message == "error: there is no reference 'car': did you mean 'cars'? Valid names: cars, cub, sop."


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"data.dataset": "cars"}, "data.dataset: 'cub' in"),
        ({"evaluation.protocol": "validation"}, "evaluation.protocol: 'reference' in"),
        ({"optim.learning_rate": 0.1}, "optim.learning_rate: 0.045 in"),
    ],
)
def test_runs_of_different_settings_are_not_averaged(tmp_path: Path, fields: dict, difference: str):
    one = write_run(tmp_path / "one", flat(1, 20))
    other = write_run(tmp_path / "other", flat(1, 20), flat(1), seed=1, **fields)
    assert difference in error_of(one, other)


def test_runs_of_the_same_seed_are_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", flat(1, 20))
    assert "the runs have the seeds [0, 0]" in error_of(run, run)


@pytest.mark.parametrize(
    ("records", "fields", "message"),
    [
        (flat(1), {}, "has no finished epoch yet"),
        ([], {}, "has no finished epoch yet"),
        (flat(1, 20), {"evaluation.protocol": "validation"}, "has not been scored on its test classes yet"),
        (flat(1, 20), {"evaluation.recall_at": (2, 4)}, "has no Recall@1"),
    ],
)
def test_runs_without_the_needed_scores_are_refused(tmp_path: Path, records: list[Record], fields: dict, message: str):
    with pytest.raises(UserError, match=message):
        read_runs([write_run(tmp_path / "run", records, **fields)])


def test_folders_without_a_readable_run_are_refused(tmp_path: Path):
    assert f"{tmp_path} is not the folder of a run" in error_of(tmp_path)
    run = write_run(tmp_path / "run", flat(1, 20))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st\n')
    assert "metrics.jsonl is damaged" in error_of(run)

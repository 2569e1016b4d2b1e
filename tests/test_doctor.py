"""The doctor: one finding for each fault, and none without."""

import dataclasses
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import trees
from PIL import Image

from proxynca_jax import doctor
from proxynca_jax.checks import ERROR, OK, WARNING, Finding, listed, worst
from proxynca_jax.checks import machine as machine_checks
from proxynca_jax.checks.images import check_pixels
from proxynca_jax.checks.near_duplicates import check_near_duplicates
from proxynca_jax.checks.sheet import GAP, LINE, TILE, as_pixels, draw_sheet
from proxynca_jax.data.split import Split
from proxynca_jax.models.backbone import Preprocessing, normalise

# ml_collections reads configuration files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def named(*names: str) -> Split:
    """Images of one class that nobody looks at."""
    images = [np.zeros((1, 1, 3), np.uint8)] * len(names)
    return Split(images, names, np.zeros(len(names), np.int32), ("a",))


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Eight classes of five images."""
    trees.draw_folder(tmp_path / "images", classes=8, images_per_class=5)
    return tmp_path / "images"


def report(root: pathlib.Path, capsys, *options: str, status: int = 0) -> list[str]:
    """The lines of the command."""
    words = ["--config", "photos", f"--config.data.root={root}", "--config.model.backbone=tiny"]
    words += ["--config.model.weights=", "--config.optim.batch_size=8", "--config.data.image_size=32", *options]
    if status:
        with pytest.raises(SystemExit) as stopped:
            doctor.main(words)
        assert stopped.value.code == status
    else:
        doctor.main(words)
    return capsys.readouterr().out.splitlines()


def test_sound_images_have_no_fault(root, tmp_path, capsys):
    lines = report(root, capsys, f"--sheet={tmp_path / 'seen.png'}")
    assert {line.split()[0] for line in lines[:-1]} == {"ok"}
    assert lines[-1].startswith("0 error, 0 warning")
    assert any(line.startswith("ok      train: 20 images of 4 classes, from 5 (class_0") for line in lines)
    with Image.open(tmp_path / "seen.png") as sheet:
        assert sheet.height == GAP + 3 * (TILE + 2 * LINE + GAP)
    assert not (tmp_path / "runs").exists()


def classes(root: pathlib.Path, capsys) -> tuple[list[str], list[str]]:
    """Names of the classes for training and for evaluation."""
    names: dict[str, list[str]] = {"train": [], "query": []}
    for path in sorted(root.iterdir()):
        extra = path / "extra.png"
        Image.new("RGB", (8, 8), "red").save(extra)
        side = "train" if any(line.startswith("ok      train: 21") for line in report(root, capsys)) else "query"
        extra.unlink()
        names[side].append(path.name)
    return names["train"], names["query"]


def test_each_fault_has_its_line(root, capsys):
    trained, evaluated = classes(root, capsys)
    assert len(trained) == len(evaluated) == 4
    for name in (trained[0], evaluated[0]):
        for path in sorted((root / name).iterdir())[1:]:
            path.unlink()
    (root / trained[1] / "damaged.jpg").write_bytes(b"no image")
    (root / evaluated[1] / "damaged.jpg").write_bytes(b"no image either")
    shutil.copyfile(root / trained[1] / "0.jpg", root / evaluated[1] / "leaked.jpg")
    shutil.copyfile(root / trained[2] / "0.jpg", root / trained[3] / "two_labels.jpg")
    shutil.copyfile(root / evaluated[2] / "0.jpg", root / evaluated[2] / "twice.jpg")
    Image.new("RGB", (40, 40), "red").save(root / evaluated[3] / "red.png")
    lines = report(root, capsys, status=1)
    text = "\n".join(lines)
    assert (
        f"warning train: 1 classes have one image, and their proxies are learnt from that image alone: {trained[0]}"
        in text
    )
    assert "warning query: 1 classes have one image, and Recall@K leaves them out as queries" in text
    assert "error   2 images cannot be used; repair or remove them, or set --config.data.on_bad_image=skip:\n  " in text
    assert text.count("cannot decode") == 2
    leaked = f"{root / trained[1] / '0.jpg'} = {root / evaluated[1] / 'leaked.jpg'}"
    assert f"error   1 images are for training and for evaluation; remove one of each: {leaked}" in text
    assert "warning 1 images have two labels; remove the wrong one of each: " in text
    assert "warning 1 images are there twice in their class" in text
    assert f"show nothing but one colour: {root / evaluated[3] / 'red.png'}" in text
    assert lines[-1].startswith("2 error, 5 warning")


def test_wrong_settings_are_errors_and_the_rest_is_still_checked(root, tmp_path, capsys):
    lines = report(
        root, capsys, "--config.optim.batch_size=64", "--config.model.weights=/nowhere.safetensors", status=1
    )
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 2
    assert "64" in errors[0]
    assert "no weights file at /nowhere.safetensors" in errors[1]
    assert any("are free in" in line for line in lines)
    lines = report(tmp_path / "nothing", capsys, status=1)
    assert [line.split()[0] for line in lines[:-1]] == ["ok", "ok", "ok", "ok", "error"]
    assert "is not a directory" in lines[-2]


def test_a_class_without_a_good_image_does_not_hide_the_bad_ones(root, capsys):
    for path in (root / "class_00").iterdir():
        path.write_bytes(b"no image")
    lines = report(root, capsys, status=1)
    text = "\n".join(lines)
    assert "5 of 40 images cannot be used" in text
    assert text.count("cannot decode") == 5


def test_a_full_disk_is_an_error(root, capsys, monkeypatch):
    usage = machine_checks.shutil.disk_usage("/")
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: usage._replace(free=10))
    lines = report(root, capsys, f"--config.data.cache={root / 'cache'}", status=1)
    errors = [line for line in lines if line.startswith("error")]
    assert "a run's states take up to" in errors[0]
    assert "choose another --run" in errors[0]
    assert "decoded images, by the size of 20, take about" in errors[1]


def test_versions_out_of_range_are_named(monkeypatch):
    monkeypatch.setattr(
        machine_checks.importlib.metadata, "requires", lambda _: ["numpy<1", "none-such>=2", "x; extra == 'y'"]
    )
    found = [finding for finding in machine_checks.check_versions() if finding.level != OK]
    assert [finding.level for finding in found] == [WARNING, ERROR]
    assert "must be <1" in found[0].text
    assert "none-such is not installed: pip install 'none-such>=2'" in found[1].text


def test_near_duplicates_are_the_pairs_above_the_limit():
    rng = np.random.default_rng(0)
    trained, evaluated = (rng.standard_normal((count, 16)).astype(np.float32) for count in (7, 5))
    evaluated[3] = trained[2] + 0.1 * evaluated[3]
    trained, evaluated = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (trained, evaluated))
    train, evaluation = (named(*(f"{side}{row}" for row in range(count))) for side, count in (("t", 7), ("e", 5)))
    (found,) = check_near_duplicates(train, trained, evaluation, evaluated, least=0.95)
    assert found.level == WARNING
    assert "e3 ~ t2 (0.9" in found.text
    assert found.text.startswith("1 evaluation images")
    (found,) = check_near_duplicates(train, trained, evaluation, evaluated, least=0.9999)
    assert found.level == OK


def test_dark_images_and_grey_ones_are_told():
    split = named("a", "b")
    dark = np.random.default_rng(0).integers(0, 9, (2, 8, 8, 3)).astype(np.uint8)
    assert worst(list(check_pixels(dark, split, [0, 1]))) == WARNING
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)), 3, 3).astype(np.uint8)
    assert any("100.0% of them are grey" in finding.text for finding in check_pixels(grey, split, [0, 1]))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_sheet_shows_what_the_network_sees(order):
    preprocessing = Preprocessing(
        channel_order=order, scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), image_size=8, resize_size=8
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    seen = as_pixels(np.asarray(normalise(jnp.asarray(pixels), preprocessing)), preprocessing)
    np.testing.assert_array_equal(seen, pixels)
    other = dataclasses.replace(preprocessing, channel_order="BGR" if order == "RGB" else "RGB")
    assert not np.array_equal(as_pixels(np.asarray(normalise(jnp.asarray(pixels), other)), preprocessing), pixels)
    assert draw_sheet([("heading", pixels, ["a\x1b", "a long name of a class"])], preprocessing).startswith(b"\x89PNG")


def test_lists_are_short_and_the_worst_level_counts():
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
    assert worst([]) == OK
    assert worst([Finding(WARNING, ""), Finding(ERROR, ""), Finding(OK, "")]) == ERROR

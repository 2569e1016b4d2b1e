"""Splits from every layout on disk, and what each broken one says."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import trees

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import DATASETS, DataSetSource, load_dataset
from proxynca_jax.data.datasets.class_folders import read_class_folders
from proxynca_jax.data.datasets.published import Counts
from proxynca_jax.data.image_files import IMAGE_SUFFIXES
from proxynca_jax.data.split import DataSet, Evaluation, Split
from proxynca_jax.errors import UserError

CLASSES, IMAGES_PER_CLASS = 6, 3


def draw_cars_as_kaggle_does(root: Path, classes: int, images_per_class: int) -> None:
    trees.draw_cars_devkit(root, classes, images_per_class)
    for folder in "cars_train", "cars_test":
        (root / folder).rename(root / "images")
        (root / folder).mkdir()
        (root / "images").rename(root / folder / folder)


# data.dataset, how to draw it, and where it is drawn under data.root
LAYOUTS = {
    "cub": ("cub", trees.draw_cub, "."),
    "cub, parent folder": ("cub", trees.draw_cub, "CUB_200_2011"),
    "cars": ("cars", trees.draw_cars, "."),
    "cars, devkit": ("cars", trees.draw_cars_devkit, "."),
    "cars, parent folder": ("cars", trees.draw_cars_devkit, "stanford_cars"),
    "cars, nested folders": ("cars", draw_cars_as_kaggle_does, "."),
    "sop": ("sop", trees.draw_sop, "."),
    "sop, parent folder": ("sop", trees.draw_sop, "Stanford_Online_Products"),
}


def load(dataset: str, root: Path, **fields) -> tuple[Split, Split]:
    """The training images and the queries of a data set without a gallery."""
    found = load_dataset(DataConfig(dataset=dataset, root=str(root), **fields))
    assert found.evaluation.gallery is None
    return found.train, found.evaluation.queries


def check_halves(train: Split, evaluation: Split) -> None:
    """Checks that the drawn tree's first three classes train, the last three evaluate, and nothing is lost."""
    for split, first_class in (train, 0), (evaluation, CLASSES // 2):
        assert len(split.images) == len(split.names) == len(split.labels) == CLASSES // 2 * IMAGES_PER_CLASS
        assert split.labels.dtype == np.int32
        assert np.bincount(split.labels).tolist() == [IMAGES_PER_CLASS] * (CLASSES // 2)
        assert trees.classes_drawn(split.images, CLASSES) == (split.labels + first_class).tolist()
        assert len(split.class_names) == CLASSES // 2
    assert len({*train.class_names, *evaluation.class_names}) == CLASSES
    assert len({*train.names, *evaluation.names}) == CLASSES * IMAGES_PER_CLASS


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the drawn trees' counts the published ones, so that any warning fails the test."""
    half = CLASSES // 2 * IMAGES_PER_CLASS
    for name in ("cub", "cars", "sop"):
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], published=Counts(half, half)))


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_half_of_the_classes_trains_and_the_rest_evaluates(tmp_path: Path, layout: str):
    dataset, draw, folder = LAYOUTS[layout]
    draw(tmp_path / folder, classes=CLASSES, images_per_class=IMAGES_PER_CLASS)
    check_halves(*load(dataset, tmp_path))


@pytest.mark.usefixtures("published")
def test_names_are_those_on_disk(tmp_path: Path):
    trees.draw_cub(tmp_path / "cub", CLASSES, IMAGES_PER_CLASS)
    train, evaluation = load("cub", tmp_path / "cub")
    assert train.class_names == ("001.Bird_1", "002.Bird_2", "003.Bird_3")
    assert evaluation.names[0] == str(tmp_path / "cub/images/004.Bird_4/Bird_4_0001.jpg")

    for draw in trees.draw_cars, trees.draw_cars_devkit:
        draw(tmp_path / draw.__name__, CLASSES, IMAGES_PER_CLASS)
        _, evaluation = load("cars", tmp_path / draw.__name__)
        assert evaluation.class_names == ("Maker Model 4 2003", "Maker Model 5 2004", "Maker Model 6 2005")

    trees.draw_sop(tmp_path / "sop", CLASSES, IMAGES_PER_CLASS)
    _, evaluation = load("sop", tmp_path / "sop")
    assert evaluation.class_names == ("4", "5", "6")


@pytest.mark.usefixtures("published")
def test_labels_of_cars_test_images_may_lie_in_devkit(tmp_path: Path):
    labels = "devkit/cars_test_annos_withlabels.mat"
    trees.draw_cars_devkit(tmp_path, CLASSES, IMAGES_PER_CLASS, test_labels=labels)
    check_halves(*load("cars", tmp_path))


@pytest.mark.usefixtures("published")
def test_what_is_no_image_or_hidden_is_skipped(tmp_path: Path):
    trees.draw_cub(tmp_path, CLASSES, IMAGES_PER_CLASS)
    trees.write(tmp_path / "images/001.Bird_1/._Bird_1_0001.jpg", b"macOS")
    trees.write(tmp_path / "images/001.Bird_1/Thumbs.db", b"Windows")
    trees.write(tmp_path / "images/.ipynb_checkpoints/Bird_1_0001.jpg", b"Jupyter")
    trees.write(tmp_path / "images/README.jpg", b"beside the class folders")
    check_halves(*load("cub", tmp_path))


@pytest.mark.parametrize(("dataset", "published"), [("cub", ("5,864", "5,924")), ("sop", ("59,551", "60,502"))])
def test_counts_that_differ_from_the_published_ones_are_warned_of(tmp_path: Path, dataset: str, published):
    LAYOUTS[dataset][1](tmp_path, classes=4)
    train, evaluation = published
    told = f"found 6 training and 6 evaluation images, but {train} training and {evaluation} evaluation images are"
    with pytest.warns(UserWarning, match=told):
        load(dataset, tmp_path)


def test_images_are_read_when_indexed(tmp_path: Path):
    trees.draw_folder(tmp_path, classes=4)
    train, _ = load("folder", tmp_path)
    assert train.images[1] == Path(train.names[1]).read_bytes()
    Path(train.names[1]).write_bytes(b"changed since")
    assert train.images[1] == b"changed since"
    Path(train.names[1]).unlink()
    with pytest.raises(UserError, match=f"cannot read the image {train.names[1]}: No such file"):
        train.images[1]


def test_folder_classes_are_divided_by_fraction_and_seed(tmp_path: Path):
    trees.draw_folder(tmp_path, classes=10, images_per_class=2)
    train, evaluation = load("folder", tmp_path, eval_fraction=0.3)
    assert (len(train.class_names), len(evaluation.class_names)) == (7, 3)
    assert sorted(train.class_names + evaluation.class_names) == [f"class_{label:02d}" for label in range(10)]
    for split in train, evaluation:
        assert list(split.class_names) == sorted(split.class_names)
        named = [int(split.class_names[label].removeprefix("class_")) for label in split.labels]
        assert trees.classes_drawn(split.images, 10) == named == sorted(list(set(named)) * 2)

    again = load("folder", tmp_path, eval_fraction=0.3)[1].class_names
    other_seeds = {load("folder", tmp_path, eval_fraction=0.3, split_seed=seed)[1].class_names for seed in range(1, 6)}
    assert again == evaluation.class_names
    assert len(other_seeds) > 1


def test_folder_evaluation_classes_are_listed_in_a_file(tmp_path: Path):
    trees.draw_folder(tmp_path / "images", classes=5)
    listed = tmp_path / "evaluate.txt"
    listed.write_text("class_03\n\n  class_01 \n")
    train, evaluation = load("folder", tmp_path / "images", eval_classes_file=str(listed))
    assert evaluation.class_names == ("class_01", "class_03")
    assert train.class_names == ("class_00", "class_02", "class_04")

    listed.write_text("class_03\nclass_011\n")
    with pytest.raises(UserError, match=r"names 1 classes .* 'class_011': did you mean 'class_01'\?"):
        load("folder", tmp_path / "images", eval_classes_file=str(listed))
    with pytest.raises(UserError, match=r"eval_classes_file cannot be read: .*absent\.txt"):
        load("folder", tmp_path / "images", eval_classes_file=str(tmp_path / "absent.txt"))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_folder_takes_every_image_suffix(tmp_path: Path, suffix: str):
    trees.draw_folder(tmp_path, classes=4, images_per_class=1)
    trees.write(tmp_path / f"class_00/more{suffix.upper()}", b"")
    train, evaluation = load("folder", tmp_path)
    assert len(train.images) + len(evaluation.images) == 5


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(UserError, match=r"'cubs'.*did you mean 'cub'\? Valid names: cars, cub, folder"):
        load("cubs", Path())


@pytest.mark.parametrize("dataset", ["cub", "cars", "sop", "folder", "tfds"])
def test_missing_root_says_what_belongs_there(tmp_path: Path, dataset: str):
    with pytest.raises(UserError, match=rf"data\.root is empty.*--config\.data\.root=/path/to/{dataset}") as empty:
        load_dataset(DataConfig(dataset=dataset))
    with pytest.raises(UserError, match="absent', which is not a directory") as absent:
        load(dataset, tmp_path / "absent")
    for error in empty, absent:
        assert DATASETS[dataset].layout in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("cub", "images contains no class folders"),
        ("cars", "contains neither car_ims/ nor cars_train/"),
        ("sop", "Ebay_train.txt is missing"),
        ("folder", "contains no class folders"),
        ("tfds", r"contain no dataset_info\.json"),
    ],
)
def test_empty_root_says_what_belongs_there(tmp_path: Path, dataset: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        load(dataset, tmp_path)
    assert DATASETS[dataset].layout in str(error.value)


@pytest.mark.parametrize(
    ("draw", "file"),
    [
        (trees.draw_cars, "cars_annos.mat"),
        (trees.draw_cars_devkit, "devkit/cars_train_annos.mat"),
        (trees.draw_cars_devkit, "devkit/cars_meta.mat"),
    ],
)
@pytest.mark.parametrize("content", [None, b"<html>404 Not Found</html>", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_missing_or_damaged_cars_annotations(tmp_path: Path, draw, file: str, content: bytes | None):
    draw(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file} {'is missing' if content is None else 'cannot be read'}"):
        load("cars", tmp_path)


def test_cars_test_annotations_without_classes_are_not_enough(tmp_path: Path):
    trees.draw_cars_devkit(tmp_path, test_labels="")
    with pytest.raises(UserError, match=r"cars_test_annos_withlabels\.mat is missing"):
        load("cars", tmp_path)
    unlabelled = (tmp_path / "devkit/cars_test_annos.mat").read_bytes()
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(unlabelled)
    with pytest.raises(UserError, match=r"cars_test_annos_withlabels\.mat cannot be read: no field of name class"):
        load("cars", tmp_path)


@pytest.mark.parametrize("layout", ["cars", "cars, devkit", "sop"])
def test_annotated_images_that_are_not_on_disk(tmp_path: Path, layout: str):
    dataset, draw, _ = LAYOUTS[layout]
    draw(tmp_path, classes=4, images_per_class=3)
    images = sorted(path for path in tmp_path.rglob("*") if path.suffix.lower() == ".jpg")
    for image in images[4:6]:
        image.unlink()
    with pytest.raises(UserError, match="2 of 12 annotated images are missing") as error:
        load(dataset, tmp_path)
    assert str(images[4]) in str(error.value)


def test_damaged_sop_lists(tmp_path: Path):
    trees.draw_sop(tmp_path)
    (tmp_path / "Ebay_test.txt").write_text("image_id class_id super_class_id path\n7 3 1\n")
    with pytest.raises(UserError, match=r"Ebay_test\.txt, line 2: found '7 3 1', required is"):
        load("sop", tmp_path)
    (tmp_path / "Ebay_test.txt").write_bytes((tmp_path / "Ebay_train.txt").read_bytes())
    with pytest.raises(UserError, match="share 2 classes, the first is 1"):
        load("sop", tmp_path)
    (tmp_path / "Ebay_test.txt").unlink()
    with pytest.raises(UserError, match=r"Ebay_test\.txt is missing"):
        load("sop", tmp_path)


def test_class_without_images(tmp_path: Path):
    trees.draw_folder(tmp_path / "folder", classes=4)
    (tmp_path / "folder/class_xy").mkdir()
    with pytest.raises(UserError, match="1 of 5 classes have no image, the first is 'class_xy'"):
        load("folder", tmp_path / "folder")

    trees.draw_cars(tmp_path / "cars", classes=4)
    content = scipy.io.loadmat(tmp_path / "cars/cars_annos.mat")
    in_last_class = {"annotations": content["annotations"][:, :-3], "class_names": content["class_names"]}
    scipy.io.savemat(tmp_path / "cars/cars_annos.mat", in_last_class)
    with pytest.raises(UserError, match="1 of 4 classes have no image, the first is 'Maker Model 4 2003'"):
        load("cars", tmp_path / "cars")


@pytest.mark.parametrize(("fraction", "message"), [(0.1, "0 of 4 .* for evaluation"), (0.75, "1 of 4 .* for training")])
def test_each_side_needs_two_classes(tmp_path: Path, fraction: float, message: str):
    trees.draw_folder(tmp_path, classes=4)
    with pytest.raises(UserError, match=message):
        load("folder", tmp_path, eval_fraction=fraction)


def test_a_class_folder_too_high_is_named(tmp_path: Path):
    trees.draw_folder(tmp_path / "photographs", classes=4)
    with pytest.raises(UserError, match="There is one class, 'photographs'; training and evaluation need at least 2"):
        load("folder", tmp_path)


def test_images_below_a_class_folder_are_its_own_and_other_things_are_no_images(tmp_path: Path):
    trees.draw_folder(tmp_path, classes=4)
    names = [{name for split in load("folder", tmp_path) for name in split.names}]
    classes = sorted(folder for folder in tmp_path.iterdir() if folder.is_dir())
    image = next(classes[0].iterdir())
    for name in ("2025/summer/one.JFIF", ".thumbnails/two.png", "2025/._three.png"):
        (classes[0] / name).parent.mkdir(parents=True, exist_ok=True)
        (classes[0] / name).write_bytes(image.read_bytes())
    os.mkfifo(classes[1] / "pipe.png")
    (classes[1] / "folder.png").mkdir()
    (classes[1] / "link.png").symlink_to("nothing.png")
    names.append({name for split in load("folder", tmp_path) for name in split.names})
    assert names[1] == names[0] | {str(classes[0] / "2025/summer/one.JFIF")}


def test_glyphs_need_no_root_and_are_divided_by_fraction():
    train, evaluation = load("glyphs", Path(), eval_fraction=0.25)
    assert len(train.class_names) == pytest.approx(3 * len(evaluation.class_names), abs=3)
    assert not {*train.class_names} & {*evaluation.class_names}


def read_shop(root: Path, _: DataConfig) -> DataSet:
    """Queries and gallery in folders of their own; the gallery has a class more than the queries."""
    whole = read_class_folders(root / "gallery", "shop")
    queries = read_class_folders(root / "queries", "shop")
    same_classes = dataclasses.replace(queries, class_names=whole.class_names)
    return DataSet(read_class_folders(root / "train", "shop"), Evaluation(same_classes, whole))


def test_a_data_set_with_a_gallery_is_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for folder, classes in ("train", 2), ("queries", 2), ("gallery", 3):
        trees.draw_folder(tmp_path / "shop" / folder, classes)
    row = DataSetSource(read_shop, "A shop.", archive_folder="shop", published=Counts(6, 6, gallery=10))
    monkeypatch.setitem(DATASETS, "shop", row)
    with pytest.warns(UserWarning, match="found 6 training, 6 query and 9 gallery images, but .* 10 gallery images"):
        dataset = load_dataset(DataConfig(dataset="shop", root=str(tmp_path)))
    queries, gallery = dataset.evaluation.splits()
    assert queries.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert gallery.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(UserError, match=r"'shop' needs its directory.*A shop\."):
        load_dataset(DataConfig(dataset="shop"))


def test_queries_and_gallery_number_the_same_classes(tmp_path: Path):
    trees.draw_folder(tmp_path / "queries", classes=2)
    trees.draw_folder(tmp_path / "gallery", classes=3)
    with pytest.raises(ValueError, match="different class_names"):
        Evaluation(*(read_class_folders(tmp_path / name, "") for name in ("queries", "gallery")))

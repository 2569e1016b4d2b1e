"""The data set `table`: splits from both formats, boxes on every way to the network, and the line of each fault."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trees
from PIL import Image

from proxynca_jax import embed, neighbours, train
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.data.cache import cached, cached_crops
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.pipeline import crop_batches, evaluation_batches, training_batches
from proxynca_jax.data.resident import upload
from proxynca_jax.data.split import DataSet, Split
from proxynca_jax.data.transforms import decode
from proxynca_jax.errors import UserError
from proxynca_jax.runs.embedding_files import read_embeddings
from proxynca_jax.sharding import Layout

HEIGHT, WIDTH = trees.SIZE
IMAGES = 8
BOTH_FORMATS = pytest.mark.parametrize("suffix", [".csv", ".parquet"])
Columns = dict[str, list]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the images 0.png to 7.png."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def write_table(path: pathlib.Path, columns: Columns) -> pathlib.Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def load(path: pathlib.Path, **fields) -> DataSet:
    return load_dataset(DataConfig(dataset="table", root=str(path), **fields))


def numbers(split: Split) -> list[int]:
    """The numbers of the images of `folder`, by their names."""
    return [int(pathlib.Path(name).stem) for name in split.names]


def columns_of(labels: str, **more: list) -> Columns:
    """A table of the images of `folder` with these labels, one letter each."""
    return {"path": [f"{number}.png" for number in range(len(labels))], "label": list(labels)} | more


@BOTH_FORMATS
def test_without_splits_classes_are_chosen_as_of_a_folder(folder, suffix):
    path = write_table(folder / f"table{suffix}", columns_of("dbcadbca", source=["camera"] * IMAGES))
    dataset = load(path, split_seed=1)
    queries = dataset.evaluation.queries
    assert dataset.evaluation.gallery is None
    assert queries.boxes is None
    for split in dataset.train, queries:
        assert ["dbcadbca"[number] for number in numbers(split)] == [split.class_names[label] for label in split.labels]
        assert split.images[0] == (folder / f"{numbers(split)[0]}.png").read_bytes()
    assert sorted(dataset.train.class_names + queries.class_names) == list("abcd")

    trees.draw_folder(folder / "tree", classes=4)
    (folder / "listed.txt").write_text("a\nc\n")
    like = load_dataset(DataConfig(dataset="folder", root=str(folder / "tree"), split_seed=1))
    assert ["abcd".index(name) for name in queries.class_names] == [
        int(name.removeprefix("class_")) for name in like.evaluation.queries.class_names
    ]
    listed = load(path, eval_classes_file=str(folder / "listed.txt")).evaluation.queries
    assert listed.class_names == ("a", "c")
    (folder / "listed.txt").write_text("aa\n")
    with pytest.raises(UserError, match=rf"names 1 classes that are not in .*table{suffix}, the first is 'aa'"):
        load(path, eval_classes_file=str(folder / "listed.txt"))


@BOTH_FORMATS
def test_splits_are_those_of_the_column(folder, suffix):
    roles = ["gallery", "train", "query", "train", "gallery", "query", "train", "gallery"]
    dataset = load(write_table(folder / f"table{suffix}", columns_of("aybxcbya", split=roles)))
    queries, gallery = dataset.evaluation.splits()
    assert (numbers(dataset.train), numbers(queries), numbers(gallery)) == ([1, 3, 6], [2, 5], [0, 4, 7])
    assert dataset.train.class_names == ("x", "y")
    assert dataset.train.labels.tolist() == [1, 0, 1]
    assert queries.class_names == gallery.class_names == ("a", "b", "c")
    assert (queries.labels.tolist(), gallery.labels.tolist()) == ([1, 1], [0, 2, 0])
    assert gallery.images[1] == (folder / "4.png").read_bytes()

    roles = ["query" if role == "gallery" else role for role in roles]
    dataset = load(write_table(folder / f"table{suffix}", columns_of("aybxcbya", split=roles)))
    assert dataset.evaluation.gallery is None
    assert numbers(dataset.evaluation.queries) == [0, 2, 4, 5, 7]


def test_labels_are_text_and_paths_may_be_absolute(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    columns = columns_of("00000000", split=["train"] * 4 + ["query"] * 4)
    columns["label"] = [1, 2, 10, 2, 3, 3, 4, 4]
    columns["path"][:2] = [str(folder / "0.png"), "~/1.png"]
    pq.write_table(pa.table(columns), folder / "table.parquet")
    train_split = load(pathlib.Path("~/table.parquet")).train
    assert train_split.class_names == ("1", "10", "2")
    assert train_split.labels.tolist() == [0, 2, 1, 2]
    assert train_split.names == [str(folder / f"{number}.png") for number in range(4)]

    columns["label"] = ["1", "01", "a", "a ", "b", "b", " c", "c"]  # spaces around a value are dropped
    assert load(write_table(folder / "table.csv", columns)).train.class_names == ("01", "1", "a")


def test_files_as_spreadsheets_and_pandas_write_them(folder):
    lines = ["\ufeffpath, label,x,y,w,h,remark", '0.png,"a, b",1,2,30,40,"two\r\nlines"', "", "1.png,c,,,,,"]
    lines += [f"{number}.png,{label},5.0,6,7,8," for number, label in ((2, "d"), (3, "d"), (6, "e"), (7, "e"))]
    (folder / "table.csv").write_bytes("\r\n".join(lines).encode())
    dataset = load(folder / "table.csv", split_seed=2)
    boxes = {
        number: box.tolist()
        for split in (dataset.train, dataset.evaluation.queries)
        for number, box in zip(numbers(split), split.boxes, strict=True)
    }
    assert boxes == {0: [2, 1, 40, 30], 1: [0, 0, 0, 0]} | {number: [6, 5, 8, 7] for number in (2, 3, 6, 7)}

    nan = float("nan")  # what pandas makes of integers with an empty cell
    columns = columns_of("aabbccdd", **{name: [3.0, *[nan] * 7] for name in "xywh"})
    columns["label"] = pa.array(columns["label"]).dictionary_encode()
    dataset = load(write_table(folder / "table.parquet", columns))
    boxes = np.concatenate([dataset.train.boxes, dataset.evaluation.queries.boxes])
    assert sorted(boxes.tolist()) == [[0, 0, 0, 0]] * 7 + [[3, 3, 3, 3]]


# Boxes: of any place and size, up to the edges, and none.
BOXES = [(0, 0, 64, 48), (5, 7, 20, 30), (63, 47, 1, 1), None, (10, 0, 54, 20), (0, 1, 33, 47), (1, 1, 62, 46), None]


@pytest.fixture
def boxed(folder) -> tuple[Split, Split]:
    """A split with boxes, read from a table, and the same images cut by Pillow."""
    cells = {name: [box[i] if box else "" for box in BOXES] for i, name in enumerate("xywh")}
    Image.open(folder / "1.png").save(folder / "1.jpg", exif=quarter_turn(), quality=95)
    columns = columns_of("aabbxxyy", split=["train"] * 4 + ["query"] * 4, **cells)
    columns["path"][1] = "1.jpg"
    train_split = load(write_table(folder / "table.csv", columns)).train
    pixels = []
    for name, box in zip(train_split.names, BOXES, strict=False):
        with Image.open(name) as image:
            x, y, w, h = box or (0, 0, *image.size)
            pixels.append(np.asarray(image.convert("RGB").crop((x, y, x + w, y + h))))
    return train_split, dataclasses.replace(train_split, images=pixels, boxes=None)


def quarter_turn() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def assert_same_batches(ours, expected) -> None:
    for batch, like in zip(ours, expected, strict=True):
        assert batch.keys() == like.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], like[name], strict=True)


@pytest.mark.parametrize("max_side", [0, 25])
@pytest.mark.parametrize("cache", [False, True])
def test_boxes_are_cut_as_pillow_cuts_them(boxed, tmp_path, max_side, cache):
    ours, expected = boxed
    config = DataConfig(image_size=16, resize_size=20, max_side=max_side, threads=2)
    cropped = ours
    if cache:
        config.cache = str(tmp_path / "cache")
        ours, cropped = cached(ours, config, max_side=max_side), cached_crops(ours, config)
    options = {"batch_size": 2, "seed": 3, "epoch": 1}
    assert_same_batches(training_batches(ours, config, **options), training_batches(expected, config, **options))
    options = {"batch_size": 3}
    assert_same_batches(evaluation_batches(cropped, config, **options), evaluation_batches(expected, config, **options))

    (pixels, sizes), (same_pixels, same_sizes) = (upload(split, config, Layout()) for split in (ours, expected))
    np.testing.assert_array_equal(sizes, same_sizes)
    np.testing.assert_array_equal(pixels, same_pixels)
    options = {"batch_size": 2, "seed": 3, "epoch": 1}
    assert_same_batches(
        crop_batches(ours, sizes, config, **options), crop_batches(expected, same_sizes, config, **options)
    )


def test_the_cache_keeps_the_crops_of_different_boxes_apart(boxed, tmp_path):
    split, _ = boxed
    config = DataConfig(image_size=16, resize_size=20, threads=2, cache=str(tmp_path / "cache"))
    boxes = split.boxes.copy()
    boxes[1] += 1
    for other in split, dataclasses.replace(split, boxes=boxes), dataclasses.replace(split, boxes=None):
        whole = decode(split.images[1], "1.jpg")
        top, left, height, width = (0, 0, *whole.shape[:2]) if other.boxes is None else other.boxes[1]
        kept = cached(other, config, max_side=0)
        np.testing.assert_array_equal(kept.images[1], whole[top : top + height, left : left + width])
        cached_crops(other, config)
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_an_image_that_shrinks_after_loading_is_an_error(boxed):
    split, _ = boxed
    Image.new("RGB", (20, 20)).save(split.names[0])
    with pytest.raises(UserError, match=r"0\.png: the box x=0 y=0 w=64 h=48 is not inside .* 20 x 20 pixels"):
        list(evaluation_batches(split, DataConfig(image_size=16, resize_size=20, threads=1), batch_size=4))


HEAD, ROWS = "path,label,split", "0.png,a,train\n1.png,b,train\n2.png,c,query\n3.png,d,gallery\n"
BOX_HEAD = "path,label,x,y,w,h\n0.png,a,1,2,3,4\n"
FAULTS = {
    "no path": ("label\na\n", r"line 1: there is no column 'path'\. Its columns are 'label'\. A table is"),
    "another name": ("filename,label\n0.png,a\n", "line 1: .* 'path', but 'filename': did you mean 'path'"),
    "labels": ("path,Labels\n0.png,a\n", "line 1: .* 'label', but 'Labels': did you mean 'label'"),
    "splits": ("path,label,splits\n0.png,a,train\n", "line 1: .* 'split', but 'splits': did you mean 'split'"),
    "semicolons": ("path;label\n0.png;a\n", "'path;label'.*separated by commas"),
    "part of a box": ("path,label,x,w\n0.png,a,1,1\n", "line 1: a box needs all of .* no y and no h"),
    "two columns": ("\npath,label,label\n0.png,a,a\n", "line 2: several columns are named 'label'"),
    "empty": ("", r"csv is empty; its first line"),
    "blank": ("\n\n", "csv is empty"),
    "header only": ("path,label\n", "has a header and no rows"),
    "few values": ('path,label\n"0\n.png",a\n1.png\n', "line 4: 1 values, required are 2"),
    "many values": ("path,label\n0.png,a,b\n", "line 2: 3 values, required are 2"),
    "open quote": ('path,label\n0.png,a\n1.png,"b\n2.png,c\n', "line 3: unexpected end of data"),
    "Latin-1": ("path,label\n0.png,a\n1.png,Möwe\n".encode("latin-1"), "line 3: the byte 0xf6 is not UTF-8"),
    "empty path": ("path,label\n0.png,a\n ,b\n", "1 fault:\n  line 3: path is empty$"),
    "empty label": ('path,label,note\n0.png,a,"two\nlines"\n1.png,,\n', "line 4: label is empty"),
    "unknown split": (f"{HEAD}\n0.png,a,train\n1.png,b,test\n", "line 3: split is 'test': .*gallery, query, train"),
    "like a split": (f"{HEAD}\n0.png,a,Train\n", "line 2: split is 'Train': did you mean 'train'"),
    "empty split": (f"{HEAD}\n0.png,a,\n", "line 2: split is ''"),
    "no number": (f"{BOX_HEAD}1.png,a,1,2,wide,4\n", "line 3: w is 'wide'; it must be a whole number of pixels"),
    "fraction": (f"{BOX_HEAD}1.png,a,1.5,2,3,4\n", "line 3: x is '1.5'; it must be a whole"),
    "infinite": (f"{BOX_HEAD}1.png,a,1,2,3,inf\n", "line 3: h is 'inf'"),
    "negative": (f"{BOX_HEAD}1.png,a,-1,2,3,4\n", "line 3: x is -1; it must be at least 0"),
    "no height": (f"{BOX_HEAD}1.png,a,1,2,3,0\n", "line 3: h is 0; it must be at least 1"),
    "half a box": (f"{BOX_HEAD}1.png,a,1,2,,4\n", "line 3: w is empty; a box needs all"),
    "wide": (f"{BOX_HEAD}1.png,a,61,2,4,4\n", r"line 3: .*1\.png: the box x=61 y=2 w=4 h=4 is not .* 64 x 48 pixels"),
    "far": (f"{BOX_HEAD}1.png,a,1,{10**17},4,4\n", "line 3: .* is not inside"),
    "no image": (f"{BOX_HEAD}no.png,b,,,,\n.,b,,,,\n{'x' * 9999},b,1,1,1,1\n", r"3 faults.*3: no image at .*no\.png"),
    "damaged": (f"{BOX_HEAD}damaged.png,b,1,1,1,1\n", r"line 3: .*damaged\.png: cannot decode this file"),
    "twice": ("path,label\n0.png,a\n./0.png,b\n", r"line 3: the same image as in line 2"),
    "box twice": (f"{BOX_HEAD}0.png,b,1,2,3,4\n", r"line 3: the same image and box as in line 2"),
    "trained on": (f"{HEAD}\n{ROWS}4.png,b,gallery\n", "line 3: the class 'b' is for training here and for gallery in"),
    "no training": (f"{HEAD}\n2.png,c,query\n3.png,d,query\n", "0 classes have rows of split train"),
    "one class": (f"{HEAD}\n0.png,a,train\n{ROWS[28:]}", "1 classes have rows of split train; training needs"),
    "one query": (f"{HEAD}\n{ROWS[:28]}2.png,c,query\n", "1 classes have rows of split query or gallery"),
    "no query": (f"{HEAD}\n{ROWS.replace('query', 'gallery')}", "no row has split query"),
    "one fold": ("path,label\n0.png,a\n1.png,b\n2.png,c\n", "of 3 classes would be for"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_file_and_line(folder, name):
    content, message = FAULTS[name]
    (folder / "damaged.png").write_bytes(b"no image")
    (folder / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"(?s){message}") as error:
        load(folder / "table.csv")
    if name != "one fold":
        assert str(folder / "table.csv") in str(error.value)


def test_the_first_faults_are_listed(folder):
    rows = [f"{number}.png,{'' if number % 2 else 'a'}" for number in range(20)]
    (folder / "table.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(UserError) as error:
        load(folder / "table.csv")
    listed = [f"  line {line}: label is empty" for line in (3, 5, 7, 9, 11)]
    assert str(error.value).splitlines() == [f"{folder}/table.csv has 10 faults:", *listed, "  and 5 more"]


def test_faults_of_parquet_files_name_the_row(folder):
    path = folder / "table.parquet"
    write_table(path, columns_of("aabb") | {"label": ["a", None, "b", "b"]})
    with pytest.raises(UserError, match=r"table\.parquet has 1 fault:\n  row 2: label is empty"):
        load(path)
    write_table(path, columns_of("aabb") | {"label": [[1]] * 4})
    with pytest.raises(UserError, match=r"parquet, column 'label': its type is list<.*; it must be text or numbers"):
        load(path)
    write_table(path, {"path": [], "label": []})
    with pytest.raises(UserError, match="has a header and no rows"):
        load(path)
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["path", "label", "label"]), path)
    with pytest.raises(UserError, match=r"parquet: several columns are named 'label'"):
        load(path)
    for content in b"", b"path,label\n", b"PAR1" + bytes(100) + b"PAR1":
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"parquet cannot be read as a Parquet file: "):
            load(path)


def test_the_root_is_a_file_of_either_format(folder):
    with pytest.raises(UserError, match=r"needs its file: --config\.data\.root=/path/to/table\.csv\. A table is"):
        load_dataset(DataConfig(dataset="table"))
    with pytest.raises(UserError, match=r"which is not a file\. A table is"):
        load(folder)
    with pytest.raises(UserError, match=r"0\.png'; the name of a table's file must end in \.csv or \.parquet"):
        load(folder / "0.png")


@pytest.fixture
def shop(tmp_path) -> TrainConfig:
    """Photographs of several things: the box of a row has its class's colour, the rest of the image misleads."""
    rng = np.random.default_rng(0)
    columns: Columns = {name: [] for name in ("path", "label", "split", "x", "y", "w", "h")}
    for number in range(48):
        label = number % 6
        pixels = np.tile(trees.class_colour(rng.integers(6)), (40, 60, 1))
        x, y = int(rng.integers(40)), int(rng.integers(20))
        pixels[y : y + 20, x : x + 20] = trees.class_colour(label)
        pixels = np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8)
        trees.write(tmp_path / f"images/{number}.png", b"")
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        split = "train" if label < 3 else "query" if number < 24 else "gallery"
        for name, value in zip(columns, (f"images/{number}.png", label, split, x, y, 20, 20), strict=True):
            columns[name].append(value)
    root = str(write_table(tmp_path / "table.csv", columns))
    return TrainConfig(
        data=DataConfig(dataset="table", root=root, image_size=16, resize_size=16, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=8),
        optim=OptimConfig(epochs=1, batch_size=8, learning_rate=1e-3, proxy_learning_rate=0.01, epsilon=0.1),
        evaluation=EvaluationConfig(batch_size=8, recall_at=(1,), nmi=False),
    )


@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_run_on_a_table_sees_only_the_boxes(shop, tmp_path, placement):
    shop.data.placement = placement
    run = tmp_path / "run"
    train.train(shop, run)
    first, *_ = (run / "log.txt").read_text().splitlines()
    assert "table, training 24 images of 3 classes, queries 12 images of 3 classes, gallery 12 images of" in first
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["recall_at_1"] for record in records] == [100, 100]

    embed.main(["--run", str(run), "--split", "gallery", "--output", str(tmp_path / "gallery.npz")])
    vectors, labels = read_embeddings(tmp_path / "gallery.npz")
    similar = vectors @ vectors.T > 0.999
    np.testing.assert_array_equal(similar, labels[:, None] == labels)
    neighbours.main(["--run", str(run), "--output", str(tmp_path / "picture.png")])

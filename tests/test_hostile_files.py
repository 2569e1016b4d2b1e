"""Files that are damaged or made to do harm: each is one clear error, and nothing in them is run.

PyTorch's files have tests of their own.
"""

import contextlib
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import trees
from PIL import Image

from proxynca_jax.config import DataConfig
from proxynca_jax.data import transforms
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.transforms import decode, image_size
from proxynca_jax.errors import UserError
from proxynca_jax.runs.embedding_files import read_about, read_embeddings
from proxynca_jax.weights.converted_file import METADATA_KEY, read

ROWS = [{"dtype": "F32", "shape": [2], "data_offsets": offsets} for offsets in ([0, 8], [4, 12])]


def npy(shape: tuple[int, ...], kind: str = "<f4", body: bytes = b"") -> bytes:
    """An array whose header claims any shape and type."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + body


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trap",)


@pytest.mark.parametrize(
    "embeddings",
    [
        npy((10**12, 64)),
        npy((-2, -4)),
        npy((2**40, 2**40)),
        npy((2,), "|O", pickle.dumps(Trap())),
        b"\x93NUMPY\x01\x00\x10\x00{'descr': __imp ",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" ",
        b"no array",
    ],
    ids=["too large", "negative", "overflow", "pickle", "code", "long header", "text"],
)
def test_npz(embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embeddings.npy", embeddings)
        archive.writestr("labels.npy", npy((2,), "<i8", bytes(16)))
    with pytest.raises(UserError, match=r"a\.npz"):
        read_embeddings(path)
    assert os.listdir() == ["a.npz"]  # noqa: PTH208


@pytest.mark.parametrize("about", ["{", "5", "[" * 100_000], ids=["cut", "number", "deep"])
def test_what_a_parquet_file_says_of_itself(about, tmp_path):
    table = pa.table({"embedding": [[1.0, 2.0]] * 2, "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({METADATA_KEY.encode(): about}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet is damaged"):
        read_about(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "header",
    [
        {"a": ROWS[0], "b": ROWS[1]},
        {"a": ROWS[0] | {"shape": [-2]}},
        {"a": ROWS[0] | {"shape": [2**40, 2**40]}},
        {"a": ROWS[0] | {"data_offsets": [0, 2**40]}},
        {"a": ROWS[0] | {"dtype": "F8_E4M3", "shape": [8]}},
        {"__metadata__": {METADATA_KEY: "[]"}},
        {"__metadata__": {METADATA_KEY: "[" * 100_000}},
        {"__metadata__": {METADATA_KEY: 5}},
        {},
    ],
    ids=["overlap", "negative", "overflow", "outside", "type", "about", "deep about", "number about", "empty"],
)
def test_safetensors(header, tmp_path):
    path, text = tmp_path / "a.safetensors", json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read(path)
    path.write_bytes(struct.pack("<Q", 2**63) + text)
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read(path)


@pytest.mark.parametrize("seed", range(20))
def test_parquet(seed, tmp_path):
    """Random damage may miss what counts, but it is never another error than the user's."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "a.parquet"
    table = pa.table({"path": ["a.png"] * 8, "embedding": [[1.0, 2.0]] * 8, "label": list("aabbccdd")})
    pq.write_table(table, path)
    content = bytearray(path.read_bytes())
    for _ in range(1 + seed % 4):
        start = int(rng.integers(len(content)))
        content[start : start + 8] = rng.bytes(8)
    path.write_bytes(content[: len(content) // 2] if seed == 0 else content)
    for reads in (read_embeddings, lambda path: load_dataset(DataConfig(dataset="table", root=str(path)))):
        with contextlib.suppress(UserError):
            reads(path)


ESCAPES = ("../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "..\\secret.jpg", "C:\\secret.jpg", "")


@pytest.mark.parametrize("name", ESCAPES[:-1])
def test_lists_of_products_stay_in_their_folder(name, tmp_path):
    trees.draw_sop(tmp_path / "sop")
    trees.write(tmp_path / "secret.jpg", b"")
    path = tmp_path / "sop/Ebay_train.txt"
    path.write_text(path.read_text() + f"99 1 1 {name}\n")
    with pytest.raises(UserError, match=r"Ebay_train\.txt, image 7: .* leads out of"):
        load_dataset(DataConfig(dataset="sop", root=str(tmp_path / "sop")))


def variables(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("draw", [trees.draw_cars, trees.draw_cars_devkit])
def test_annotations_of_cars_stay_in_their_folder(name, draw, tmp_path):
    draw(tmp_path / "cars")
    file, field = ("cars_annos.mat", "relative_im_path")
    if draw is trees.draw_cars_devkit:
        file, field = ("devkit/cars_train_annos.mat", "fname")
    path = tmp_path / "cars" / file
    content = variables(path)
    content["annotations"][field][0, 1] = name
    scipy.io.savemat(path, content)
    with pytest.raises(UserError, match=r"_annos\.mat, image 2: .*(leads out of|it must be text)"):
        load_dataset(DataConfig(dataset="cars", root=str(tmp_path / "cars")))


@pytest.mark.parametrize("number", [0, 5, -1, 1.5, "two"])
def test_classes_of_cars_are_in_range(number, tmp_path):
    trees.draw_cars(tmp_path)
    content = variables(tmp_path / "cars_annos.mat")
    content["annotations"]["class"][0, 1] = number
    scipy.io.savemat(tmp_path / "cars_annos.mat", content)
    with pytest.raises(UserError, match="classes that are not from 1 to 4"):
        load_dataset(DataConfig(dataset="cars", root=str(tmp_path)))


def test_an_image_that_is_listed_twice(tmp_path):
    trees.draw_sop(tmp_path)
    path = tmp_path / "Ebay_train.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match=r"Ebay_train\.txt, image 7: 'bicycle.*' is there twice"):
        load_dataset(DataConfig(dataset="sop", root=str(tmp_path)))


@pytest.mark.parametrize("what", [os.mkfifo, pathlib.Path.mkdir, lambda path: path.symlink_to("nothing")])
def test_annotated_images_that_are_no_files(what, tmp_path):
    trees.draw_sop(tmp_path)
    image = next(tmp_path.glob("*/*.JPG"))
    image.unlink()
    what(image)
    with pytest.raises(UserError, match="1 of 12 annotated images are missing"):
        load_dataset(DataConfig(dataset="sop", root=str(tmp_path)))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_lists_that_are_no_utf_8(encoding, tmp_path):
    trees.draw_sop(tmp_path)
    path = tmp_path / "Ebay_train.txt"
    path.write_bytes(path.read_text().replace("bicycle", "vélo").encode(encoding))
    with pytest.raises(UserError, match=r"Ebay_train\.txt cannot be read: .* It must be a text file in UTF-8"):
        load_dataset(DataConfig(dataset="sop", root=str(tmp_path)))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"Ebay_train\.txt cannot be read"):
        load_dataset(DataConfig(dataset="sop", root=str(tmp_path)))


@pytest.mark.filterwarnings("ignore:sop. found 6 training")
def test_lists_without_their_header_lose_no_image(tmp_path):
    trees.draw_sop(tmp_path)
    whole = load_dataset(DataConfig(dataset="sop", root=str(tmp_path)))
    for path in tmp_path.glob("Ebay_*.txt"):
        path.write_text(path.read_text().split("\n", 1)[1], encoding="utf-8-sig")
    found = load_dataset(DataConfig(dataset="sop", root=str(tmp_path)))
    assert [split.names for split in found.sides().values()] == [split.names for split in whole.sides().values()]


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 30_000, 2**31 - 1])
def test_images_of_too_many_pixels_are_not_decoded(side):
    content = claimed_png(side, side)
    for look in decode, image_size:
        with pytest.raises(UserError, match=r"a: this image would have more than 134,217,728 pixels"):
            look(content, "a")


def test_jpegs_of_too_many_pixels_are_not_decoded(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG")
    monkeypatch.setattr(transforms, "MAX_PIXELS", 40 * 30)
    assert decode(file.getvalue(), "a").shape == (30, 40, 3)
    monkeypatch.setattr(transforms, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(UserError, match="a: this image would have more than 1,199 pixels"):
        decode(file.getvalue(), "a")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled(file_format):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, file_format)
    pixels = decode(file.getvalue(), "a")
    np.testing.assert_array_equal(pixels, np.repeat(np.round(levels / 257).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_levels_without_a_range_are_refused(kind):
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), kind)).save(file, "TIFF")
    mode = "I" if kind is np.int32 else "F"
    with pytest.raises(UserError, match=f"a: its levels are .*mode '{mode}'.*Convert it to 8 or 16 bits"):
        decode(file.getvalue(), "a")

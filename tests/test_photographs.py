"""Photographs of a folder: upright, and read from HEIC where the package for it is installed."""

import io
import sys

import numpy as np
import pytest
import trees
from PIL import Image, ImageOps

from proxynca_jax.data.photographs import find_photographs
from proxynca_jax.data.transforms import decode, decode_upright

ORIENTATION = 0x0112


def encoded(orientation: int, file_format: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, file_format, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
def test_photographs_are_turned_as_pillow_turns_them(orientation, file_format):
    content = encoded(orientation, file_format)
    with Image.open(io.BytesIO(content)) as image:
        right = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode_upright(content, "a"), right)
    if file_format != "TIFF":  # data sets are seen as stored, except TIFF, which Pillow always turns
        assert decode(content, "a").shape == (8, 12, 3)


def test_damaged_exif_does_not_damage_an_image():
    content = encoded(6, "JPEG").replace(b"MM\0*", b"MM\0\xff").replace(b"II*\0", b"II\xff\0")
    assert content != encoded(6, "JPEG")
    np.testing.assert_array_equal(decode_upright(content, "a"), decode(content, "a"))


def test_heic_is_read_upright(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    right = np.zeros((64, 96, 3), np.uint8)
    right[:32, :48] = 255
    heif.from_pillow(Image.fromarray(right)).save(tmp_path / "a.HEIC", quality=-1)
    _, photographs = find_photographs(tmp_path)
    assert np.abs(photographs[0].astype(int) - right).max() < 8


def test_without_the_package_heic_is_left_out_with_advice(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    trees.write(tmp_path / "a.heic", b"")
    _, photographs = find_photographs(tmp_path)
    assert photographs[0].shape == (1, 1, 3)
    assert f"{tmp_path / 'a.heic'}: reading HEIC needs the package pillow-heif: pip install" in photographs.faults[0]

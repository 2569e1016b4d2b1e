"""The reference's pixels, to the last bit, and its law of random crops, to the sampling error."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_images
from trees import draw_odd_images

from proxynca_jax.config import DataConfig
from proxynca_jax.data.transforms import (
    Box,
    crop_and_resize,
    decode,
    eval_transform,
    image_size,
    random_crop_box,
    shrink,
    train_transform,
)
from proxynca_jax.errors import UserError

GOLDEN = np.load(Path(__file__).parent / "golden/golden_pixels.npz")
HEIGHT, WIDTH = 427, 640  # pixels, of the image that the golden boxes were drawn in
BOXES = 20_000  # as many as the golden deciles are of
ODD_SIZES = [(1, 1), (2, 1), (7, 9), (8, 16), (17, 15), (33, 31)]  # pixels, width and height
CROP = {"area": (0.08, 1.0), "aspect_max": 4 / 3}


def golden(prefix: str) -> list[str]:
    return [key for key in GOLDEN.files if key.startswith(prefix)]


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    """The images that the golden pixels were made from."""
    china, flower = load_sample_images().images
    slices = {"tall": china[:, 100:260], "small": flower[50:150, 50:140], "wide": flower[180:240]}
    return {"china": china, "flower": flower, **slices}


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    """Random boxes, one a row: top, left, height, width."""
    rng = np.random.default_rng(0)
    return np.array([random_crop_box(HEIGHT, WIDTH, rng, **CROP) for _ in range(BOXES)])


@pytest.mark.parametrize("key", golden("eval/"))
def test_evaluation_pixels_are_the_references(key, photographs):
    _, name = key.split("/")
    np.testing.assert_array_equal(eval_transform(photographs[name], DataConfig()), GOLDEN[key][..., ::-1])


@pytest.mark.parametrize("key", golden("crop/"))
def test_training_pixels_are_the_references(key, photographs):
    _, _, name, box, mirror = key.split("/")
    box = Box(*map(int, box.split("_")))
    pixels = crop_and_resize(photographs[name], box, 227, mirror=mirror == "flip")
    np.testing.assert_array_equal(pixels, GOLDEN[key][..., ::-1])


def assert_deciles(sample: np.ndarray, deciles: np.ndarray):
    """Fails if two samples of `BOXES` of one law would differ so much less than once in ten thousand times."""
    share = np.arange(1, 10) / 10
    below = (sample[:, None] < deciles[None, 1:-1]).mean(0)
    standard_error = np.sqrt(2 * share * (1 - share) / BOXES)
    np.testing.assert_array_less(np.abs(below - share), 4 * standard_error)


def test_random_boxes_follow_the_references_law(boxes):
    top, left, height, width = boxes.T
    assert_deciles(height * width / (HEIGHT * WIDTH), GOLDEN["crop_area_quantiles"])
    # Width over height: in a wide image wide boxes fit more often, so the median is above 1.
    assert_deciles(width / height, GOLDEN["crop_aspect_quantiles"])
    centers = np.stack([(top + height / 2) / HEIGHT, (left + width / 2) / WIDTH])
    standard_error = centers.std(1) * np.sqrt(2 / BOXES)
    np.testing.assert_array_less(np.abs(centers.mean(1) - GOLDEN["crop_center_mean"]), 4 * standard_error)


def test_random_boxes_reach_every_position_inside_the_image():
    rng = np.random.default_rng(0)
    drawn = {random_crop_box(4, 5, rng, area=(0.2, 0.2), aspect_max=1.0) for _ in range(300)}
    assert drawn == {(top, left, 2, 2) for top in range(3) for left in range(4)}


@pytest.mark.parametrize(
    ("size", "area", "box"),
    [
        ((10, 2000), (0.08, 1.0), (0, 993, 10, 13)),  # too wide: full height, 4/3 of it wide
        ((2000, 10), (0.08, 1.0), (993, 0, 13, 10)),  # too high: full width, 4/3 of it high
        ((970, 1100), (1.0, 1.0), (0, 0, 970, 1100)),  # of allowed aspect ratio: all of it
        ((1, 1), (0.25, 0.25), (0, 0, 1, 1)),  # every draw has a side that rounds to nothing
    ],
)
def test_largest_centred_box_when_no_draw_fits(size, area, box):
    height, width = size
    assert random_crop_box(height, width, np.random.default_rng(0), area=area, aspect_max=4 / 3) == box


@pytest.mark.parametrize(("height", "width"), [(30, 120), (120, 30)])
def test_squashed_images_are_seen_from_end_to_end(height, width):
    # Blue is a ramp along the longer side. Without squashing, the centre square has a quarter of it.
    ramp = np.zeros((30, 120, 3), np.uint8)
    ramp[..., 2] = 2 * np.arange(120)
    image = ramp if width > height else np.ascontiguousarray(ramp.swapaxes(0, 1))
    config = DataConfig(image_size=30, resize_size=30, squash=True)
    squashed = eval_transform(image, config)
    assert squashed.shape == (30, 30, 3)
    assert (squashed[..., 2].min(), squashed[..., 2].max()) == (4, 234)
    assert np.ptp(eval_transform(image, DataConfig(image_size=30, resize_size=30))[..., 2]) == 58
    margin = eval_transform(image, DataConfig(image_size=24, resize_size=30, squash=True))
    np.testing.assert_array_equal(margin, squashed[3:27, 3:27])


@pytest.mark.parametrize(("height", "width"), [(30, 120), (120, 30), (50, 50)])
def test_training_crops_of_squashed_images_have_aspects_relative_to_the_images(height, width):
    rng = np.random.default_rng(0)
    whole = random_crop_box(height, width, rng, area=(1.0, 1.0), aspect_max=1.0, squash=True)
    assert whole == (0, 0, height, width)
    boxes = [random_crop_box(height, width, rng, area=(0.25, 0.25), aspect_max=1.2, squash=True) for _ in range(200)]
    aspects = np.array([box.width / width / (box.height / height) for box in boxes])
    assert 1 / 1.3 < aspects.min() < 0.9 < 1.1 < aspects.max() < 1.3
    # Hardly a draw of the whole area fits. What is taken instead is the image, not its centre square.
    boxes = [random_crop_box(height, width, rng, area=(1.0, 1.0), aspect_max=1.2, squash=True) for _ in range(20)]
    assert all(box.height > 0.9 * height and box.width > 0.9 * width for box in boxes)


def test_half_of_the_training_images_are_mirrored():
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    whole = DataConfig(image_size=8, crop_area_min=1.0, crop_aspect_max=1.0)
    rng = np.random.default_rng(0)
    outcomes = [train_transform(square, whole, rng) for _ in range(1000)]
    mirrored = sum(np.array_equal(pixels, square[:, ::-1]) for pixels in outcomes)
    plain = sum(np.array_equal(pixels, square) for pixels in outcomes)
    assert plain + mirrored == 1000
    assert abs(mirrored - 500) < 4 * np.sqrt(1000 / 4)


def test_no_training_image_is_mirrored_when_told_not_to():
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    whole = DataConfig(image_size=8, crop_area_min=1.0, crop_aspect_max=1.0, horizontal_flip=False)
    rng = np.random.default_rng(0)
    assert all(np.array_equal(train_transform(square, whole, rng), square) for _ in range(50))


def test_training_crop_obeys_the_configuration():
    # Blue is a ramp along the width: a crop of a hundredth of the area spans a tenth of it.
    ramp = np.zeros((240, 240, 3), np.uint8)
    ramp[..., 2] = np.arange(240)
    config = DataConfig(image_size=16, crop_area_min=0.01, crop_area_max=0.01, crop_aspect_max=1.0)
    pixels = train_transform(ramp, config, np.random.default_rng(0))
    assert pixels.shape == (16, 16, 3)
    assert np.ptp(pixels[..., 2]) == pytest.approx(23, abs=1)


def test_image_of_the_evaluation_size_is_unchanged():
    glyph = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    config = DataConfig(image_size=64, resize_size=64)
    np.testing.assert_array_equal(eval_transform(glyph, config), glyph)


def test_odd_images_become_rgb(tmp_path):
    kinds = draw_odd_images(tmp_path, size=(48, 64))
    # The same picture throughout: red is a ramp, green runs up and blue to the left.
    ramp = np.linspace(0, 255, 48 * 64).reshape(48, 64)
    picture = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1)
    grey = np.repeat((picture @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1)
    mean_error = {"grey": 1, "cmyk": 3, "palette": 40, "gif": 40, "rgba": 1, "rotated": 3}  # grey levels
    for kind, allowed in mean_error.items():
        image = decode(kinds[kind].read_bytes(), kind)
        assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8), kind
        error = np.abs(image - (grey if kind == "grey" else picture)).mean()
        assert error < allowed, kind


def jpegs() -> dict[str, bytes]:
    """A photograph as JPEG in the ways that encoders know, and what a camera may add."""
    photograph = PIL.Image.fromarray(load_sample_images().images[0])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    ways = {f"subsampling {kind}": {"subsampling": kind} for kind in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")}
    ways |= {f"quality {quality}": {"quality": quality} for quality in (1, 30, 75, 100)}
    ways |= {"progressive": {"progressive": True}, "optimised": {"optimize": True}, "rgb": {"keep_rgb": True}}
    ways |= {"restarts": {"restart_marker_blocks": 3}, "exif": {"exif": exif}, "comment": {"comment": b"a bird"}}
    images = {way: (photograph, options) for way, options in ways.items()}
    images |= {mode: (photograph.convert(mode), {}) for mode in ("L", "CMYK", "YCbCr")}
    images |= {f"{width} × {height}": (photograph.resize((width, height)), {}) for width, height in ODD_SIZES}
    images |= {"progressive grey": (photograph.convert("L"), {"progressive": True})}
    files = {name: io.BytesIO() for name in images}
    for name, (image, options) in images.items():
        image.save(files[name], "JPEG", **options)
    contents = {name: file.getvalue() for name, file in files.items()}
    contents["trailing bytes"] = contents["exif"] + bytes(100)
    return contents


JPEGS = jpegs()


@pytest.mark.parametrize("name", JPEGS)
def test_every_jpeg_has_the_pixels_that_pillow_gives_it(name):
    pillow = np.asarray(PIL.Image.open(io.BytesIO(JPEGS[name])).convert("RGB"))
    np.testing.assert_array_equal(decode(JPEGS[name], name), pillow, strict=True)
    assert image_size(JPEGS[name], name) == pillow.shape[:2]


def test_jpegs_do_not_wait_for_pillow(monkeypatch):
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("decoded by Pillow"))
    for name, content in JPEGS.items():
        if name not in ("CMYK", "trailing bytes"):
            decode(content, name)


def test_shrinking_keeps_the_shape_and_small_images():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    assert shrink(image, 0) is image
    assert shrink(image, 90) is image
    for longest, shape in (45, (30, 45, 3)), (1, (1, 1, 3)):
        for turned in (False, True):
            pixels = shrink(image.swapaxes(0, 1) if turned else image, longest)
            assert pixels.shape == ((shape[1], shape[0], 3) if turned else shape)
    pillow = PIL.Image.fromarray(image).resize((45, 30), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(shrink(image, 45), pillow)


def test_transparent_palette_is_no_warning():
    file = io.BytesIO()
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(file, "PNG", transparency=bytes([0, 128]))
    pixels = decode(file.getvalue(), "palette")
    np.testing.assert_array_equal(pixels, np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8))


def test_damaged_image_is_named(tmp_path):
    kinds = {kind: path.read_bytes() for kind, path in draw_odd_images(tmp_path).items()}
    contents = {
        "Truncated": kinds["truncated"],  # in its header
        "truncated": kinds["rotated"][:-100],  # in its pixels, which are read later than the header
        "no image format that Pillow knows": kinds["apple_double"],
    }
    for fault, content in contents.items():
        with pytest.raises(UserError, match=rf"^images/bird\.jpg: .*{len(content)} bytes.*{fault}.*fetch it again"):
            decode(content, "images/bird.jpg")

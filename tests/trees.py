"""Draws small image trees in the exact layouts that the public data sets have on disk.

Each class has a colour of its own, so a network can learn to tell them apart in a few steps.
"""

import colorsys
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SIZE = (48, 64)  # pixels, height and width


def class_colour(class_index: int) -> np.ndarray:
    """The colour of a class's images, RGB from 0 to 255."""
    golden_ratio = 0.618  # steps of it spread any number of hues over the circle
    return np.array(colorsys.hsv_to_rgb(class_index * golden_ratio % 1, 0.9, 0.8)) * 255


def encode(class_index: int, size: tuple[int, int], rng: np.random.Generator, file_format: str = "JPEG") -> bytes:
    """A noisy plane of the class's colour, as the content of an image file."""
    pixels = np.clip(class_colour(class_index) + rng.normal(0, 20, (*size, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def classes_drawn(contents: Iterable, classes: int) -> list[int]:
    """The class of each encoded image, of so many, told by its colour."""
    colours = np.array([class_colour(label) for label in range(classes)])
    means = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).mean(axis=(0, 1)) for content in contents]
    return [int(np.abs(colours - mean).sum(axis=1).argmin()) for mean in means]


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def draw_cub(
    root: Path, classes: int = 4, images_per_class: int = 3, size: tuple[int, int] = SIZE, seed: int = 0
) -> None:
    """CUB-200-2011: `images/001.Bird_1/Bird_1_0001.jpg`."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        for number in range(1, images_per_class + 1):
            path = root / f"images/{label + 1:03d}.Bird_{label + 1}/Bird_{label + 1}_{number:04d}.jpg"
            write(path, encode(label, size, rng))


def _cells(values: list) -> np.ndarray:
    """A 1 x N cell array, as MATLAB stores lists of text."""
    cells = np.empty((1, len(values)), object)
    cells[0, :] = values
    return cells


def _annotations(rows: list[tuple], fields: list[str]) -> np.ndarray:
    """A 1 x N struct array."""
    return np.array([rows], dtype=[(field, object) for field in fields])


def _car_names(classes: int) -> np.ndarray:
    return _cells([f"Maker Model {label + 1} 20{label % 100:02d}" for label in range(classes)])


def draw_cars(
    root: Path, classes: int = 4, images_per_class: int = 3, size: tuple[int, int] = SIZE, seed: int = 0
) -> None:
    """Cars196 as first published: `cars_annos.mat` beside `car_ims/000001.jpg`."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows = []
    for label in np.repeat(np.arange(classes), images_per_class).tolist():
        name = f"car_ims/{len(rows) + 1:06d}.jpg"
        write(root / name, encode(label, size, rng))
        rows.append((name, 1, 1, width, height, label + 1, len(rows) % 2))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    content = {"annotations": _annotations(rows, fields), "class_names": _car_names(classes)}
    scipy.io.savemat(root / "cars_annos.mat", content)


def draw_cars_devkit(
    root: Path,
    classes: int = 4,
    images_per_class: int = 3,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
    test_labels: str = "cars_test_annos_withlabels.mat",
) -> None:
    """Cars196 as later published: `cars_train/`, `cars_test/` and `devkit/`, every class in both folders.

    Args:
        root: The folder to draw into.
        classes: How many classes.
        images_per_class: How many images each class has, over both folders.
        size: Height and width of an image, in pixels.
        seed: Seed of the noise.
        test_labels: Where under `root` the labels of `cars_test/` lie, or "" to leave them out.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    rows: dict[str, list[tuple]] = {"train": [], "test": []}
    for label in range(classes):
        for number in range(images_per_class):
            side = "test" if number % 2 else "train"
            name = f"{len(rows[side]) + 1:05d}.jpg"
            write(root / f"cars_{side}" / name, encode(label, size, rng))
            rows[side].append((1, 1, width, height, label + 1, name))
    (root / "devkit").mkdir()
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    scipy.io.savemat(root / "devkit/cars_meta.mat", {"class_names": _car_names(classes)})
    scipy.io.savemat(root / "devkit/cars_train_annos.mat", {"annotations": _annotations(rows["train"], fields)})
    unlabelled = [(*row[:4], row[5]) for row in rows["test"]]
    fields_without_class = [field for field in fields if field != "class"]
    content = {"annotations": _annotations(unlabelled, fields_without_class)}
    scipy.io.savemat(root / "devkit/cars_test_annos.mat", content)
    if test_labels:
        scipy.io.savemat(root / test_labels, {"annotations": _annotations(rows["test"], fields)})


def draw_sop(
    root: Path, classes: int = 4, images_per_class: int = 3, size: tuple[int, int] = SIZE, seed: int = 0
) -> None:
    """Stanford Online Products: `Ebay_train.txt`, `Ebay_test.txt` and `<kind>_final/<product>_<number>.JPG`."""
    rng = np.random.default_rng(seed)
    lines = []
    for label in range(classes):
        kind, kind_id = ("bicycle", 1) if label % 2 == 0 else ("cabinet", 2)
        for number in range(images_per_class):
            name = f"{kind}_final/{110_000_000_000 + label}_{number}.JPG"
            write(root / name, encode(label, size, rng))
            lines.append(f"{len(lines) + 1} {label + 1} {kind_id} {name}")
    middle = (classes + 1) // 2 * images_per_class  # the published split trains on one class more, too
    for side, part in ("train", lines[:middle]), ("test", lines[middle:]):
        (root / f"Ebay_{side}.txt").write_text("\n".join(["image_id class_id super_class_id path", *part, ""]))


def draw_folder(
    root: Path, classes: int = 4, images_per_class: int = 3, size: tuple[int, int] = SIZE, seed: int = 0
) -> None:
    """A folder of class folders, `class_00/0.jpg`, `class_00/1.PNG`, ..."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        for number in range(images_per_class):
            suffix, file_format = ("PNG", "PNG") if number % 2 else ("jpg", "JPEG")
            write(root / f"class_{label:02d}/{number}.{suffix}", encode(label, size, rng, file_format))


def _odd_images(size: tuple[int, int]) -> Iterator[tuple[str, Image.Image, str, dict]]:
    """Kind, image, file format and what else to save with it."""
    height, width = size
    ramp = np.linspace(0, 255, height * width).reshape(size).astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1))
    yield "grey", picture.convert("L"), "JPEG", {}
    yield "cmyk", picture.convert("CMYK"), "JPEG", {}
    yield "palette", picture.quantize(16), "PNG", {}
    yield "gif", picture.quantize(16), "GIF", {}
    transparent = picture.copy()
    transparent.putalpha(Image.fromarray(ramp))
    yield "rgba", transparent, "PNG", {}
    exif = Image.Exif()
    orientation_tag, quarter_turn = 0x0112, 6
    exif[orientation_tag] = quarter_turn
    yield "rotated", picture, "JPEG", {"exif": exif}


def draw_odd_images(folder: Path, size: tuple[int, int] = SIZE) -> dict[str, Path]:
    """Files such as the public data sets and their mirrors hold, all named `.jpg` whatever they contain.

    Args:
        folder: Where to draw them; made when missing.
        size: Height and width of an image as stored, in pixels.

    Returns:
        The path of each kind: `grey`, `cmyk`, `palette`, `gif`, `rgba`, `rotated` (stored sideways, with the EXIF
        mark that says so), `truncated` (its second half is missing) and `apple_double` (macOS's `._` companion
        file, no image at all).
    """
    paths = {}
    for kind, image, file_format, options in _odd_images(size):
        file = io.BytesIO()
        image.save(file, file_format, **options)
        paths[kind] = folder / f"{kind}.jpg"
        write(paths[kind], file.getvalue())
    whole = paths["rotated"].read_bytes()
    paths["truncated"] = folder / "truncated.jpg"
    write(paths["truncated"], whole[: len(whole) // 2])
    paths["apple_double"] = folder / "._grey.jpg"
    write(paths["apple_double"], bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(58))
    return paths


def draw_tfds(
    root: Path,
    dataset: str = "cars196",
    classes: int = 4,
    images_per_class: int = 3,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
    file_format: str = "array_record",
) -> Path:
    """A data set prepared by TensorFlow Datasets, of one of the three that are supported; needs no TensorFlow.

    Returns:
        The directory of its version, `<root>/<dataset>/1.0.0`.
    """
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(seed)
    published_split = dataset == "stanford_online_products"  # the others have every class in both of their splits
    label_key = "class_id" if published_split else "label"
    examples: dict[str, list] = {"train": [], "test": []}
    for label in range(classes):
        for number in range(images_per_class):
            in_test = label >= (classes + 1) // 2 if published_split else number % 2
            mask = io.BytesIO(encode(0, size, rng, "PNG"))
            example = {"image": io.BytesIO(encode(label, size, rng)), "mask": mask, label_key: label}
            examples["test" if in_test else "train"].append(example)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=classes)
            features = tfds.features.FeaturesDict({"image": image, "mask": image, label_key: label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {split: enumerate(part) for split, part in examples.items()}

        def _generate_examples(self):
            raise NotImplementedError  # the split generators above hold the examples themselves

    builder = Builder(data_dir=root, file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_dir)

"""A data set's directory becomes two class-disjoint splits: the training classes and classes that training never sees.

Images are listed here and read one by one when they are asked for; `transforms` decodes them.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Bool, Int32

from proxynca_jax.config import DATASETS, DataConfig
from proxynca_jax.errors import UserError, nearest

Image = bytes | np.ndarray  # an encoded file's content, or decoded uint8 RGB (H, W, 3)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})

LAYOUTS = {
    "cub": "CUB-200-2011 is the archive CUB_200_2011.tgz of CaltechDATA, extracted: images/<class folder>/*.jpg.",
    "cars": "Cars196 is car_ims/ with cars_annos.mat beside it, or cars_train/ and cars_test/ with cars_train_annos.mat, "
    "cars_test_annos_withlabels.mat and cars_meta.mat beside them or in devkit/ (cars_test_annos.mat, which comes with "
    "the devkit, has no classes). Stanford no longer serves it; Kaggle has mirrors ('stanford cars').",
    "sop": "Stanford Online Products is the archive Stanford_Online_Products.zip of Stanford's lifted structured "
    "embedding project, extracted: Ebay_train.txt, Ebay_test.txt and the twelve folders <product kind>_final/.",
    "folder": f"A folder data set is one folder per class, with images ({' '.join(sorted(IMAGE_SUFFIXES))}) in each.",
    "tfds": "A tfds data set is a directory that TensorFlow Datasets prepared, where TensorFlow is installed, with "
    "`tfds build cars196 --file_format=array_record` (or caltech_birds2011, stanford_online_products): "
    "<data_dir>/cars196/<version>.",
}
ARCHIVE_FOLDERS = {"cub": "CUB_200_2011", "cars": "stanford_cars", "sop": "Stanford_Online_Products"}
PUBLISHED_COUNTS = {"cub": (5_864, 5_924), "cars": (8_054, 8_131), "sop": (59_551, 60_502)}  # training, evaluation


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one side of a class-disjoint split."""

    images: Sequence[Image]  # N, read when indexed
    names: Sequence[str]  # N, a path or an id each: for errors and embedding files
    labels: Int32[np.ndarray, " N"]  # 0 .. C-1
    class_names: tuple[str, ...]  # C


class FileImages(Sequence[bytes]):
    """The contents of image files, each read when it is indexed."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    # Here and below: no slices, because images are always asked for one at a time.
    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        path = self.paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            message = (
                f"cannot read the image {path}: {error.strerror}. It was there when the run began; is the disk still?"
            )
            raise UserError(message) from error


class _SelectedImages(Sequence[Image]):
    """Some rows of `images`, none of them read before it is indexed."""

    def __init__(self, images: Sequence[Image], rows: np.ndarray):
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.images[int(self.rows[index])]


def load_splits(config: DataConfig) -> tuple[Split, Split]:
    """Finds the images of a data set and divides them by class.

    Args:
        config: Which data set and where it lies; for a folder, also how its classes are divided.

    Returns:
        The training split and the evaluation split. They share no class.

    Raises:
        UserError: If the name is unknown or the directory does not hold what the data set needs.

    Warns:
        UserWarning: If the number of images differs from the published one.
    """
    dataset = config.dataset
    if dataset not in DATASETS:
        raise UserError(f"data.dataset is {dataset!r}, which is no known data set: {nearest(dataset, DATASETS)}")
    if dataset == "glyphs":
        from proxynca_jax.data import glyphs  # not above: it imports Split from here

        return glyphs.draw_splits(config.image_size)
    root = _find_root(config)
    if dataset == "tfds":
        from proxynca_jax.data import tfds_images  # not above: it imports Split from here

        return tfds_images.load_splits(root)
    if dataset == "folder":
        whole = _read_class_folders(root, LAYOUTS["folder"])
        return divide(whole, _held_out(config, whole.class_names))
    if dataset == "cub":
        whole = _read_class_folders(root / "images", LAYOUTS["cub"])
        splits = divide(whole, second_half(len(whole.class_names)))
    elif dataset == "cars":
        whole = _read_cars(root)
        splits = divide(whole, second_half(len(whole.class_names)))
    else:
        splits = divide(*_read_sop(root))
    warn_about_counts(dataset, splits)
    return splits


def divide(whole: Split, evaluation: Bool[np.ndarray, " C"]) -> tuple[Split, Split]:
    """Divides a data set by class and numbers the classes of each side from 0.

    Args:
        whole: Every image of every class.
        evaluation: Shape (C,), true for the classes to evaluate on.

    Returns:
        The training split and the evaluation split, images and classes in their old order.

    Raises:
        UserError: If a class has no image, or a side fewer than two classes.
    """
    counts = np.bincount(whole.labels, minlength=len(whole.class_names))
    empty = list(itertools.compress(whole.class_names, counts == 0))
    if empty:
        raise UserError(
            f"{len(empty)} of {len(counts)} classes have no image, the first is {empty[0]!r}. Every class needs at least "
            "one: remove the class, or extract the data set again if its images should be there."
        )
    for side, chosen in ("training", ~evaluation), ("evaluation", evaluation):
        if chosen.sum() < 2:
            raise UserError(
                f"{chosen.sum()} of {len(chosen)} classes are for {side}; training and evaluation need at least 2 each. "
                "Add classes, or divide a folder's differently with data.eval_fraction or data.eval_classes_file."
            )
    return _select(whole, ~evaluation), _select(whole, evaluation)


def _select(whole: Split, chosen: Bool[np.ndarray, " C"]) -> Split:
    rows = np.flatnonzero(chosen[whole.labels])
    new_label = np.cumsum(chosen, dtype=np.int32) - 1
    return Split(
        images=_SelectedImages(whole.images, rows),
        names=[whole.names[row] for row in rows],
        labels=new_label[whole.labels[rows]],
        class_names=tuple(itertools.compress(whole.class_names, chosen)),
    )


def second_half(classes: int) -> Bool[np.ndarray, " C"]:
    """Marks the classes that the literature evaluates on: of C, the last C - C // 2."""
    return np.arange(classes) >= classes // 2


def warn_about_counts(dataset: str, splits: tuple[Split, Split]) -> None:
    """Warns if the number of images is not the published one of `dataset`, a key of `PUBLISHED_COUNTS`."""
    found = tuple(len(split.images) for split in splits)
    published = PUBLISHED_COUNTS[dataset]
    if found != published:
        warnings.warn(
            f"{dataset}: found {found[0]:,} training and {found[1]:,} evaluation images, published are {published[0]:,} "
            f"and {published[1]:,}, so scores will not compare with published ones. Likely causes: an incomplete "
            "extraction, files added to the folders, or another version of the data set.",
            stacklevel=3,
        )


def _find_root(config: DataConfig) -> Path:
    layout = LAYOUTS[config.dataset]
    if not config.root:
        raise UserError(f"data.root is empty; the data set {config.dataset!r} needs its directory. {layout}")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root is {str(root)!r}, which is not a directory. {layout}")
    extracted = root / ARCHIVE_FOLDERS.get(config.dataset, "")
    return extracted if extracted.is_dir() else root


def _read_class_folders(root: Path, layout: str) -> Split:
    """Reads `<class folder>/<image>`, sorted; names with a leading dot, macOS's `._` files among them, are no images."""
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    if not folders:
        raise UserError(f"{root} holds no class folders. {layout}")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES)
        paths += images
        labels += [label] * len(images)
    return _file_split(paths, labels, [folder.name for folder in folders])


def _file_split(paths: Sequence[Path], labels: Sequence[int] | np.ndarray, class_names: Iterable[Any]) -> Split:
    return Split(
        images=FileImages(paths),
        names=[str(path) for path in paths],
        labels=np.asarray(labels, np.int32),
        class_names=tuple(str(name) for name in class_names),
    )


def _held_out(config: DataConfig, class_names: tuple[str, ...]) -> Bool[np.ndarray, " C"]:
    """Marks a folder data set's evaluation classes, listed in a file or drawn by seed."""
    if not config.eval_classes_file:
        shuffled = np.random.default_rng(config.split_seed).permutation(len(class_names))
        return shuffled < round(config.eval_fraction * len(class_names))
    path = Path(config.eval_classes_file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.eval_classes_file cannot be read: {error}. It is text, one class a line.") from error
    chosen = {line.strip() for line in lines} - {""}
    unknown = sorted(chosen - set(class_names))
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} classes that have no folder in {config.root}, the first is {unknown[0]!r}: "
            f"{nearest(unknown[0], class_names)}"
        )
    return np.isin(class_names, list(chosen))


def _read_cars(root: Path) -> Split:
    if (root / "car_ims").is_dir():
        annotations = root / "cars_annos.mat"
        names, classes = _read_mat(annotations, "annotations", "relative_im_path", "class")
        paths = [root / name for name in names]
        (class_names,) = _read_mat(annotations, "class_names")
    elif (root / "cars_train").is_dir():
        train_paths, train_classes = _read_devkit(root, "cars_train", "cars_train_annos.mat")
        test_paths, test_classes = _read_devkit(root, "cars_test", "cars_test_annos_withlabels.mat")
        paths, classes = train_paths + test_paths, np.concatenate([train_classes, test_classes])
        (class_names,) = _read_mat(_devkit_file(root, "cars_meta.mat"), "class_names")
    else:
        raise UserError(f"{root} holds neither car_ims/ nor cars_train/. {LAYOUTS['cars']}")
    _require_files(paths, LAYOUTS["cars"])
    return _file_split(paths, classes.astype(np.int32) - 1, class_names)


def _read_devkit(root: Path, folder: str, annotations: str) -> tuple[list[Path], np.ndarray]:
    names, classes = _read_mat(_devkit_file(root, annotations), "annotations", "fname", "class")
    nested = root / folder / folder  # as Kaggle's archive extracts
    images = nested if nested.is_dir() else root / folder
    return [images / name for name in names], classes


def _devkit_file(root: Path, name: str) -> Path:
    beside = root / name
    return beside if beside.exists() else root / "devkit" / name


def _read_mat(path: Path, variable: str, *fields: str) -> list[np.ndarray]:
    """Reads fields of a MATLAB struct array, or a whole variable when no field is named."""
    if not path.exists():
        raise UserError(f"{path} is missing. {LAYOUTS['cars']}")
    try:
        table = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)[variable])
        return [table[field] for field in fields] or [table]
    except Exception as error:  # scipy raises half a dozen kinds for a damaged file
        raise UserError(
            f"{path} should hold the MATLAB variable {variable!r}{f' with fields {fields}' if fields else ''}, and "
            f"reading it failed: {error}. Perhaps the download is incomplete or the file another one. {LAYOUTS['cars']}"
        ) from error


def _read_sop(root: Path) -> tuple[Split, Bool[np.ndarray, " C"]]:
    train_paths, train_ids = _read_ebay(root, "Ebay_train.txt")
    test_paths, test_ids = _read_ebay(root, "Ebay_test.txt")
    shared = set(train_ids) & set(test_ids)
    if shared:
        raise UserError(
            f"Ebay_train.txt and Ebay_test.txt in {root} share {len(shared)} classes, the first is {min(shared)}; "
            f"evaluation classes must be unseen. {LAYOUTS['sop']}"
        )
    paths = train_paths + test_paths
    _require_files(paths, LAYOUTS["sop"])
    class_ids, labels = np.unique(train_ids + test_ids, return_inverse=True)
    return _file_split(paths, labels, class_ids), np.isin(class_ids, test_ids)


def _read_ebay(root: Path, name: str) -> tuple[list[Path], list[int]]:
    """Reads lines of `image_id class_id super_class_id path` below a header."""
    path = root / name
    if not path.exists():
        raise UserError(f"{path} is missing. {LAYOUTS['sop']}")
    paths, class_ids = [], []
    for number, line in enumerate(path.read_text().splitlines()[1:], start=2):
        try:
            _, class_id, _, image = line.split()
            class_ids.append(int(class_id))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is {line!r}; required is `image_id class_id super_class_id path`."
            ) from error
        paths.append(root / image)
    return paths, class_ids


def _require_files(paths: Sequence[Path], layout: str) -> None:
    """Raises if annotated images are not on disk. Lists each folder once, which costs less than a look at each file."""
    listing = {folder: {path.name for path in folder.glob("*")} for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in listing[path.parent]]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} annotated images are missing, the first is {missing[0]}. Extract the images "
            f"again, beside the annotations. {layout}"
        )

"""The annotation files of Cars196 and Stanford Online Products: which image files there are, and of which class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from jaxtyping import Bool, Int

from proxynca_jax.errors import UserError

CARS_LAYOUT = (
    "Cars196 is car_ims/ with cars_annos.mat beside it, or cars_train/ and cars_test/ with cars_train_annos.mat, "
    "cars_test_annos_withlabels.mat and cars_meta.mat beside them or in devkit/ (cars_test_annos.mat, which comes with "
    "the devkit, has no classes). Stanford no longer serves it; Kaggle has mirrors ('stanford cars')."
)
SOP_LAYOUT = (
    "Stanford Online Products is the archive Stanford_Online_Products.zip of Stanford's lifted structured embedding "
    "project, extracted: Ebay_train.txt, Ebay_test.txt and the twelve folders <product kind>_final/."
)


def read_cars(root: Path) -> tuple[list[Path], Int[np.ndarray, " N"], list[str]]:
    """Lists the images of Cars196, in either of its layouts.

    Args:
        root: The directory that holds `car_ims/`, or `cars_train/` and `cars_test/`.

    Returns:
        N paths, N classes from 0, and the names of all classes.

    Raises:
        UserError: If an annotation file is missing or damaged, or names an image that is not on disk.
    """
    if (root / "car_ims").is_dir():
        path = root / "cars_annos.mat"
        names, classes = _read_mat(path, "annotations", "relative_im_path", "class")
        paths = [root / name for name in names]
        (class_names,) = _read_mat(path, "class_names")
    elif (root / "cars_train").is_dir():
        train_paths, train_classes = _read_devkit(root, "cars_train", "cars_train_annos.mat")
        test_paths, test_classes = _read_devkit(root, "cars_test", "cars_test_annos_withlabels.mat")
        paths, classes = train_paths + test_paths, np.concatenate([train_classes, test_classes])
        (class_names,) = _read_mat(_devkit_file(root, "cars_meta.mat"), "class_names")
    else:
        raise UserError(f"{root} holds neither car_ims/ nor cars_train/. {CARS_LAYOUT}")
    _require_files(paths, CARS_LAYOUT)
    return paths, classes.astype(np.int32) - 1, class_names.tolist()


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
        raise UserError(f"{path} is missing. {CARS_LAYOUT}")
    try:
        table = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)[variable])
        return [table[field] for field in fields] or [table]
    except Exception as error:  # scipy raises half a dozen kinds for a damaged file
        required = f"the MATLAB variable {variable!r}{f' with the fields {fields}' if fields else ''}"
        raise UserError(
            f"{path} cannot be read: {error}. Required is {required}. Perhaps the download is incomplete, or is "
            f"another file under this name. {CARS_LAYOUT}"
        ) from error


def read_sop(root: Path) -> tuple[list[Path], Int[np.ndarray, " N"], list[str], Bool[np.ndarray, " C"]]:
    """Lists the images of Stanford Online Products, training classes and evaluation classes.

    Args:
        root: The directory that holds `Ebay_train.txt` and `Ebay_test.txt`.

    Returns:
        N paths, N classes from 0, the C class ids as names, and which classes are for evaluation.

    Raises:
        UserError: If a list is missing or damaged or names an image that is not on disk, or the lists share a class.
    """
    train_paths, train_ids = _read_ebay(root / "Ebay_train.txt")
    test_paths, test_ids = _read_ebay(root / "Ebay_test.txt")
    shared = set(train_ids) & set(test_ids)
    if shared:
        raise UserError(
            f"Ebay_train.txt and Ebay_test.txt in {root} share {len(shared)} classes, the first is {min(shared)}; "
            f"evaluation classes must not be trained on. Extract both again. {SOP_LAYOUT}"
        )
    paths = train_paths + test_paths
    _require_files(paths, SOP_LAYOUT)
    class_ids, classes = np.unique(train_ids + test_ids, return_inverse=True)
    return paths, classes, [str(class_id) for class_id in class_ids], np.isin(class_ids, test_ids)


def _read_ebay(path: Path) -> tuple[list[Path], list[int]]:
    """Reads lines of `image_id class_id super_class_id path` below a header."""
    if not path.exists():
        raise UserError(f"{path} is missing. {SOP_LAYOUT}")
    paths, class_ids = [], []
    for number, line in enumerate(path.read_text().splitlines()[1:], start=2):
        try:
            _, class_id, _, image = line.split()
            class_ids.append(int(class_id))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: found {line!r}, required is `image_id class_id super_class_id path`. "
                f"Extract the file again. {SOP_LAYOUT}"
            ) from error
        paths.append(path.parent / image)
    return paths, class_ids


def _require_files(paths: Sequence[Path], layout: str) -> None:
    """Raises if an annotated image is not on disk. Lists each folder once: cheaper than a look at every file."""
    listing = {folder: {file.name for file in folder.glob("*")} for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in listing[path.parent]]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} annotated images are missing, the first is {missing[0]}. Extract the "
            f"images again, beside the annotations. {layout}"
        )

"""Cars196 (Stanford Cars): photographs of 196 models of cars."""

from pathlib import Path

import numpy as np
import scipy.io
from jaxtyping import Shaped

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets.published import Counts
from proxynca_jax.data.image_files import annotated_images, file_split, require_files
from proxynca_jax.data.split import DataSet, divide_by_class, second_half
from proxynca_jax.errors import UserError

LAYOUT = (
    "Cars196 is car_ims/ and cars_annos.mat, or cars_train/, cars_test/, cars_train_annos.mat, "
    "cars_test_annos_withlabels.mat and cars_meta.mat. The last three may be in devkit/. cars_test_annos.mat, which "
    "comes with the devkit, has no classes. Stanford no longer serves it; Kaggle has mirrors ('stanford cars')."
)
COUNTS = Counts(train=8_054, queries=8_131)


def read(root: Path, _: DataConfig) -> DataSet:
    """Trains on the first half of the classes and evaluates on the second, in either layout.

    Args:
        root: The directory that contains `car_ims/`, or `cars_train/` and `cars_test/`.

    Raises:
        UserError: If an annotation file is missing or damaged, or if it names an image that is not on disk.
    """
    if (root / "car_ims").is_dir():
        path = root / "cars_annos.mat"
        names, classes = _read_mat(path, "annotations", "relative_im_path", "class")
        paths = annotated_images(root, names.tolist(), path)
        (class_names,) = _read_mat(path, "class_names")
    elif (root / "cars_train").is_dir():
        train_paths, train_classes = _read_devkit(root, "cars_train", "cars_train_annos.mat")
        test_paths, test_classes = _read_devkit(root, "cars_test", "cars_test_annos_withlabels.mat")
        paths, classes = train_paths + test_paths, np.concatenate([train_classes, test_classes])
        (class_names,) = _read_mat(_devkit_file(root, "cars_meta.mat"), "class_names")
    else:
        raise UserError(f"{root} contains neither car_ims/ nor cars_train/. {LAYOUT}")
    require_files(paths, LAYOUT)
    if any(
        not isinstance(number, int | np.integer) or not 0 < number <= len(class_names) for number in classes.tolist()
    ):
        raise UserError(f"the annotations in {root} have classes that are not from 1 to {len(class_names)}. {LAYOUT}")
    whole = file_split(paths, classes.astype(np.int32) - 1, list(map(str, class_names.tolist())))
    return divide_by_class(whole, second_half(len(whole.class_names)))


def _read_devkit(root: Path, folder: str, annotations: str) -> tuple[list[Path], Shaped[np.ndarray, " N"]]:
    """Reads the paths and classes of one folder of the later layout. Classes are from 1, as MATLAB stored them."""
    names, classes = _read_mat(_devkit_file(root, annotations), "annotations", "fname", "class")
    nested = root / folder / folder  # as Kaggle's archive extracts
    images = nested if nested.is_dir() else root / folder
    return annotated_images(images, names.tolist(), _devkit_file(root, annotations)), classes


def _devkit_file(root: Path, name: str) -> Path:
    here = root / name
    return here if here.exists() else root / "devkit" / name


def _read_mat(path: Path, variable: str, *fields: str) -> list[np.ndarray]:
    """Reads fields of a MATLAB struct array, or a whole variable if no field is named."""
    if not path.exists():
        raise UserError(f"{path} is missing. {LAYOUT}")
    try:
        table = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)[variable])
        return [table[field] for field in fields] or [table]
    except Exception as error:  # scipy raises half a dozen kinds for a damaged file
        required = f"the MATLAB variable {variable!r}{f' with the fields {fields}' if fields else ''}"
        raise UserError(
            f"{path} cannot be read: {error}. Required is {required}. The download may be incomplete, or another "
            f"file may have this name. {LAYOUT}"
        ) from error

"""Stanford Online Products: photographs of 22,634 products that were for sale on eBay."""

from pathlib import Path

import numpy as np

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets.published import Counts
from proxynca_jax.data.image_files import annotated_images, file_split, require_files
from proxynca_jax.data.split import DataSet, divide_by_class
from proxynca_jax.errors import UserError

LAYOUT = (
    "Stanford Online Products is the archive Stanford_Online_Products.zip of Stanford's lifted structured embedding "
    "project, extracted: Ebay_train.txt, Ebay_test.txt and the twelve folders <product kind>_final/."
)
HEADER = ["image_id", "class_id", "super_class_id", "path"]
COUNTS = Counts(train=59_551, queries=60_502)


def read(root: Path, _: DataConfig) -> DataSet:
    """Trains and evaluates on the classes of the two published lists.

    Args:
        root: The directory that contains `Ebay_train.txt` and `Ebay_test.txt`.

    Raises:
        UserError: If a list is missing or damaged, if it names an image that is not on disk or leads out of `root`, or
            if both lists contain the same class.
    """
    train_paths, train_ids = _read_list(root / "Ebay_train.txt")
    test_paths, test_ids = _read_list(root / "Ebay_test.txt")
    shared = set(train_ids) & set(test_ids)
    if shared:
        raise UserError(
            f"Ebay_train.txt and Ebay_test.txt in {root} share {len(shared)} classes, the first is {min(shared)}. "
            f"Evaluation classes must not be trained on. Extract both files again. {LAYOUT}"
        )
    paths = train_paths + test_paths
    require_files(paths, LAYOUT)
    class_ids, labels = np.unique(train_ids + test_ids, return_inverse=True)
    whole = file_split(paths, labels, [str(class_id) for class_id in class_ids])
    return divide_by_class(whole, np.isin(class_ids, test_ids))


def _read_list(path: Path) -> tuple[list[Path], list[int]]:
    """Reads paths and class ids from lines of `image_id class_id super_class_id path`. The first may be this header."""
    if not path.exists():
        raise UserError(f"{path} is missing. {LAYOUT}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. It must be a text file in UTF-8. {LAYOUT}") from error
    names, class_ids = [], []
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.split() == HEADER:
            continue
        try:
            _, class_id, _, image = line.split()
            class_ids.append(int(class_id))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: found {line!r}, required is `image_id class_id super_class_id path`. "
                f"Extract the file again. {LAYOUT}"
            ) from error
        names.append(image)
    return annotated_images(path.parent, names, path), class_ids

"""Your own images: a CSV or Parquet file with one row per image."""

import difflib
import os.path
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets.folder import evaluation_classes
from proxynca_jax.data.datasets.table_file import TableFile, read_table
from proxynca_jax.data.image_files import file_split
from proxynca_jax.data.split import DataSet, Evaluation, Split, divide, divide_by_class, take
from proxynca_jax.data.transforms import Box, image_size
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine import arguments

LAYOUT = (
    "A table is a .csv file (values separated by commas) or a .parquet file, with one row per image and the columns "
    "path and label. Optional are the columns split (train, query or gallery) and x, y, w and h (a box, in pixels)."
)
REQUIRED, SPLIT, BOX = ("path", "label"), "split", ("x", "y", "w", "h")
COLUMNS = (*REQUIRED, SPLIT, *BOX)
TRAIN, QUERY, GALLERY = ROLES = ("train", "query", "gallery")  # values of the column split
# What other tables call these columns.
OTHER_NAMES = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path"),
    "label": ("class", "class_name", "category", "target"),
    "split": ("subset", "partition"),
}
ALIKE = 0.8  # difflib's similarity from which on a column's name is taken for a misspelling
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")  # Parquet files may have whole numbers as floating-point ones
WHOLE_IMAGE = Box(0, 0, 0, 0)
HEADER_THREADS = 16  # they wait for the disk or the network, not for a core


def read(path: Path, config: DataConfig) -> DataSet:
    """Divides the images by the column `split` or, without it, as the data set `folder` does.

    Args:
        path: The table. Relative paths in it start from its folder.
        config: Without the column `split`: how to choose the evaluation classes.

    Raises:
        UserError: If the file is not such a table, an image is missing, a box is not inside of its image, or a class
            is both trained on and evaluated on. The message has the lines of the first faults.
    """
    table = read_table(path, COLUMNS)
    _check_columns(table)
    table.refuse(_cell_faults(table))
    boxes = _read_boxes(table)
    paths = [path.parent / arguments.path(cell) for cell in table.columns["path"]]
    table.refuse(_repeated_images(table, paths, boxes))
    table.refuse(_shared_classes(table))
    table.refuse(_image_faults(paths, boxes))

    labels = table.columns["label"]
    class_names = tuple(sorted(set(labels)))
    numbers = {name: number for number, name in enumerate(class_names)}
    whole = file_split(paths, [numbers[label] for label in labels], class_names, boxes)
    if SPLIT in table.columns:
        return _divide_by_role(table, whole)
    return divide_by_class(whole, evaluation_classes(class_names, config))


def _check_columns(table: TableFile) -> None:
    """Refuses a header that lacks a column, has only a part of the box, or seems to misspell a name."""
    missing = [name for name in COLUMNS if name not in table.columns]
    unknown = [name for name in table.names if name not in COLUMNS]
    faults = []
    for name in missing:
        meant = next((other for other in unknown if _is_like(other, name)), None)
        if meant is not None:
            faults.append(f"there is no column {name!r}, but {meant!r}: did you mean {name!r}? Rename it")
        elif name in REQUIRED:
            faults.append(f"there is no column {name!r}")
    absent = [name for name in BOX if name in missing]
    if 0 < len(absent) < len(BOX):
        faults.append(f"a box needs all of x, y, w and h; there is no {' and no '.join(absent)}")
    if faults:
        found = ", ".join(map(repr, table.names))
        raise UserError(f"{table.header}: {'; '.join(faults)}. Its columns are {found}. {LAYOUT}")


def _is_like(other: str, name: str) -> bool:
    plain = other.casefold()
    return plain in OTHER_NAMES.get(name, ()) or bool(difflib.get_close_matches(plain, [name], cutoff=ALIKE))


def _cell_faults(table: TableFile) -> Iterator[tuple[int, str]]:
    """Yields the row and the text of each fault that the cells of a row show."""
    columns = table.columns
    for row in range(len(table.places)):
        for name in REQUIRED:
            if not columns[name][row]:
                yield row, f"{name} is empty"
        if SPLIT in columns and (role := columns[SPLIT][row]) not in ROLES:
            yield row, f"split is {role!r}: {nearest(role, ROLES)}"
        if BOX[0] in columns:
            yield from ((row, text) for text in _box_faults([columns[name][row] for name in BOX]))


def _box_faults(cells: Sequence[str]) -> Iterator[str]:
    if not any(cells):
        return
    for name, cell in zip(BOX, cells, strict=True):
        lowest = 0 if name in ("x", "y") else 1
        if not cell:
            yield f"{name} is empty; a box needs all of x, y, w and h, and a row without a box needs none of them"
        elif not WHOLE_NUMBER.fullmatch(cell):
            yield f"{name} is {cell!r}; it must be a whole number of pixels"
        elif _pixels(cell) < lowest:
            yield f"{name} is {cell}; it must be at least {lowest}"


def _pixels(cell: str) -> int:
    return int(cell.partition(".")[0])


def _read_boxes(table: TableFile) -> list[Box] | None:
    """Returns the boxes of all rows, `WHOLE_IMAGE` for a row without one. None: the table has no boxes."""
    if BOX[0] not in table.columns:
        return None
    cells = zip(*(table.columns[name] for name in BOX), strict=True)
    boxes = [Box(*map(_pixels, (y, x, h, w))) if x else WHOLE_IMAGE for x, y, w, h in cells]
    return boxes if any(box != WHOLE_IMAGE for box in boxes) else None


def _repeated_images(table: TableFile, paths: list[Path], boxes: list[Box] | None) -> Iterator[tuple[int, str]]:
    """Yields rows that repeat the image of another row. A query that finds itself would count as right."""
    first: dict[tuple[Path, Box], int] = {}
    for row, image in enumerate(zip(paths, boxes or [WHOLE_IMAGE] * len(paths), strict=True)):
        if (before := first.setdefault(image, row)) != row:
            same = "the same image" if boxes is None else "the same image and box"
            yield row, f"{same} as in {table.unit} {table.places[before]}. Remove one of the two"


def _shared_classes(table: TableFile) -> Iterator[tuple[int, str]]:
    """Yields the first training row of each class that is evaluated on, too."""
    if SPLIT not in table.columns:
        return
    trained: dict[str, int] = {}
    evaluated: dict[str, int] = {}
    for row, (label, role) in enumerate(zip(table.columns["label"], table.columns[SPLIT], strict=True)):
        (trained if role == TRAIN else evaluated).setdefault(label, row)
    for label, row in trained.items():
        if (other := evaluated.get(label)) is not None:
            role, place = table.columns[SPLIT][other], table.places[other]
            yield (
                row,
                f"the class {label!r} is for training here and for {role} in {table.unit} {place}. Scores are of "
                "classes that were not trained on, so each class must be for training or for evaluation",
            )


def _image_faults(paths: list[Path], boxes: list[Box] | None) -> Iterator[tuple[int, str]]:
    """Yields missing images and boxes that are not inside of their images, by the header of each boxed image."""

    def fault(row: int) -> str | None:
        path = paths[row]
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises if the text is too long for a name
            return f"no image at {path}"
        if boxes is None or boxes[row] == WHOLE_IMAGE:
            return None
        try:
            boxes[row].require_inside(*image_size(path, str(path)), str(path))
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        for row, text in enumerate(pool.map(fault, range(len(paths)))):
            if text:
                yield row, text


def _divide_by_role(table: TableFile, whole: Split) -> DataSet:
    """Makes the data set that the column `split` describes. Without gallery rows, the queries search each other."""
    roles = np.array(table.columns[SPLIT])
    evaluated = np.zeros(len(whole.class_names), bool)
    evaluated[whole.labels[roles != TRAIN]] = True
    for count, used, rows in (
        ((~evaluated).sum(), "training", "train"),
        (evaluated.sum(), "evaluation", "query or gallery"),
    ):
        if count < 2:
            raise UserError(f"{table.path}: {count} classes have rows of split {rows}; {used} needs at least 2.")
    if QUERY not in roles:
        raise UserError(f"{table.path}: no row has split query. Without a gallery, all evaluation images are queries.")
    train, rest = divide(whole, evaluated)
    roles = roles[roles != TRAIN]
    if GALLERY not in roles:
        return DataSet(train, Evaluation(rest))
    return DataSet(train, Evaluation(take(rest, roles == QUERY), take(rest, roles == GALLERY)))

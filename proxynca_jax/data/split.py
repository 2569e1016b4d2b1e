"""Splits of a data set: the training images, and the queries and gallery of its evaluation, which share no class."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from proxynca_jax.config import EvaluationConfig
from proxynca_jax.errors import UserError

SIDES = TRAIN, QUERY, GALLERY = ("train", "query", "gallery")
Image = bytes | np.ndarray  # the content of an image file, or decoded uint8 RGB (H, W, 3)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with labels. An image is read when it is indexed."""

    images: Sequence[Image]  # N
    names: Sequence[str]  # N, a path or an id each: for errors and embedding files
    labels: Int32[np.ndarray, " N"]  # 0 .. C-1
    class_names: tuple[str, ...]  # C
    cropped: bool = False  # whether `transforms.eval_transform` has been applied to the images
    # The part of each image to use: top, left, height and width in pixels, as `transforms.Box`. A height of 0: all of
    # it. None: all of every image. `transforms.load_image` cuts the boxes out.
    boxes: Int32[np.ndarray, "N 4"] | None = None
    upright: bool = False  # turn images as their EXIF orientation says; data sets are seen as stored
    files: bool = False  # whether the names are the paths of files that contain the images
    # N, of each image's content and box, from `inspection`; None: not computed. They outlast a move of the files.
    digests: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Images to score an embedding on: each query searches the gallery for images of its class.

    Raises:
        ValueError: If queries and gallery do not number the same classes in the same way.
    """

    queries: Split
    gallery: Split | None = None  # None: each query searches the other queries

    def __post_init__(self) -> None:
        if self.gallery is not None and self.gallery.class_names != self.queries.class_names:
            raise ValueError("queries and gallery have different class_names, so their labels cannot be compared")

    def splits(self) -> list[Split]:
        """The queries and, if there is one, the gallery: what `Evaluation(*splits)` takes."""
        return [self.queries] if self.gallery is None else [self.queries, self.gallery]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Images to train on, and images of other classes to evaluate on."""

    train: Split
    evaluation: Evaluation

    def sides(self) -> dict[str, Split]:
        """The splits by what they are for: TRAIN, QUERY and, if there is one, GALLERY."""
        return dict(zip(SIDES, [self.train, *self.evaluation.splits()], strict=False))


class _SelectedImages(Sequence[Image]):
    """Some rows of `images`. An image is read when it is indexed."""

    def __init__(self, images: Sequence[Image], rows: np.ndarray):
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.images[int(self.rows[index])]


def divide(
    whole: Split,
    evaluation: Bool[np.ndarray, " C"],
    *,
    purpose: str = "evaluation",
    remedy: str = "of a folder or a table without splits change data.eval_fraction or data.eval_classes_file",
) -> tuple[Split, Split]:
    """Divides a split by class and numbers the classes of each part from 0.

    Args:
        whole: All images of all classes.
        evaluation: Shape (C,), true for the classes to evaluate on.
        purpose: What these classes are for, in the error.
        remedy: How to go on otherwise, in the error.

    Returns:
        The training part and the evaluation part. Images and classes keep their order.

    Raises:
        UserError: If a class has no image, or a part has fewer than two classes.
    """
    counts = np.bincount(whole.labels, minlength=len(whole.class_names))
    empty = list(itertools.compress(whole.class_names, counts == 0))
    if empty:
        raise UserError(
            f"{len(empty)} of {len(counts)} classes have no image, the first is {empty[0]!r}. Every class needs at "
            "least one. Remove the class, or extract the data set again if the class should have images."
        )
    for part, chosen in ("training", ~evaluation), (purpose, evaluation):
        if chosen.sum() < 2:
            found = f"There is one class, {whole.class_names[0]!r}"
            if len(chosen) > 1:
                found = f"{chosen.sum()} of {len(chosen)} classes would be for {part}"
            raise UserError(f"{found}; training and {purpose} need at least 2 each. Add classes, or {remedy}.")
    return _select(whole, ~evaluation), _select(whole, evaluation)


def hold_out(train: Split, config: EvaluationConfig, seed: int) -> tuple[Split, Split]:
    """Divides the training images as the validation protocol does: what it trains on, and what it scores epochs on.

    Args:
        train: All training images.
        config: How many of the classes are held out.
        seed: Of the run, which chooses them.

    Raises:
        UserError: As for `divide`.
    """
    held_out = random_classes(len(train.class_names), config.validation_fraction, seed)
    remedy = "score each epoch on the test classes, with evaluation.protocol=reference"
    return divide(train, held_out, purpose="validation", remedy=remedy)


def _select(whole: Split, chosen: Bool[np.ndarray, " C"]) -> Split:
    part = take(whole, chosen[whole.labels])
    new_label = np.cumsum(chosen, dtype=np.int32) - 1
    class_names = tuple(itertools.compress(whole.class_names, chosen))
    return dataclasses.replace(part, labels=new_label[part.labels], class_names=class_names)


def take(split: Split, chosen: Bool[np.ndarray, " N"]) -> Split:
    """Returns the chosen images of a split in their order. The classes keep their numbers."""
    rows = np.flatnonzero(chosen)
    return dataclasses.replace(
        split,
        images=_SelectedImages(split.images, rows),
        names=[split.names[row] for row in rows.tolist()],
        labels=split.labels[rows],
        boxes=None if split.boxes is None else split.boxes[rows],
        digests=None if split.digests is None else [split.digests[row] for row in rows.tolist()],
    )


def sample(split: Split, count: int) -> list[int]:
    """Returns the places of so many images of a split, evenly spaced; of all, if there are fewer."""
    return np.unique(np.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).astype(int)).tolist()


def divide_by_class(whole: Split, evaluation: Bool[np.ndarray, " C"]) -> DataSet:
    """Makes a data set without a gallery from all its images. Arguments and errors are those of `divide`."""
    train, queries = divide(whole, evaluation)
    return DataSet(train, Evaluation(queries))


def second_half(classes: int) -> Bool[np.ndarray, " C"]:
    """Marks the classes that the literature evaluates on: of C, the last C - C // 2."""
    return np.arange(classes) >= classes // 2


def random_classes(classes: int, fraction: float, seed: int) -> Bool[np.ndarray, " C"]:
    """Marks a random fraction of C classes."""
    return np.random.default_rng(seed).permutation(classes) < round(fraction * classes)

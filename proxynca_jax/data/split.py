"""A split, the images of some classes, and how a data set is divided into two of them that share no class."""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from proxynca_jax.errors import UserError

Image = bytes | np.ndarray  # an encoded file's content, or decoded uint8 RGB (H, W, 3)

PUBLISHED_COUNTS = {"cub": (5_864, 5_924), "cars": (8_054, 8_131), "sop": (59_551, 60_502)}  # training, evaluation


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one side of a class-disjoint split."""

    images: Sequence[Image]  # N, read when indexed
    names: Sequence[str]  # N, a path or an id each: for errors and embedding files
    labels: Int32[np.ndarray, " N"]  # 0 .. C-1
    class_names: tuple[str, ...]  # C
    cropped: bool = False  # whether the images are what `transforms.eval_transform` makes of them


class _SelectedImages(Sequence[Image]):
    """Some rows of `images`, none of them read before it is indexed."""

    def __init__(self, images: Sequence[Image], rows: np.ndarray):
        self.images = images
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.images[int(self.rows[index])]


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
            f"{len(empty)} of {len(counts)} classes have no image, the first is {empty[0]!r}. Every class needs at "
            "least one: remove the class, or extract the data set again if its images should be there."
        )
    for side, chosen in ("training", ~evaluation), ("evaluation", evaluation):
        if chosen.sum() < 2:
            raise UserError(
                f"{chosen.sum()} of {len(chosen)} classes are for {side}; training and evaluation need at least 2 "
                "each. Add classes, or divide a folder's differently with data.eval_fraction or data.eval_classes_file."
            )
    return _select(whole, ~evaluation), _select(whole, evaluation)


def _select(whole: Split, chosen: Bool[np.ndarray, " C"]) -> Split:
    rows = np.flatnonzero(chosen[whole.labels])
    new_label = np.cumsum(chosen, dtype=np.int32) - 1
    return Split(
        images=_SelectedImages(whole.images, rows),
        names=[whole.names[row] for row in rows.tolist()],
        labels=new_label[whole.labels[rows]],
        class_names=tuple(itertools.compress(whole.class_names, chosen)),
    )


def second_half(classes: int) -> Bool[np.ndarray, " C"]:
    """Marks the classes that the literature evaluates on: of C, the last C - C // 2."""
    return np.arange(classes) >= classes // 2


def random_classes(classes: int, fraction: float, seed: int) -> Bool[np.ndarray, " C"]:
    """Marks a share of C classes, drawn by seed."""
    return np.random.default_rng(seed).permutation(classes) < round(fraction * classes)


def warn_about_counts(dataset: str, splits: tuple[Split, Split]) -> None:
    """Warns if the number of images is not the published one of `dataset`, a key of `PUBLISHED_COUNTS`."""
    found = tuple(len(split.images) for split in splits)
    published = PUBLISHED_COUNTS[dataset]
    if found != published:
        warnings.warn(
            f"{dataset}: found {found[0]:,} training and {found[1]:,} evaluation images, published are "
            f"{published[0]:,} and {published[1]:,}, so scores will not compare with published ones. Likely "
            "causes: an incomplete extraction, files added to the folders, or another version of the data set.",
            stacklevel=3,
        )

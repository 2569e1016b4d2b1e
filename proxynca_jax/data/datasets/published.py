"""Published numbers of images, and a warning if the images on disk are not as many."""

import warnings
from typing import NamedTuple

from proxynca_jax.data.split import DataSet


class Counts(NamedTuple):
    """Numbers of images."""

    train: int
    queries: int  # without a gallery: the evaluation images
    gallery: int = 0

    def __str__(self) -> str:
        if self.gallery:
            return f"{self.train:,} training, {self.queries:,} query and {self.gallery:,} gallery images"
        return f"{self.train:,} training and {self.queries:,} evaluation images"


def warn_if_counts_differ(name: str, dataset: DataSet, published: Counts) -> None:
    """Compares the number of images with the published one.

    Args:
        name: The data set's name, for the warning.
        dataset: The images that were found.
        published: How many there should be.

    Warns:
        UserWarning: If the numbers differ.
    """
    found = Counts(len(dataset.train.labels), *(len(split.labels) for split in dataset.evaluation.splits()))
    if found != published:
        warnings.warn(
            f"{name}: found {found}, but {published} are published. Scores will not compare with published ones. "
            "Likely causes: an incomplete extraction, extra files in the folders, or another version of the data set.",
            stacklevel=2,
        )

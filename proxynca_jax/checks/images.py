"""Checks of a data set's images: their numbers, their classes, equal contents, images without content."""

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from proxynca_jax.checks import ERROR, OK, WARNING, Finding, listed
from proxynca_jax.config import SKIP, DataConfig
from proxynca_jax.data.datasets import DATASETS
from proxynca_jax.data.inspection import PUBLISHED_SPLITS
from proxynca_jax.data.split import QUERY, TRAIN, DataSet, Split

ACROSS = "are for training and for evaluation; remove one"
TWO_LABELS = "have two labels; remove the wrong one"
TWICE = "are there twice in their class, where finding the other one is no achievement; remove one"
FLAT = 2.0  # standard deviation of each channel, 0 to 127, below which an image shows nothing


def check_counts(dataset: DataSet, config: DataConfig) -> Iterator[Finding]:
    """Says how many images and classes each side has. A difference from the published numbers is a warning of its own.

    Args:
        dataset: The images.
        config: Which data set.
    """
    for side, split in dataset.sides().items():
        counts = np.bincount(split.labels, minlength=len(split.class_names))
        smallest, largest = int(counts.argmin()), int(counts.argmax())
        yield Finding(
            OK,
            f"{side}: {len(split.labels):,} images of {len(counts):,} classes, from {counts[smallest]:,} "
            f"({split.class_names[smallest]}) to {counts[largest]:,} ({split.class_names[largest]}) in a class",
        )
    if DATASETS[config.dataset].published is None:
        yield Finding(OK, f"no number of images is published for the data set {config.dataset!r}")


def check_single_images(dataset: DataSet) -> Iterator[Finding]:
    """Finds classes of one image, which a query cannot find and a proxy learns little from."""
    consequences = {TRAIN: "their proxies are learnt from that image alone"}
    if dataset.evaluation.gallery is None:
        consequences[QUERY] = "Recall@K leaves them out as queries, because there is nothing to find"
    for side, consequence in consequences.items():
        split = dataset.sides()[side]
        counts = np.bincount(split.labels, minlength=len(split.class_names))
        if single := list(itertools.compress(split.class_names, counts == 1)):
            yield Finding(
                WARNING,
                f"{side}: {len(single):,} classes have one image, and {consequence}: {listed(single)}. "
                "Add images to them, or remove the classes.",
            )


def check_readable(faults: Mapping[str, str], config: DataConfig) -> Iterator[Finding]:
    """Reports the images that cannot be read.

    Args:
        faults: Of `inspect_splits`, by name.
        config: What a run would do about them.
    """
    if not faults:
        yield Finding(OK, "every image can be read and decoded")
        return
    skipped = config.on_bad_image == SKIP
    remedy = "a run leaves them out" if skipped else "repair or remove them, or set --config.data.on_bad_image=skip"
    lines = "".join(f"\n  {fault}" for fault in faults.values())
    yield Finding(WARNING if skipped else ERROR, f"{len(faults):,} images cannot be used; {remedy}:{lines}")


def check_equal_contents(dataset: DataSet, config: DataConfig) -> Iterator[Finding]:
    """Finds images whose contents are equal to the last byte: on both sides, in two classes, or in one class.

    Args:
        dataset: The images, with digests.
        config: Which data set. In a published split, equal images on both sides are a warning.
    """
    found: dict[str, list[tuple[str, str, str]]] = collections.defaultdict(list)
    for side, split in dataset.sides().items():
        for digest, name, label in zip(split.digests or (), split.names, split.labels.tolist(), strict=True):
            found[digest].append((side, split.class_names[label], name))
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for rows in found.values():
        if len(rows) > 1:
            groups[_relation(rows)].append(" = ".join(name for _, _, name in rows))
    levels = {ACROSS: WARNING if config.dataset in PUBLISHED_SPLITS else ERROR}
    for relation, pairs in groups.items():
        yield Finding(levels.get(relation, WARNING), f"{len(pairs):,} images {relation} of each: {listed(pairs)}")
    if not groups:
        yield Finding(OK, "no two images have equal contents")


def _relation(rows: Sequence[tuple[str, str, str]]) -> str:
    """Says what is wrong with images of equal contents, and what to do. A row has a side, a class and a name."""
    if len({side == TRAIN for side, _, _ in rows}) > 1:
        return ACROSS
    return TWO_LABELS if len({label for _, label, _ in rows}) > 1 else TWICE


def check_pixels(
    images: UInt8[np.ndarray, "images height width 3"], split: Split, rows: Sequence[int]
) -> Iterator[Finding]:
    """Looks for images of one colour, and for channels that are all equal.

    Args:
        images: Some images as the network sees them, RGB.
        split: Where they are from.
        rows: Their places in the split.
    """
    flat = [row for row, image in zip(rows, images, strict=True) if image.std((0, 1)).max() < FLAT]
    if flat:
        names = listed(split.names[row] for row in flat)
        yield Finding(WARNING, f"{len(flat):,} of {len(rows):,} images looked at show nothing but one colour: {names}")
    grey = np.mean([np.ptp(image.astype(np.int16), axis=-1).max() == 0 for image in images])
    means, deviations = images.mean((0, 1, 2)), images.std((0, 1, 2))
    text = f"{len(rows):,} images looked at: mean RGB {_numbers(means)}, standard deviation {_numbers(deviations)}"
    plausible = images.max() > 8 and 8 < means.mean() < 247
    yield Finding(
        OK if plausible else WARNING, text + ("" if plausible else ": hardly any light or dark. Look at them")
    )
    if grey:
        yield Finding(OK, f"{grey:.1%} of them are grey")


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.0f}" for value in values)

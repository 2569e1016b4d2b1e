"""All pairs of images, block by block: the similarity of each pair, and whether both images are of one class.

Similarities are cosines, rounded down to multiples of 2⁻²⁴ (6e-8), the spacing of float32 below 1. As integers they
compare and count exactly, and a threshold that is such a multiple accepts the same pairs as before the rounding.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32
from threadpoolctl import threadpool_limits

from proxynca_jax.errors import UserError
from proxynca_jax.metrics.vectors import Images

STEPS = 2**24  # in which a similarity is counted, per 1
BLOCK = 1024  # images; a block of pairs takes 20 MB in each thread


class Pairs(NamedTuple):
    """Pairs of an image of `rows` and one of `columns`. Both are sorted by class."""

    rows: Images
    columns: Images
    symmetric: bool  # both sides are the same images: each two different ones are one pair
    classes: int  # are numbered from 0 up to this

    def genuine_by_class(self) -> Int[np.ndarray, " classes"]:
        """Counts the pairs of each class with both images in it."""
        ours, theirs = self.images_by_class()
        return ours * (ours - 1) // 2 if self.symmetric else ours * theirs

    def images_by_class(self) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
        """Counts the images of each class on both sides."""
        ours, theirs = (np.bincount(side.classes, minlength=self.classes) for side in (self.rows, self.columns))
        return ours, theirs

    def totals(self) -> tuple[int, int]:
        """Counts the pairs of one class, and those of two classes."""
        images, others = len(self.rows.classes), len(self.columns.classes)
        genuine = int(self.genuine_by_class().sum())
        return genuine, (images * (images - 1) // 2 if self.symmetric else images * others) - genuine


class Block(NamedTuple):
    """The pairs of some rows and some columns."""

    similarities: Int32[np.ndarray, "rows columns"]  # in STEPS
    genuine: Bool[np.ndarray, "rows columns"] | None  # pairs of one class. None: there are none
    impostor: Bool[np.ndarray, "rows columns"] | None  # pairs of two classes. None: all are
    row_classes: Int32[np.ndarray, " rows"]
    column_classes: Int32[np.ndarray, " columns"]

    def of_one_class(self) -> Int32[np.ndarray, " pairs"]:
        """The similarities of the pairs of one class."""
        return self.similarities[:0, 0] if self.genuine is None else self.similarities[self.genuine]

    def of_two_classes(self) -> Int32[np.ndarray, " pairs"]:
        """The similarities of the pairs of two classes."""
        return self.similarities.ravel() if self.impostor is None else self.similarities[self.impostor]


def pair(queries: Images, gallery: Images) -> Pairs:
    """Pairs queries with a gallery or, if it is the same object, with each other.

    Raises:
        UserError: if all pairs are of one class, or none is.
    """
    rows = _sorted(queries)
    columns = rows if gallery is queries else _sorted(gallery)
    classes = int(max(rows.classes[-1], columns.classes[-1])) + 1
    pairs = Pairs(rows, columns, gallery is queries, classes)
    genuine, impostor = pairs.totals()
    if not (genuine and impostor):
        which = "two classes" if genuine else "one class"
        raise UserError(
            f"The {len(rows.classes):,} images of {classes:,} classes have no pairs of {which}. Verification needs "
            "pairs of one class and pairs of two: evaluate on two classes or more, with two images or more in one."
        )
    return pairs


def add_up(pairs: Pairs, of_block: Callable[[Block], np.ndarray], *, of_one_class: bool = False) -> np.ndarray:
    """Adds up what a function computes of each block, on all cores.

    Args:
        pairs: of images.
        of_block: computes an array of the same shape for each block. It runs in threads.
        of_one_class: only visit blocks that may have pairs of one class.
    """
    threads = min(os.cpu_count() or 1, -(-len(pairs.rows.classes) // BLOCK))
    stopped = threading.Event()  # by Ctrl-C, which only the main thread receives

    def stripe(thread: int) -> np.ndarray | None:
        total = None
        for block in _blocks(pairs, thread, threads, of_one_class):
            if stopped.is_set():
                break
            found = of_block(block)
            total = found if total is None else np.add(total, found, out=total)
        return total

    # Each thread multiplies by itself, so a product's bits do not depend on the number of cores.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        try:
            return np.sum([total for total in pool.map(stripe, range(threads)) if total is not None], axis=0)
        finally:
            stopped.set()


def block_similarities(
    rows: Float32[np.ndarray, "block dim"], columns: Float32[np.ndarray, "block dim"]
) -> Int32[np.ndarray, "block block"]:
    """Computes the cosines of unit vectors in STEPS, rounded down."""
    cosines = rows @ columns.T
    cosines *= np.float32(STEPS)  # a power of two: exact
    return np.floor(cosines, out=cosines).astype(np.int32)


def in_block(vectors: Float32[np.ndarray, "rows dim"], start: int) -> Float32[np.ndarray, "block dim"]:
    """Returns BLOCK rows from `start`, padded with zeros.

    All products have the same shape, so a pair's similarity does not depend on its place in a block.
    """
    some = vectors[start : start + BLOCK]
    return some if len(some) == BLOCK else np.pad(some, ((0, BLOCK - len(some)), (0, 0)))


def _sorted(images: Images) -> Images:
    order = np.argsort(images.classes, kind="stable")
    return Images(images.vectors[order], images.classes[order])


def _blocks(pairs: Pairs, thread: int, threads: int, of_one_class: bool) -> Iterator[Block]:
    """Yields the blocks of every so many rows."""
    rows, columns, symmetric, _ = pairs
    for row in range(thread * BLOCK, len(rows.classes), threads * BLOCK):
        row_classes = rows.classes[row : row + BLOCK]
        vectors = in_block(rows.vectors, row)
        for column in range(row if symmetric else 0, len(columns.classes), BLOCK):
            column_classes = columns.classes[column : column + BLOCK]
            near = row_classes[0] <= column_classes[-1] and column_classes[0] <= row_classes[-1]
            if near or not of_one_class:
                similarities = block_similarities(vectors, in_block(columns.vectors, column))
                similarities = similarities[: len(row_classes), : len(column_classes)]
                same = np.equal.outer(row_classes, column_classes) if near else None
                yield _block(similarities, same, row_classes, column_classes, itself=symmetric and row == column)


def _block(
    similarities: Int32[np.ndarray, "rows columns"],
    same: Bool[np.ndarray, "rows columns"] | None,
    row_classes: Int32[np.ndarray, " rows"],
    column_classes: Int32[np.ndarray, " columns"],
    *,
    itself: bool,
) -> Block:
    if same is None:
        return Block(similarities, None, None, row_classes, column_classes)
    # Of a block with itself, each pair once, and no image with itself.
    genuine, impostor = (np.triu(same, 1), np.triu(~same, 1)) if itself else (same, ~same)
    return Block(similarities, genuine, impostor, row_classes, column_classes)

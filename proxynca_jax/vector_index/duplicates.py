"""Groups of images in an index that are the same or nearly so: copies, smaller versions, pictures of one moment."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from proxynca_jax.errors import UserError
from proxynca_jax.machine.progress import Progress
from proxynca_jax.vector_index.engine import About, Engine

# From which on two images are similar, by the embeddings of a run and by the features of weights: docs/searching.md.
MIN_SCORE_OF_RUNS, MIN_SCORE_OF_FEATURES = 0.99, 0.95
TILE = 2048  # rows and columns of a product of vectors; all its pairs need 64 MB
PAIRS_AT_ONCE = 4_000_000  # that wait to be joined, another 64 MB


class Duplicate(NamedTuple):
    """An image of a group."""

    score: float  # cosine similarity to the group's first image
    path: str
    label: str
    same_content: bool  # the file has the same bytes as that of the first image


def default_min_score(about: About) -> float:
    """Returns the least similarity of near-duplicates for the network of an index."""
    return MIN_SCORE_OF_RUNS if "checkpoint" in about else MIN_SCORE_OF_FEATURES


def find_duplicates(engine: Engine, min_score: float, *, progress: bool = False) -> list[list[Duplicate]]:
    """Finds groups of images in which each is similar to another one of the group.

    All pairs are compared, so the time grows with the square of the images. Memory holds the vectors, 4 bytes a number.

    Args:
        engine: an index.
        min_score: the cosine similarity from which on two images are similar.
        progress: show a bar on a terminal.

    Returns:
        The groups of two images and more, the largest first, each in the order of the paths.

    Raises:
        UserError: if the index does not fit into memory.
    """
    paths, labels, digests, vectors = _read(engine)
    groups = np.arange(len(paths))
    with Progress("comparing", images=len(paths), shown=progress) as bar:
        waiting, count = [_same(digests)], 0
        for done, pairs in _similar(vectors, min_score):
            waiting.append(pairs)
            count += len(pairs)
            if count > PAIRS_AT_ONCE:
                groups = _join(groups, np.concatenate(waiting))
                waiting, count = [pairs[:0]], 0
            bar.advance(done)
    groups = _join(groups, np.concatenate(waiting))

    def describe(first: int, image: int) -> Duplicate:
        score = min(float(vectors[first] @ vectors[image]), 1.0)
        return Duplicate(score, paths[image], labels[image], digests[image] == digests[first])

    order = np.argsort(groups, kind="stable")
    members = (list(group) for _, group in itertools.groupby(order.tolist(), key=groups.__getitem__))
    found = [sorted(group, key=paths.__getitem__) for group in members if len(group) > 1]
    found.sort(key=lambda group: (-len(group), paths[group[0]]))
    return [[describe(group[0], image) for image in group] for group in found]


def _read(engine: Engine) -> tuple[list[str], list[str], list[str], Float32[np.ndarray, "images dim"]]:
    described = engine.describe()
    assert described is not None
    about, count = described
    try:
        vectors = np.empty((count, about["dimensions"]), np.float32)
    except MemoryError as error:
        size = 4 * count * about["dimensions"] / 2**30
        raise UserError(f"the {count:,} vectors of {engine.address} need {size:.0f} GiB of memory.") from error
    texts: tuple[list[str], ...] = ([], [], [])
    start = 0
    for batch in engine.read(("path", "label", "digest", "vector")):
        rows = min(len(batch), count - start)  # another process may add some meanwhile
        *columns, vector = (column.slice(0, rows) for column in batch.columns)
        vectors[start : start + rows] = vector.flatten().to_numpy().reshape(rows, -1)
        start += rows
        for seen, column in zip(texts, columns, strict=True):
            seen += column.to_pylist()
    return *texts, vectors[:start]


def _same(digests: Sequence[str]) -> Int64[np.ndarray, "pairs 2"]:
    """Returns pairs of images with the same content, each with the first one that has it."""
    first = dict[str, int]()
    pairs = [(first.setdefault(digest, image), image) for image, digest in enumerate(digests)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _similar(
    vectors: Float32[np.ndarray, "images dim"], min_score: float
) -> Iterator[tuple[int, Int64[np.ndarray, "pairs 2"]]]:
    """Yields all similar pairs, tile by tile, and how many more images have been compared with all others by then."""
    for row in range(0, len(vectors), TILE):
        for column in range(row, len(vectors), TILE):
            scores = vectors[row : row + TILE] @ vectors[column : column + TILE].T
            similar = np.flatnonzero(scores >= min_score)  # ten times as fast as argwhere
            left, right = np.divmod(similar, scores.shape[1])
            pairs = np.stack([left + row, right + column], 1)
            yield 0, pairs[pairs[:, 0] < pairs[:, 1]]
        yield min(TILE, len(vectors) - row), np.empty((0, 2), np.int64)


def _join(groups: Int64[np.ndarray, " images"], pairs: Int64[np.ndarray, "pairs 2"]) -> Int64[np.ndarray, " images"]:
    """Joins the groups of the images of each pair. A group is a number."""
    left, right = groups[pairs].T
    size = len(groups)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(size, size))
    _, joined = connected_components(graph, directed=False)
    return joined[groups].astype(np.int64)

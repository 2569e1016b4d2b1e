"""What the embeddings say of each query and each class: right or wrong, what was found, what is confused with what."""

import collections
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from proxynca_jax.metrics.neighbours import Neighbours, nearest
from proxynca_jax.metrics.retrieval import NO_MATCH, precisions_at_r, ranks
from proxynca_jax.report.run_page.read import Scored

NEIGHBOURS = 8


class Findings(NamedTuple):
    """Of each query."""

    ranks: Int[np.ndarray, " queries"]  # as `retrieval.ranks`
    average_precisions: Float[np.ndarray, " queries"]  # at R; NaN without a match
    neighbours: Neighbours  # the NEIGHBOURS nearest

    @property
    def right(self) -> Bool[np.ndarray, " queries"]:
        """Whether the nearest image is of the query's class."""
        return self.ranks == 0

    @property
    def wrong(self) -> Bool[np.ndarray, " queries"]:
        """Whether it is of another class, though there is one of the query's."""
        return self.ranks > 0

    @property
    def counted(self) -> Bool[np.ndarray, " queries"]:
        """Whether there is an image of the query's class to find. Only such queries count."""
        return self.ranks != NO_MATCH


class ClassScore(NamedTuple):
    """A class of the queries."""

    name: str
    images: int
    recall_at_1: float  # percent
    map_at_r: float  # percent
    taken_for: str  # the class that its wrong queries find most often; empty: none is wrong


class Confusion(NamedTuple):
    """Two classes whose queries find each other's images first."""

    one: int
    other: int
    times: int  # queries of either class whose nearest image is of the other
    queries: list[int]  # those of smallest distance first


def find(scored: Scored) -> Findings:
    """Searches with every query of a run."""
    labels, gallery = scored.evaluation.queries.labels, scored.gallery
    average_precisions, _ = precisions_at_r(scored.embeddings, labels, gallery=gallery)
    found = Findings(
        ranks(scored.embeddings, labels, gallery=gallery),
        average_precisions,
        nearest(scored.embeddings, labels, count=NEIGHBOURS, gallery=gallery),
    )
    _settle_ties(found, scored.searched.labels[found.neighbours.found] == labels[:, None])
    return found


def _settle_ties(found: Findings, own: Bool[np.ndarray, "queries count"]) -> None:
    """Puts first what the ranks say is nearest. The search and the ranks differ only in ties within rounding.

    Args:
        found: its neighbours are changed.
        own: whether each neighbour is of the query's class.
    """
    for query in np.flatnonzero((own[:, 0] != found.right) & found.counted).tolist():
        fitting = np.flatnonzero(own[query] == found.right[query])
        for values in found.neighbours if len(fitting) else ():
            values[query, : fitting[0] + 1] = np.roll(values[query, : fitting[0] + 1], 1)


def worst_queries(found: Findings, labels: Int[np.ndarray, " queries"], count: int) -> list[int]:
    """Chooses wrong queries: the worst one of each class, the worst class first, then the worst of all others.

    A query is worse if more images of other classes are closer than the nearest of its own.
    """
    order = np.argsort(-found.ranks, kind="stable")
    order = order[found.wrong[order]]
    _, firsts = np.unique(labels[order], return_index=True)
    firsts = np.sort(firsts)
    return np.concatenate([order[firsts], np.delete(order, firsts)])[:count].tolist()


def draw_queries(chosen: Bool[np.ndarray, " queries"], count: int, seed: int) -> list[int]:
    """Draws different queries with equal chances from the chosen ones."""
    return np.random.default_rng(seed).permutation(np.flatnonzero(chosen))[:count].tolist()


def class_scores(scored: Scored, found: Findings) -> list[ClassScore]:
    """Scores each class that has queries to count."""
    names, labels = scored.evaluation.queries.class_names, scored.evaluation.queries.labels
    counted, taken_for = found.counted, collections.defaultdict(collections.Counter)
    for query, nearest_class in _confused(scored, found):
        taken_for[labels[query]][nearest_class] += 1
    images = np.bincount(labels[counted], minlength=len(names))
    recalls = np.bincount(labels, found.right, minlength=len(names))
    precisions = np.bincount(labels[counted], found.average_precisions[counted], minlength=len(names))
    return [
        ClassScore(
            names[label],
            int(images[label]),
            100 * float(recalls[label] / images[label]),
            100 * float(precisions[label] / images[label]),
            names[taken_for[label].most_common(1)[0][0]] if taken_for[label] else "",
        )
        for label in np.flatnonzero(images).tolist()
    ]


def confusions(scored: Scored, found: Findings, count: int) -> list[Confusion]:
    """Finds the pairs of classes that are confused most often, in either direction."""
    labels, distances = scored.evaluation.queries.labels, found.neighbours.distances
    pairs = collections.defaultdict[tuple[int, int], list[int]](list)
    for query, nearest_class in _confused(scored, found):
        one, other = sorted((int(labels[query]), nearest_class))
        pairs[one, other].append(query)
    most = sorted(pairs.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:count]
    return [
        Confusion(one, other, len(queries), sorted(queries, key=lambda query: float(distances[query, 0])))
        for (one, other), queries in most
    ]


def _confused(scored: Scored, found: Findings) -> list[tuple[int, int]]:
    """Lists the wrong queries, each with the class of its nearest image."""
    labels = scored.evaluation.queries.labels
    wrong = np.flatnonzero(found.wrong)
    classes = scored.searched.labels[found.neighbours.found[wrong, 0]]
    pairs = zip(wrong.tolist(), classes.tolist(), strict=True)
    return [(query, other) for query, other in pairs if other != labels[query]]

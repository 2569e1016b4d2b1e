"""Queries and what they found, as the templates of a page show them."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from proxynca_jax.data.split import Split
from proxynca_jax.report.run_page.findings import Findings
from proxynca_jax.report.run_page.pictures import Pictures
from proxynca_jax.report.run_page.read import Scored

RIGHT, WRONG = "right", "wrong"


class Tile(NamedTuple):
    """An image of a page."""

    picture: str  # its key; empty: there was no room for it
    class_name: str
    file: str
    state: str = ""  # RIGHT or WRONG: a neighbour of the query's class, or of another
    distance: str = ""  # of the query


class Row(NamedTuple):
    """A query and its nearest images."""

    query: Tile
    found: list[Tile]
    outcome: str  # RIGHT or WRONG: whether the nearest is of the query's class
    rank: int  # of its nearest image of its class; 0 is the nearest of all


class Rows:
    """Makes rows and tiles of a run."""

    def __init__(self, scored: Scored, found: Findings, pictures: Pictures):
        self._scored, self._found, self._pictures = scored, found, pictures

    def rows(self, queries: Sequence[int]) -> list[Row]:
        """Makes a row for each query."""
        return [self._row(query) for query in queries]

    def query(self, query: int) -> Tile:
        """Makes the tile of a query."""
        return self._tile("query", self._scored.evaluation.queries, query)

    def neighbour(self, query: int, place: int) -> Tile:
        """Makes the tile of what a query found at a place, from 0."""
        scored, (found, distances) = self._scored, self._found.neighbours
        image = int(found[query, place])
        side = "query" if scored.gallery is None else "gallery"
        right = scored.searched.labels[image] == scored.evaluation.queries.labels[query]
        tile = self._tile(side, scored.searched, image)
        return tile._replace(state=RIGHT if right else WRONG, distance=_short(float(distances[query, place])))

    def trained(self, image: int) -> Tile:
        """Makes the tile of a training image."""
        return self._tile("train", self._scored.train, image)

    def _row(self, query: int) -> Row:
        count = self._found.neighbours.found.shape[1]
        found = [self.neighbour(query, place) for place in range(count)]
        rank = int(self._found.ranks[query])
        return Row(self.query(query), found, RIGHT if rank == 0 else WRONG, rank)

    def _tile(self, side: str, split: Split, image: int) -> Tile:
        name = PurePath(split.names[image]).name
        return Tile(self._pictures.key(side, split, image), split.class_names[split.labels[image]], name)


def _short(distance: float) -> str:
    """Writes a distance with three decimals. Those of a network that has nearly collapsed take more."""
    return f"{distance:.3f}" if distance >= 0.001 or distance == 0 else f"{distance:.0e}"

"""Random search, with the same funnel: the baseline that an evolution has to beat (Li and Talwalkar
2019, arXiv 1902.07638).

A proposal is a random walk of mutations from a random seed; what has been found before does not
matter. Every step of the walk is a valid cell, so the cells it can reach are those that evolution
can reach.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cellgraph import CellGraph
from search.algorithms.funnelled import Funnelled
from search.archive import Architecture


class RandomWalk(Funnelled):
    """Ask/tell state of random search."""

    def _parents(self, rng: random.Random) -> list[Architecture]:
        return [rng.choice(self.seeds)]

    def _epoch(self) -> int:
        return 0  # seeds stay what they are

    def _vary(
        self, parents: Sequence[Architecture], rng: random.Random
    ) -> tuple[Sequence[Architecture], str, CellGraph | None]:
        cell = parents[0].cell
        for _ in range(rng.randint(1, self.config.walk)):
            child = self._mutate(cell, rng)
            if child is None or len(child.nodes) > self.config.mutation.max_nodes:
                return parents, "walk", None
            cell = child
        return parents, "walk", cell

    def _survives(self, architecture: Architecture) -> None:
        """Nobody has descendants."""

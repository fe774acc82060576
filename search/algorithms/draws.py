"""Children as they are drawn, which can be done before it is their turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cellgraph as cg
from cellgraph import CellGraph
from search.archive import Architecture


@dataclass
class Draw:
    """A child: simplified, and named after its key; None where no valid cell came out."""

    parents: Sequence[Architecture]
    origin: str  # mutation, crossover, walk
    child: CellGraph | None

    @classmethod
    def of(cls, parents: Sequence[Architecture], origin: str, child: CellGraph | None) -> Draw:
        if child is not None:
            child = cg.simplify(child)
            key = child.key()
            child = child.renamed(f"cell_{key[:8]}", key)
        return cls(parents, origin, child)

    @cached_property
    def fingerprint(self) -> str:
        """That of the child. Raises ValueError where there is none."""
        if self.child is None:
            raise ValueError("no child was drawn")
        return cg.fingerprint(self.child)

    def inspect(self) -> None:
        """Find out what a child is asked for when it is new; cells remember their own text."""
        if self.child is not None:
            _ = self.fingerprint, str(self.child)


@dataclass
class Step:
    """A step of a search that has begun: its generator, whether it proposes a cell, and the
    children that it draws one after the other. Void when the epoch is another one."""

    epoch: int  # of the population, when it began
    rng: random.Random
    proposes: bool
    draws: Iterator[Draw]

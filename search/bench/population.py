"""The cells that are measured: named ones, and random ones as a search would try them."""

from __future__ import annotations

import random

import cellgraph as cg
from cellgraph import CellGraph
from search.bench.request import Request
from search.config import MutationConfig

GENERATIONS = 4  #: at most, from the zoo to a mutant

#: Of one generation: both ways that a search may take.
EDITS = (None, (1, 3))


def named(request: Request) -> list[CellGraph]:
    """The cells that are asked for, each once, under its first name. Raises `CellError`."""
    cells: dict[str, CellGraph] = {}
    for name in cg.zoo.names() if request.cells is None else request.cells:
        cell = cg.load(name)
        cells.setdefault(cell.key(), cell)
    return list(cells.values())


def mutants(seed: int, count: int) -> list[CellGraph]:
    """Random cells of 1 to `GENERATIONS` generations from the zoo, no two of one key, none of the
    zoo; the first ones do not depend on the count."""
    rng, zoo = random.Random(seed), [cg.zoo.get(name) for name in cg.zoo.names()]
    largest = MutationConfig().max_nodes  # what a search refuses need not be fast
    seen, made = {cell.key() for cell in zoo}, list[CellGraph]()
    while len(made) < count:
        cell = rng.choice(zoo)
        for _ in range(rng.randint(1, GENERATIONS)):
            cell = cg.mutate(cell, rng, edits=rng.choice(EDITS)) or cell
        if cell.key() not in seen and len(cell.nodes) <= largest:
            seen.add(cell.key())
            made.append(cell)
    return made

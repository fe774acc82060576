"""How fast one core proposes cells: mutate, validate, simplify, key; and what tells cells apart.

Run as a module it is a measurement in a process of its own (`search.bench.child`).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from search.bench import child
from search.bench.child import Say
from search.bench.population import mutants
from search.config import MutationConfig

PARENTS = 100  #: as many as the paper's pool has
ROUNDS, CHILDREN = 5, 400  #: distinct children of every round
EDITS: dict[str, tuple[int, int] | None] = {"1 to 3 edits": (1, 3), "per node": None}


def answer(document: dict[str, Any], say: Say) -> dict[str, Any]:
    """proposals: by kind of edits, the distinct valid children per second of each round, and draws
    per child; steps: the operations per second, each on cells that it has not met."""
    seed: int = document["seed"]
    parents = mutants(seed, PARENTS)
    for cell in parents:  # as those of a pool they are known, and have their keys
        cell.key()
    made: list[CellGraph] = []
    proposals = {}
    for number, (kind, edits) in enumerate(EDITS.items()):
        say("proposals", number, len(EDITS))
        rounds, draws, seen = [], 0, {cell.key() for cell in parents}
        for turn in range(ROUNDS):
            rng = random.Random(f"{seed}/{kind}/{turn}")
            begin = time.perf_counter()
            children, drawn = _propose(parents, rng, edits, seen)
            rounds.append(CHILDREN / (time.perf_counter() - begin))
            draws += drawn
            made += children
        proposals[kind] = {"rounds": rounds, "draws_per_child": draws / (ROUNDS * CHILDREN)}
    return {"proposals": proposals, "steps": _steps(made, say)}


def _propose(
    parents: list[CellGraph],
    rng: random.Random,
    edits: tuple[int, int] | None,
    seen: set[str],
) -> tuple[list[CellGraph], int]:
    """`CHILDREN` valid cells in their normal form, of no key in `seen`, and the draws they took."""
    largest = MutationConfig().max_nodes
    found: list[CellGraph] = []
    draws = 0
    while len(found) < CHILDREN:
        draws += 1
        cell = cg.mutate(rng.choice(parents), rng, edits=edits)  # None where it is not valid
        if cell is None or len(cell.nodes) > largest:
            continue
        cell = cg.simplify(cell)
        key = cell.key()
        if key not in seen:
            seen.add(key)
            found.append(cell)
    return found, draws


def _steps(cells: list[CellGraph], say: Say) -> dict[str, float]:
    """Operations per second, the median of rounds."""
    texts = [str(cell) for cell in cells]
    operations: dict[str, Callable[[CellGraph], object]] = {
        "simplify": cg.simplify,
        "key": CellGraph.key,
        "fingerprint": cg.fingerprint,
        "print": str,
    }
    found: dict[str, float] = {}
    size = len(texts) // ROUNDS
    for number, (name, operation) in enumerate(operations.items()):
        say(f"{name}s of {len(texts)} cells", number, len(operations))
        rates = []
        for turn in range(ROUNDS):
            fresh = [cg.parse(text) for text in texts[turn * size : (turn + 1) * size]]
            begin = time.perf_counter()
            for cell in fresh:
                operation(cell)
            rates.append(size / (time.perf_counter() - begin))
        found[name] = statistics.median(rates)
    begin = time.perf_counter()
    for text in texts:
        cg.parse(text)
    return {**found, "parse": len(texts) / (time.perf_counter() - begin)}


if __name__ == "__main__":
    child.serve(answer)

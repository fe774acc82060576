"""How long it takes until a new cell can run: from its equations to a loaded library.

A process keeps what it has loaded, so this is measured in processes of their own: run as a module,
the file reads one JSON document, loads all cells in it, and prints another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.cache import VARIABLE
from search.bench.population import mutants
from search.bench.timing import Times, percentile
from search.errors import SearchError

CELLS = 100
BATCHES, TOGETHER = 3, 10  #: batches of cells that are compiled in one run


@dataclass(frozen=True)
class Building:
    """Seconds. matrix: the one-off build of the matrix kernels; compiled, cached: of every cell,
    lowering included; lowering: what comes before compiler or cache is asked; together: of a cell
    among ten."""

    matrix: float
    compiled: Times
    cached: Times
    lowering: Times
    together: Times

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "cells": len(self.compiled.runs),
            "matrix_kernels": self.matrix,
            "median": self.compiled.median,
            "p90": percentile(self.compiled.runs, 90),
            "lowering_median": self.lowering.median,
            "cached_median": self.cached.median,
            "cached_p90": percentile(self.cached.runs, 90),
            "cells_a_batch": TOGETHER,
            "batched_median": self.together.median,
        }


def measure(seed: int, dtype: str, say: Callable[[str, int, int], None]) -> Building:
    """Build random cells into an empty cache, then load them from it. Raises `SearchError`."""
    cells = mutants(seed, CELLS + BATCHES * TOGETHER)
    single, rest = cells[:CELLS], cells[CELLS:]
    batches = [rest[i : i + TOGETHER] for i in range(0, len(rest), TOGETHER)]
    with tempfile.TemporaryDirectory() as folder:
        say(f"compiling {len(cells)} cells", 0, 2)
        built = _child(single, batches, dtype, folder)
        say("loading them from the cache", 1, 2)
        loaded = _child(single, [], dtype, folder)
    return Building(
        matrix=built["matrix"],
        compiled=Times(tuple(lower + load for lower, load in built["cells"])),
        cached=Times(tuple(lower + load for lower, load in loaded["cells"])),
        lowering=Times(tuple(lower for lower, _ in built["cells"])),
        together=Times(tuple(built["batches"])),
    )


def _child(
    cells: Sequence[CellGraph], batches: Sequence[Sequence[CellGraph]], dtype: str, cache: str
) -> Any:
    document = {
        "double": dtype == "float64",
        "cells": [str(cell) for cell in cells],
        "batches": [[str(cell) for cell in batch] for batch in batches],
    }
    path = os.pathsep.join(filter(None, sys.path))  # as here, whether installed or not
    done = subprocess.run(
        [sys.executable, "-P", "-m", "search.bench.building"],
        input=json.dumps(document),
        env={**os.environ, "PYTHONPATH": path, VARIABLE: cache},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C is for us alone
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SearchError(f"cells cannot be compiled: {reason}")
    return json.loads(done.stdout)


def answer(document: dict[str, Any]) -> dict[str, Any]:
    """Seconds: of the matrix kernels, (lowering, loading) of each cell, and of one cell of each
    batch."""
    from cellgraph.kernels import compiler, matrix
    from cellgraph.kernels.emit import emit
    from cellgraph.kernels.planner import plan

    double: bool = document["double"]

    def lowered(text: str) -> compiler.Source:
        return emit(plan(cg.parse(text))).unit()

    clock = time.perf_counter
    begin = clock()
    matrix.Matrices(double=double)
    seconds: dict[str, Any] = {"matrix": clock() - begin, "cells": [], "batches": []}
    for text in document["cells"]:
        begin = clock()
        source = lowered(text)
        middle = clock()
        compiler.load([source], double=double)
        seconds["cells"].append((middle - begin, clock() - middle))
    for batch in document["batches"]:
        begin = clock()
        compiler.load([lowered(text) for text in batch], double=double)
        seconds["batches"].append((clock() - begin) / len(batch))
    return seconds


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))

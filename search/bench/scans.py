"""Forward and backward through long sequences, for cells that need no loop over time: the scan
beside the loops that it replaces and beside torch's LSTM, on all cores.

Letters: T time steps, B batch rows, H units and input width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cellgraph import CellGraph
from cellgraph.recurrence import solve
from search.bench.cells import EAGER, LSTM, NATIVE, Pass, modules
from search.bench.population import named
from search.bench.request import Request, Shape
from search.bench.timing import Effort, interleaved

SCAN = "scan"
WAYS = (SCAN, NATIVE, EAGER, LSTM)
EFFORT = Effort(seconds=2.0)


@dataclass(frozen=True)
class Row:
    """One cell at one shape. ms: the median of each way; over_scan: how many times as long as the
    scan the others take; difference: of the outputs of scan and loop, the largest."""

    cell: str
    shape: Shape
    rounds: int
    ms: dict[str, float]
    over_scan: dict[str, float]
    difference: float

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "shape": list(self.shape)}


def scannable(request: Request) -> list[CellGraph]:
    """Those of the cells that need no loop. Raises `CellError`."""
    return [cell for cell in named(request) if solve(cell) is not None]


def measure(request: Request, say: Callable[[str, int, int], None]) -> Iterator[Row]:
    """Every such cell at every long shape. Raises `CellError`."""
    cells, shapes = scannable(request), list(dict.fromkeys(request.long_shapes))
    for number, shape in enumerate(shapes):
        for index, cell in enumerate(cells):
            say(f"scans at {shape}", number * len(cells) + index, len(shapes) * len(cells))
            with _threads(os.cpu_count() or 1):
                yield _row(cell, shape, request)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch; who measures next has as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(cell: CellGraph, shape: Shape, request: Request) -> Row:
    dtype, generator = getattr(torch, request.dtype), torch.Generator().manual_seed(request.seed)
    x, weight = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    made = modules(cell, shape, dtype, WAYS, generator)
    passes = {
        way: Pass(module, x, weight, input_grad=request.input_grad) for way, module in made.items()
    }
    with torch.no_grad():
        difference = float((made[SCAN](x)[0] - made[EAGER](x)[0]).abs().max())
    variants: dict[str, Callable[[], object]] = dict(passes)
    times = interleaved(variants, EFFORT)
    return Row(
        cell=cell.name,
        shape=shape,
        rounds=len(times[SCAN].runs),
        ms={way: 1000 * times[way].median for way in WAYS},
        over_scan={way: times[way].over(times[SCAN]) for way in WAYS if way != SCAN},
        difference=difference,
    )

"""`cellsearch bench kernels`: compiled cells beside what they replace, on one thread of this
machine; and cells that need no loop over time, on all of them.

Lives here: which measurements follow each other, and their JSON document. What is measured stands
in rates.py, cells.py, scans.py, building.py and training.py, how it is told in summary.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluators.train import prepare_process
from search.bench import building, cells, machine, population, rates, scans, training
from search.bench.building import Building
from search.bench.cells import Row as CellRow
from search.bench.rates import Rate, Yardstick
from search.bench.request import Request
from search.bench.scans import Row as ScanRow
from search.bench.training import Row as StepRow

VERSION = 1  #: of the JSON document


@dataclass
class Findings:
    """What has been measured; empty, or None, where it was not asked for."""

    request: Request
    machine: dict[str, Any]
    rates: list[Rate] = field(default_factory=list)
    cells: list[CellRow] = field(default_factory=list)
    scans: list[ScanRow] = field(default_factory=list)
    building: Building | None = None
    steps: list[StepRow] = field(default_factory=list)

    @property
    def best(self) -> Rate | None:
        """The machine's best rate."""
        return max(self.rates, key=lambda rate: rate.gflops, default=None)

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        asked = self.request
        request = {
            **asdict(asked),
            "shapes": [list(shape) for shape in asked.shapes],
            "long_shapes": [list(shape) for shape in asked.long_shapes],
        }
        return {
            "version": VERSION,
            "machine": self.machine,
            "request": request,
            "rates": [asdict(rate) for rate in self.rates],
            "best_rate": asdict(self.best) if self.best is not None else None,
            "cells": [row.data() for row in self.cells],
            "scans": [row.data() for row in self.scans],
            "compile": self.building.data() if self.building is not None else None,
            "steps": [row.data() for row in self.steps],
        }


def measure(request: Request, say: Callable[[str, int, int], None]) -> Findings:
    """Everything that is asked for; for the rest of the process there is one thread, and denormals
    are zero. Raises `CellError` and `SearchError`."""
    prepare_process()
    population.named(request)  # a name that nobody knows is an error now, not in a minute
    found = Findings(request, machine.describe())
    with ExitStack() as stack:
        yardstick: Yardstick | None = None
        if "rates" in request.parts:
            found.rates, yardstick = stack.enter_context(rates.measure(request.dtype, say))
        if "cells" in request.parts:
            found.cells = list(cells.measure(request, yardstick, say))
    if "scan" in request.parts:
        found.scans = list(scans.measure(request, say))
    if "compile" in request.parts:
        found.building = building.measure(request.seed, request.dtype, say)
    if "steps" in request.parts:
        found.steps = list(training.measure(request.seed, say))
    return found

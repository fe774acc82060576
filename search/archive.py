"""What a search knows of every cell it has met: compact, as there are a hundred thousand of them.

State and arithmetic; no drawing, no training.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from evaluators.fitness import score
from search.funnel import Stage

# Of zlib: 2^11 bytes of raw data are looked back on, and little memory is taken. A cell has a few
# hundred bytes; what zlib takes by default is 256 KiB, which the system hands out page by page.
_WINDOW, _MEMORY = -11, 4


class Architecture:
    """A cell, by its key, with every setting it was trained on: stage -> index in the stage's grid
    -> metric.

    A setting that failed, or was stopped, has the metric None: it counts as tried and improves
    nothing. The graph itself is held while it is busy. Parents are read from their text, which
    names equations that had no name: what is drawn from a cell must not depend on whether this
    process or the journal has it from its own birth.
    """

    __slots__ = (
        "_best",
        "_graph",
        "_text",
        "_tried",
        "alive",
        "busy",
        "candidate",
        "key",
        "passed_filter",
    )

    def __init__(self, candidate: int, key: str, cell: CellGraph | str) -> None:
        self.candidate, self.key = candidate, key
        text = cell if isinstance(cell, str) else str(cell)
        packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW, _MEMORY)
        self._text = packer.compress(text.encode()) + packer.flush()
        self._graph = None if isinstance(cell, str) else cell
        # A dictionary has 200 bytes: where nothing is under way, a tuple does.
        self._tried: dict[str, dict[int, float | None]] | tuple[tuple[str, int, Any], ...] = {}
        self._best: dict[str, float | None] = {}  # by stage, of members: asked all the time
        self.passed_filter = False
        self.busy = True  # units of it are under way
        self.alive = 0  # how many pools and populations it is a member of

    @property
    def cell(self) -> CellGraph:
        if self._graph is not None:
            return self._graph
        cell = cg.parse(self.text)
        if self.busy or self.alive:
            self._graph = cell
        return cell

    @property
    def text(self) -> str:
        """Its notation."""
        return zlib.decompress(self._text, _WINDOW).decode()

    @property
    def name(self) -> str:
        """The name of its cell."""
        return name_in(self.text)

    def rest(self) -> None:
        """Nothing is under way any more."""
        self.busy, self._graph = False, None
        self._fold()

    def leave(self) -> None:
        """It is no longer a member of a pool or population."""
        self.alive -= 1
        if not self.busy:
            self._graph = None
            self._fold()

    def on(self, stage: Stage) -> Mapping[int, float | None]:
        """What it has been trained on there."""
        return self._unfolded().setdefault(stage.name, {})

    def note(self, stage: Stage, index: int, value: float | None) -> None:
        """The result of a setting."""
        self._unfolded().setdefault(stage.name, {})[index] = value
        self._best.pop(stage.name, None)

    def best(self, stage: Stage) -> float | None:
        """The quality of an architecture is that of its best setting so far (Jozefowicz et al.
        2015, 3.1)."""
        if not self.alive:
            return stage.best(list(self.on(stage).values()))
        if stage.name not in self._best:
            self._best[stage.name] = stage.best(list(self.on(stage).values()))
        return self._best[stage.name]

    def _unfolded(self) -> dict[str, dict[int, float | None]]:
        if isinstance(self._tried, tuple):
            rows, self._tried = self._tried, {}
            for name, index, value in rows:
                self._tried.setdefault(name, {})[index] = value
        return self._tried

    def _fold(self) -> None:
        if not self.alive and isinstance(self._tried, dict):
            values = ((name, i, v) for name, on in self._tried.items() for i, v in on.items())
            self._tried, self._best = tuple(values), {}

    def best_settings(self, stage: Stage, count: int) -> list[int]:
        """Indices of its `count` best settings in the stage's grid, best first; failures are left
        out."""
        sign = -1.0 if stage.task.maximise else 1.0
        ranked = sorted((sign * v, index) for index, v in self.on(stage).items() if v is not None)
        return [index for _, index in ranked[:count]]


def name_in(notation: str) -> str:
    """The name of a cell, read off the first line of its notation, which need not be parsed."""
    head = next(line for line in notation.splitlines() if line.startswith("cell "))
    return head.removeprefix("cell ").partition("(")[0]


class Archive:
    """Every architecture, by key and by fingerprint."""

    def __init__(self) -> None:
        self._by_key: dict[str, Architecture] = {}
        self._by_fingerprint: dict[int, str] = {}  # to the first key that had it

    def get(self, key: str) -> Architecture | None:
        return self._by_key.get(key)

    def add(self, architecture: Architecture, fingerprint: str | None) -> None:
        self._by_key[architecture.key] = architecture
        if fingerprint is not None:
            self._by_fingerprint.setdefault(int(fingerprint, 16), architecture.key)

    def equal(self, cell: CellGraph, fingerprint: str) -> Architecture | None:
        """The architecture that computes the same although it looks different. Equal fingerprints
        are a suspicion: other numbers have to give equal values too."""
        key = self._by_fingerprint.get(int(fingerprint, 16))
        if key is None or not cg.same_function(cell, self._by_key[key].cell):
            return None
        return self._by_key[key]


class Scores:
    """Results relative to the baseline's best so far."""

    def __init__(self, stages: Sequence[Stage], baseline: Architecture) -> None:
        self.stages = [stage for stage in stages if not stage.is_filter]
        self.baseline = baseline

    def score(self, architecture: Architecture) -> float:
        """The minimum over tasks of the ratio to the baseline's best; 0 when a task has no
        result."""
        return score(
            {stage.name: architecture.best(stage) for stage in self.stages},
            self._baseline(),
            {stage.name: stage.task.maximise for stage in self.stages},
        )

    def ratio(self, architecture: Architecture, stage: Stage) -> float:
        """The ratio to the baseline's best on one task; 0 without a result."""
        base = self.baseline.best(stage)
        if base is None:
            return 0.0
        return score(
            {stage.name: architecture.best(stage)},
            {stage.name: base},
            {stage.name: stage.task.maximise},
        )

    def _baseline(self) -> Mapping[str, float]:
        best = {stage.name: self.baseline.best(stage) for stage in self.stages}
        return {name: value for name, value in best.items() if value is not None}

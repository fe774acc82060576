"""`cellsearch bench search`: what a search costs beside its trainings, on this machine.

Lives here: which measurements follow each other, and their JSON document. Each runs in a process of
its own: proposals.py, ledger.py, overhead.py. How it is told stands in search_summary.py.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from search.bench import child, machine
from search.bench.child import Say
from search.bench.request import SearchRequest
from search.errors import SearchError

VERSION = 1  #: of the JSON document
#: Searches of fewer candidates take seconds, in which anything may happen: the median of several.
SMALL, REPEATS = 5_000, 3
CALLS = 10_000  #: without a search, at most
INLINE, RAY = "inline", "ray"
_MODULES = {name: f"search.bench.{name}" for name in ("proposals", "ledger", "overhead")}


@dataclass(frozen=True)
class Run:
    """One search without training, or its resumption.

    Of the whole run and of its last nine tenths, which leave out the seeds and warming up:
    milliseconds of wall time and of the driver's processor time, and units, for each candidate.
    growth: bytes of memory that the driver holds for each candidate; peak: bytes at most.
    tenths: milliseconds of a candidate in each tenth.
    """

    candidates: int
    seconds: float
    ms: float
    cpu_ms: float
    steady_ms: float
    steady_cpu_ms: float
    units: float
    growth: float
    peak: int
    tenths: tuple[float, ...]
    pool: str  # a digest of the final ranking
    funnel: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, candidates: int, found: dict[str, Any]) -> Run:
        marks = found["marks"]
        first, last = marks[0], marks[-1]
        # The first tenth, or the earliest mark after it in a run of a handful of candidates.
        begin = next((m for m in marks[1:-1] if m["done"] * 10 >= candidates), first)
        rest = last["done"] - begin["done"]
        if rest < 1:
            raise SearchError(f"{candidates} candidates are too few to measure anything")
        pairs = [(a, b) for a, b in pairwise(marks) if b["done"] > a["done"]]
        return cls(
            candidates=candidates,
            seconds=last["wall"],
            ms=1e3 * last["wall"] / candidates,
            cpu_ms=1e3 * last["cpu"] / candidates,
            steady_ms=1e3 * (last["wall"] - begin["wall"]) / rest,
            steady_cpu_ms=1e3 * (last["cpu"] - begin["cpu"]) / rest,
            units=last["units"] / candidates,
            growth=(last["memory"] - begin["memory"]) / rest,
            peak=found["peak"],
            tenths=tuple(1e3 * (b["wall"] - a["wall"]) / (b["done"] - a["done"]) for a, b in pairs),
            pool=found["pool"],
            funnel=tuple((name, tried, passed) for name, tried, passed in found["funnel"]),
        )


@dataclass(frozen=True)
class Calls:
    """Milliseconds of one no-op call: in one process, through Python's process pool, through our
    Ray workers; none of them with a search or a journal."""

    units: int
    direct: float
    processes: float
    ray: float


@dataclass
class Findings:
    """What has been measured; empty, or None, where it was not asked for.

    loops: by kind of workers; resumed: one run of each size.
    """

    request: SearchRequest
    machine: dict[str, Any]
    keys: dict[str, Any] | None = None
    ledger: dict[str, Any] | None = None
    loops: dict[str, list[Run]] = field(default_factory=dict)
    calls: Calls | None = None
    resumed: list[Run] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "version": VERSION,
            "machine": self.machine,
            "request": asdict(self.request),
            "keys": self.keys,
            "ledger": self.ledger,
            "loops": {kind: [asdict(run) for run in runs] for kind, runs in self.loops.items()},
            "calls": asdict(self.calls) if self.calls is not None else None,
            "resumed": [asdict(run) for run in self.resumed],
        }


def measure(request: SearchRequest, say: Say) -> Findings:
    """Everything that is asked for. Raises `SearchError`."""
    found = Findings(request, machine.describe())
    if "keys" in request.parts:
        found.keys = child.run(_MODULES["proposals"], {"seed": request.seed}, say)
    with _folder(request.folder) as folder:
        place = {"seed": request.seed, "folder": str(folder)}
        if "ledger" in request.parts:
            found.ledger = child.run(_MODULES["ledger"], place, say)
        if "loop" in request.parts:
            calls = {"what": "calls", "workers": request.workers, "count": _count(request)}
            found.calls = Calls(**child.run(_MODULES["overhead"], {**place, **calls}, say))
        if {"loop", "resume"} & {*request.parts}:
            _searches(found, folder, say)
    return found


def _count(request: SearchRequest) -> int:
    return min(CALLS, max(request.candidates))


def _searches(found: Findings, folder: Path, say: Say) -> None:
    """Searches of every size, and over the journal of each the same search again."""
    request = found.request
    kinds = {INLINE: 0, RAY: request.workers} if "loop" in request.parts else {INLINE: 0}
    for size in sorted({*request.candidates}):
        directory = folder / str(size)
        runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
        for _ in range(REPEATS if size < SMALL and "loop" in request.parts else 1):
            for kind, workers in kinds.items():
                with tempfile.TemporaryDirectory(dir=folder) as spare:
                    # The first journal stays, to be resumed.
                    made = Path(spare) / "run"
                    document = {"what": "loop", "workers": workers, "directory": str(made)}
                    runs[kind].append(_run(request, size, document, kind, say))
                    if not directory.exists():
                        made.rename(directory)
        resumed: list[Run] = []
        if "resume" in request.parts:
            document = {"what": "resume", "directory": str(directory)}
            resumed = [_run(request, size, document, "resume", say)]
        _agree([*(run for some in runs.values() for run in some), *resumed], size)
        found.resumed += resumed
        if "loop" in request.parts:
            for kind, some in runs.items():
                found.loops.setdefault(kind, []).append(_median(some))


def _run(request: SearchRequest, size: int, document: dict[str, Any], kind: str, say: Say) -> Run:
    def told(phase: str, done: int, total: int) -> None:
        say(f"{kind}, {size:,} candidates: {phase}", done, total)

    document = {**document, "candidates": size, "seed": request.seed}
    return Run.of(size, child.run(_MODULES["overhead"], document, told))


def _median(runs: list[Run]) -> Run:
    """The run of median length."""
    middle = statistics.median_low(run.ms for run in runs)
    return next(run for run in runs if run.ms == middle)


def _agree(runs: list[Run], size: int) -> None:
    """A search depends on its configuration alone: whoever measures must find the same one."""
    if len({(run.pool, run.funnel) for run in runs}) > 1:
        raise SearchError(
            f"searches of {size} candidates that differ in their workers alone, or were resumed, "
            "have come to different ends"
        )


@contextmanager
def _folder(path: str | None) -> Iterator[Path]:
    """A folder for journals, gone afterwards."""
    if path is not None and not Path(path).is_dir():
        raise SearchError(f"{path}: no such folder")
    with tempfile.TemporaryDirectory(prefix="cellsearch-bench-", dir=path) as folder:
        yield Path(folder)

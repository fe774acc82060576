"""How fast results become durable: rows of a journal, a few or many to a transaction.

Run as a module it is a measurement in a process of its own (`search.bench.child`).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search.bench import child, overhead
from search.bench.child import Say
from search.bench.timing import percentile
from search.journal import CandidateRow, Journal, ResultRow, UnitRow

DRAINS = {1: 1000, 10: 300, 50: 200}  #: results of a transaction -> transactions
SYNCS = 300
CANDIDATES = 60  #: of the search whose rows are written again and again


@dataclass(frozen=True)
class Rows:
    """Rows as a search writes them, under ids that go on for ever."""

    candidates: list[CandidateRow]
    units: list[UnitRow]
    results: list[ResultRow]

    @classmethod
    def of(cls, directory: Path) -> Rows:
        with Journal.read(directory) as journal:
            found = {row.unit: row for row in journal.results()}
            units = [unit for unit in journal.units() if unit.id in found]
            return cls(journal.candidates(), units, [found[unit.id] for unit in units])

    def proposal(self, number: int) -> tuple[CandidateRow, UnitRow]:
        """A candidate and its only unit."""
        candidate = self.candidates[number % len(self.candidates)]
        unit = self.units[number % len(self.units)]
        return (
            replace(candidate, id=number, parents=()),
            replace(unit, id=number, candidate=number),
        )

    def result(self, number: int) -> ResultRow:
        return replace(self.results[number % len(self.results)], unit=number)


def answer(document: dict[str, Any], say: Say) -> dict[str, Any]:
    """Milliseconds. sync: of a file's 4 KiB to the disk; drains: of a transaction, by the results
    in it; proposal: of a transaction with a candidate and a unit."""
    with tempfile.TemporaryDirectory(dir=document["folder"]) as folder:
        place = Path(folder)
        say("rows of a search", 0, 1)
        overhead.small(place / "rows", CANDIDATES, document["seed"])
        rows = Rows.of(place / "rows")
        drains = []
        for done, (size, count) in enumerate(DRAINS.items()):
            say("results in drains", done, len(DRAINS))
            drains.append({"results": size, **_results(place / str(size), rows, size, count)})
        return {
            "sync": _summary(_syncs(place / "file")),
            "proposal": _summary(_proposals(place / "proposals", rows)),
            "drains": drains,
        }


def _results(directory: Path, rows: Rows, size: int, count: int) -> dict[str, float]:
    with Journal.create(directory, {}) as journal:
        proposals = [rows.proposal(number) for number in range(size * count)]
        journal.write([c for c, _ in proposals], [u for _, u in proposals])
        spent = []
        for start in range(0, size * count, size):
            drain = [rows.result(number) for number in range(start, start + size)]
            begin = time.perf_counter()
            journal.write(results=drain)
            spent.append(time.perf_counter() - begin)
    return {**_summary(spent), "rows_per_second": size * count / sum(spent)}


def _proposals(directory: Path, rows: Rows) -> list[float]:
    spent = []
    with Journal.create(directory, {}) as journal:
        for number in range(DRAINS[1]):
            candidate, unit = rows.proposal(number)
            begin = time.perf_counter()
            journal.write([candidate], [unit])
            spent.append(time.perf_counter() - begin)
    return spent


def _syncs(file: Path) -> list[float]:
    """What the disk needs for one page, and no journal can do without."""
    spent = []
    with file.open("wb", buffering=0) as handle:
        for _ in range(SYNCS):
            begin = time.perf_counter()
            handle.write(bytes(4096))
            os.fsync(handle.fileno())
            spent.append(time.perf_counter() - begin)
    return spent


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"median": 1e3 * statistics.median(seconds), "p99": 1e3 * percentile(seconds, 99)}


if __name__ == "__main__":
    child.serve(answer)

"""The loop of a search, in virtual time: a run is exact for its seed, whatever the workers do.

The loop imagines V workers. A unit of work has a planned cost, known before it runs; its virtual
end is its virtual start plus that cost. Results are consumed in the order of virtual ends, and a
proposal sees exactly the results whose virtual end does not lie after its virtual start. Real
workers merely run ahead: which of them did what, when it finished and how often the driver was
killed leaves no trace in the search.

Everything goes through the journal first. A unit is submitted after its proposal is durable, and a
result is used after it is durable, so that a run is resumed by running this same loop again over
the journal.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from search.algorithms import Algorithm, Work
from search.errors import SearchError
from search.executor import Executor, Outcome
from search.journal import CandidateRow, EventRow, Journal, ResultRow, UnitRow

FALLBACK = "eager_fallback"  #: the kind of event; its detail: reason, and the first unit


class Observer(Protocol):
    """Who watches a run. Nothing it does can change the run."""

    def consumed(self, unit: UnitRow, work: Work, result: ResultRow, replayed: bool) -> None: ...

    def waiting(self) -> None: ...


@dataclass
class Loop:
    """One run of one algorithm. `executor=None` replays what the journal holds and trains
    nothing."""

    algorithm: Algorithm
    journal: Journal
    executor: Executor | None
    virtual_workers: int
    observer: Observer
    now: float = 0.0  # virtual time
    asked: int = 0
    running: list[tuple[float, int]] = field(default_factory=list)  # heap of (virtual end, unit)
    works: dict[int, tuple[UnitRow, Work]] = field(default_factory=dict)  # those that run
    results: dict[int, ResultRow] = field(default_factory=dict)  # durable ones, by unit
    reasons: set[str] = field(default_factory=set)  # of fallbacks, that the journal tells of

    def run(self) -> bool:
        """Until the search is over (True), or, in a replay, until a result is missing (False).

        Raises SearchError when the journal does not hold the proposals that this configuration
        leads to.
        """
        held: dict[type, Mapping[int, Any]] = {
            UnitRow: {row.id: row for row in self.journal.units()},
            CandidateRow: {row.id: row for row in self.journal.candidates()},
        }
        self.results = {row.unit: row for row in self.journal.results()}
        told = [e.detail for e in self.journal.events() if e.kind == FALLBACK]
        self.reasons = {str(d.get("reason")) for d in told if isinstance(d, Mapping)}
        replayed = frozenset(self.results)
        while True:
            self._start(self._ask(), held)
            if not self.running:
                return True
            self.now = self.running[0][0]
            while self.running and self.running[0][0] == self.now:  # what ends together …
                number = self.running[0][1]
                if not self._arrived(number):
                    return False
                heapq.heappop(self.running)
                unit, work = self.works.pop(number)
                self.algorithm.tell(work, _records(work, self.results[number]))  # … is seen so
                self.observer.consumed(unit, work, self.results[number], number in replayed)
                del self.results[number]  # its curves are in the journal

    def _ask(self) -> list[tuple[UnitRow, Work]]:
        """Give the idle virtual workers what the algorithm wants done next."""
        begun: list[tuple[UnitRow, Work]] = []
        while len(self.running) < self.virtual_workers:
            work = self.algorithm.ask()
            if work is None:
                break
            unit = _unit(self.asked, work, self.now)
            self.asked += 1
            begun.append((unit, work))
            self.works[unit.id] = (unit, work)
            heapq.heappush(self.running, (unit.end, unit.id))
        return begun

    def _start(
        self, begun: Sequence[tuple[UnitRow, Work]], held: Mapping[type, Mapping[int, Any]]
    ) -> None:
        """Write down what is new, in one transaction, then submit whatever has no result yet."""
        new: dict[type, list[Any]] = {UnitRow: [], CandidateRow: []}
        for unit, work in begun:
            rows: list[CandidateRow | UnitRow] = [_candidate(work), unit] if work.new else [unit]
            for row in rows:
                if row.id in held[type(row)]:
                    _same(held[type(row)][row.id], row)
                else:
                    new[type(row)].append(row)
        if self.executor is None:
            return
        if new[UnitRow]:
            self.journal.write(candidates=new[CandidateRow], units=new[UnitRow])
        for unit, work in begun:
            if unit.id not in self.results:
                self.executor.submit(unit.id, _payload(work))

    def _arrived(self, number: int) -> bool:
        """Wait until the result of a unit is durable; False when nobody will ever bring it."""
        while number not in self.results:
            if self.executor is None:
                return False
            outcomes = self.executor.wait(0.5)
            rows = [_result(outcome) for outcome in outcomes]
            if rows:
                self.journal.write(results=rows, events=self._fallbacks(rows))
                self.results.update((row.unit, row) for row in rows)
            self.observer.waiting()
        return True

    def _fallbacks(self, rows: Sequence[ResultRow]) -> list[EventRow]:
        """An event for every new reason for which what should be compiled was left to torch, whose
        numbers differ in their last places. Where there is no compiler all units have the same
        reason; which they are, their records say."""
        events = []
        for row in rows:
            for reason in (r["fallback"] for r in row.records if "fallback" in r):
                if reason not in self.reasons:
                    self.reasons.add(reason)
                    events.append(EventRow(FALLBACK, {"unit": row.unit, "reason": reason}))
        return events


def _unit(number: int, work: Work, now: float) -> UnitRow:
    cost = work.cost
    payload = {"settings": [s.to_dict() for s in work.settings], "purpose": work.purpose}
    return UnitRow(number, work.proposal.id, work.stage.name, payload, cost, now, now + cost)


def _candidate(work: Work) -> CandidateRow:
    proposal = work.proposal
    cell = proposal.cell
    return CandidateRow(
        proposal.id, cell.key(), cell.name, str(cell), proposal.origin, proposal.parents
    )


def _payload(work: Work) -> dict[str, Any]:
    """What a worker needs; the shape is that of `search.work.Evaluator`."""
    return {
        "cell": str(work.proposal.cell),
        "stage": work.stage.name,
        "settings": [s.to_dict() for s in work.settings],
    }


def _result(outcome: Outcome) -> ResultRow:
    records: tuple[Mapping[str, Any], ...] = ()
    if outcome.status == "ok" and outcome.result is not None:
        records = tuple(outcome.result["records"])
    elif outcome.error:
        records = ({"error": outcome.error},)
    return ResultRow(
        outcome.unit, outcome.status, records, outcome.seconds, outcome.worker, outcome.attempts
    )


def _records(work: Work, result: ResultRow) -> list[Mapping[str, Any]]:
    """One record per setting; a unit that no worker survived counts as that failure for all its
    settings."""
    if result.status == "ok":
        for record in result.records:
            if not isinstance(record, Mapping) or not (
                isinstance(record.get("status"), str) and isinstance(record.get("metrics"), Mapping)
            ):
                raise SearchError(
                    f"the journal holds a result of unit {result.unit} that cellsearch did not "
                    "write, expected a status and metrics for every setting"
                )
        if len(result.records) != len(work.indices):
            raise SearchError(
                f"the journal holds {len(result.records)} records of unit {result.unit}, "
                f"expected {len(work.indices)}"
            )
        return list(result.records)
    return [{"status": result.status, "metrics": {}} for _ in work.indices]


def _same(held: CandidateRow | UnitRow, proposed: CandidateRow | UnitRow) -> None:
    if held != proposed:
        kind = "unit" if isinstance(held, UnitRow) else "candidate"
        raise SearchError(
            f"the journal holds another {kind} {held.id} than this configuration and version "
            "propose: it was written by another version, or changed"
        )

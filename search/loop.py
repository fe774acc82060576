"""The loop of a search, in virtual time: a run is exact for its seed, whatever the workers do.

The loop imagines V workers. A unit of work has a planned cost, known before it runs; its virtual
end is its virtual start plus that cost. Results are consumed in the order of virtual ends, and a
proposal sees exactly the results whose virtual end does not lie after its virtual start. Real
workers merely run ahead: which of them did what, when it finished and how often the driver was
killed leaves no trace in the search.

Everything goes through the journal. A unit is submitted, a result is shown, after it is durable;
what has arrived and what the search makes of it are one transaction, so that disks are waited for
once for all that came together. A run is resumed by running this same loop again over the journal.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from search.algorithms import Algorithm, Work
from search.errors import SearchError
from search.executor import Executor, Outcome
from search.journal import CandidateRow, EventRow, Journal, ResultRow, UnitRow

HOLD = 0.02  #: seconds that a result or a unit waits for others to be written down together
MOST = 4  #: units for every worker that wait, at most, where results come faster than that

FALLBACK = "eager_fallback"  #: the kind of event; its detail: reason, and the first unit


class Observer(Protocol):
    """Who watches a run. Nothing it does can change the run."""

    def consumed(self, unit: UnitRow, work: Work, result: ResultRow, replayed: bool) -> None: ...

    def waiting(self) -> None: ...


@dataclass
class _Pending:
    """What the next transaction makes durable, and what may be done only then."""

    candidates: list[CandidateRow] = field(default_factory=list)
    units: list[UnitRow] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    works: list[tuple[int, Work]] = field(default_factory=list)  # to be submitted
    consumed: list[tuple[UnitRow, Work, ResultRow, bool]] = field(default_factory=list)  # to show
    since: float = math.inf  # when the first of it came, or may have come

    @property
    def has_rows(self) -> bool:
        return bool(self.units or self.results or self.events)

    def wait(self) -> None:
        """Something comes now."""
        self.since = min(self.since, time.monotonic())


@dataclass
class Use:
    """Seconds that workers worked, of the seconds that they were there for, from the first unit."""

    worked: float = 0.0
    offered: float = 0.0
    _at: float | None = None

    def begin(self) -> None:
        self._at = self._at or time.monotonic()

    def note(self, workers: int, rows: Sequence[ResultRow]) -> None:
        """What has come since the last time."""
        now = time.monotonic()
        self.offered += workers * (now - self._at) if self._at is not None else 0.0
        self._at = now if self._at is not None else None
        self.worked += sum(row.seconds for row in rows)

    def to_dict(self) -> dict[str, float]:
        return {"worked": round(self.worked, 3), "offered": round(self.offered, 3)}


@dataclass
class Loop:
    """One run of one algorithm. `executor=None` replays what the journal holds and trains
    nothing.

    A run that goes on reads back what the journal holds, row by row. With `verify`, every row is
    compared with what the algorithm proposes, which then must not have been told to recall it.
    """

    algorithm: Algorithm
    journal: Journal
    executor: Executor | None
    virtual_workers: int
    observer: Observer
    verify: bool = False
    now: float = 0.0  # virtual time
    asked: int = 0
    written: int = 0  # units in the journal; those behind are new
    stopping: bool = False  # take what the workers are at, and start nothing else
    running: list[tuple[float, int]] = field(default_factory=list)  # heap of (virtual end, unit)
    # What an earlier driver wrote, as far as it was read ahead.
    held: dict[int, tuple[UnitRow, ResultRow | None]] = field(default_factory=dict)
    works: dict[int, tuple[UnitRow, Work]] = field(default_factory=dict)  # those that run
    results: dict[int, ResultRow] = field(default_factory=dict)  # that wait to be told, by unit
    replayed: set[int] = field(default_factory=set)  # of those, what an earlier driver wrote
    reasons: set[str] = field(default_factory=set)  # of fallbacks, that the journal tells of
    pending: _Pending = field(default_factory=_Pending)
    use: Use = field(default_factory=Use)

    def run(self) -> bool:
        """Until the search is over (True), or, in a replay, until a result is missing, or until it
        has stopped as asked (False).

        Raises SearchError when the journal does not hold the proposals that this configuration
        leads to.
        """
        self.written = self.journal.counts()["units"]
        told = [e.detail for e in self.journal.events() if e.kind == FALLBACK]
        self.reasons = {str(d.get("reason")) for d in told if isinstance(d, Mapping)}
        while True:
            self._ask()
            if not self.running:
                self._commit()
                return True
            self.now = self.running[0][0]
            while self.running and self.running[0][0] == self.now:  # what ends together …
                number = self.running[0][1]
                if not self._arrived(number):
                    return False
                heapq.heappop(self.running)
                unit, work = self.works.pop(number)
                result = self.results.pop(number)
                self.algorithm.tell(work, _records(work, result))  # … is seen so
                self.pending.consumed.append((unit, work, result, number in self.replayed))
                self.replayed.discard(number)
                if not self.pending.has_rows or self._is_due():
                    self._commit()

    def stop(self) -> None:
        """Let the workers finish what they are at, write it down, and return from `run`."""
        self.stopping = True

    def _ask(self) -> None:
        """Give the idle virtual workers what the algorithm wants done next."""
        while len(self.running) < self.virtual_workers:
            work = self.algorithm.ask()
            if work is None:
                return
            new = self.asked >= self.written
            unit, result = (self._unit(work), None) if new else self._held(work)
            self.asked += 1
            self.works[unit.id] = (unit, work)
            heapq.heappush(self.running, (unit.end, unit.id))
            if result is not None:
                self.results[unit.id] = result
                self.replayed.add(unit.id)
                continue
            self.pending.works.append((unit.id, work))
            self.pending.wait()
            if new:
                self.pending.units.append(unit)
                if work.new:
                    self.pending.candidates.append(_candidate(work))

    def _unit(self, work: Work) -> UnitRow:
        cost = work.cost
        payload = {**work.plan, "purpose": work.purpose}
        place = (self.asked, work.proposal.id, work.stage.name)
        return UnitRow(*place, payload, cost, self.now, self.now + cost)

    def _held(self, work: Work) -> tuple[UnitRow, ResultRow | None]:
        """The unit as the journal has it, and its result. Raises SearchError where it is another
        one."""
        if self.asked not in self.held:
            self.held = self.journal.stretch(self.asked, payloads=self.verify)
        if self.asked not in self.held:
            raise SearchError(f"the journal has no unit {self.asked}, but later ones")
        held, result = self.held.pop(self.asked)
        if not self.verify:
            if (held.candidate, held.stage) != (work.proposal.id, work.stage.name):
                raise _other(held)
            return held, result
        _same(held, self._unit(work))
        if work.new:
            row = self.journal.candidate(work.proposal.id)
            if row is None:
                raise SearchError(f"the journal has no candidate {work.proposal.id}")
            _same(row, _candidate(work))
        return held, result

    def _arrived(self, number: int) -> bool:
        """Wait until a unit has its result; False when nobody will ever bring it, or when the run
        is to stop; then the workers have finished what they were at."""
        while number not in self.results and not self.stopping:
            if self.executor is None:
                return False
            if self._is_due() or not self._collect(self.executor, 0.0):
                self._commit()
                if not self._works_ahead():
                    self._collect(self.executor, 0.5)
        if self.stopping and self.executor is not None:
            self.pending.works.clear()
            self.executor.drain()
            while self._collect(self.executor, None):
                pass
            self._commit()
        return not self.stopping

    def _works_ahead(self) -> bool:
        """Use the time of waiting, though not while the journal knows what comes next."""
        return self.asked >= self.written and self.algorithm.prepare()

    def _collect(self, executor: Executor, timeout: float | None) -> int:
        """Take what has arrived; how many results that is."""
        self.pending.wait()
        rows = [result_row(outcome) for outcome in executor.wait(timeout)]
        self.use.note(executor.workers, rows)
        self.results.update((row.unit, row) for row in rows)
        self.pending.results += rows
        self.pending.events += self._fallbacks(rows)
        self.pending.events += [EventRow(kind, detail) for kind, detail in executor.events()]
        self.observer.waiting()
        return len(rows)

    def _is_due(self) -> bool:
        """Has what is pending waited long enough for more to share its transaction, or become so
        much that workers might run out of it?"""
        most = 0 if self.executor is None else MOST * self.executor.workers
        return len(self.pending.works) > most or time.monotonic() - self.pending.since >= HOLD

    def _commit(self) -> None:
        """Write down what is new, in one transaction; then submit units, and show results."""
        pending, self.pending = self.pending, _Pending()
        if self.executor is not None:
            if pending.has_rows:
                self.journal.write(
                    pending.candidates, pending.units, pending.results, pending.events
                )
            for number, work in pending.works:
                self.executor.submit(number, _payload(work))
                self.use.begin()
        for consumed in pending.consumed:
            self.observer.consumed(*consumed)

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


def _candidate(work: Work) -> CandidateRow:
    proposal, architecture = work.proposal, work.proposal.architecture
    return CandidateRow(
        proposal.id,
        architecture.key,
        architecture.name,
        architecture.text,
        proposal.origin,
        proposal.parents,
        proposal.detail,
    )


def _payload(work: Work) -> dict[str, Any]:
    """What a worker needs; the shape is that of `search.work.Evaluator`."""
    return {
        "cell": work.proposal.architecture.text,
        "stage": work.stage.name,
        **work.plan,
        "screen": work.screen,
    }


def result_row(outcome: Outcome) -> ResultRow:
    """An outcome as the journal keeps it."""
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
            # Dictionaries, as workers and JSON give them: to ask for a Mapping takes a tenth of the
            # time of resuming.
            if not isinstance(record, dict) or not (
                isinstance(record.get("status"), str) and isinstance(record.get("metrics"), dict)
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
        raise _other(held)


def _other(held: CandidateRow | UnitRow) -> SearchError:
    kind = "unit" if isinstance(held, UnitRow) else "candidate"
    return SearchError(
        f"the journal holds another {kind} {held.id} than this configuration and version "
        "propose: it was written by another version, or changed"
    )

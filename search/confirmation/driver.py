"""The two phases of a confirmation: choose a setting on validation data, then measure it.

No virtual time here: what is trained with what does not depend on what came out earlier, but for
the setting of a cell, which depends on all its trainings of the first phase and on nothing else. So
the result is the same for any number of workers and in any order. Everything goes through the
journal first: a unit is submitted after it is durable, a result is used after it is durable, and
resuming is running this same code over the same journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from search import launch
from search.confirmation.choice import choose, restored
from search.confirmation.plan import Contest, Plan
from search.confirmation.progress import Watch
from search.confirmation.work import Trainer
from search.errors import SearchError
from search.executor import Executor
from search.journal import FILE, CandidateRow, EventRow, Journal, ResultRow, UnitRow
from search.loop import result_row

FOLDER = "confirm"  #: of the run directory

#: Makes the executor, when there is something to train.
Start = Callable[[Plan], Executor]


def confirm(
    directory: Path,
    given: Mapping[str, Any],
    *,
    workers: int | None,
    address: str | None,
    watch: Watch,
) -> None:
    """Begin the confirmation of the run in `directory`, or carry it on; returns when it is done.

    given: options by name (`search.confirmation.Options`); those that are absent or None are the
        defaults, or, where a confirmation was begun, what it was begun with.

    Raises SearchError, DataError, CellError; among others where RUN/confirm was begun with other
    options: a run has one confirmation, not several to choose from.
    """

    def start(plan: Plan) -> Executor:
        return _executor(plan, workers, address)

    folder = directory / FOLDER
    with ExitStack() as stack:
        if (folder / FILE).exists():
            journal = stack.enter_context(Journal.open(folder))
            plan = restored(journal, given)
        else:
            plan = choose(directory, given)
            created = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
            journal = stack.enter_context(Journal.create(folder, plan.meta() | created))
        Driver(plan, journal, start, watch).run()


class Driver:
    """Carries a plan out over a journal that may hold any part of it."""

    def __init__(self, plan: Plan, journal: Journal, start: Start, watch: Watch) -> None:
        self.plan, self.journal, self.start, self.watch = plan, journal, start, watch
        self.contests = plan.contests()
        self.cells = [str(entrant.cell) for entrant in plan.entrants]
        self.of_unit = {unit.id: c for c in self.contests for unit in c.tuning}
        #: Of the first phase: the validation metric by unit, None for a training that failed.
        self.metrics: dict[int, float | None] = {}
        self.done: dict[int, ResultRow] = {}

    def run(self) -> None:
        if any(event.kind == "finished" for event in self.journal.events()):
            return  # also where another version did it: what it has found still holds
        self.watch.planned(self.plan)
        held = {unit.id: unit for unit in self.journal.units()}
        tuning = [unit for contest in self.contests for unit in contest.tuning]
        self._begin(tuning, held)
        missing = [unit for unit in tuning if unit.id not in self.done]
        for contest in self.contests:
            if self._tuned(contest):
                missing += self._measuring(contest, held)
        if missing:
            with closing(self.start(self.plan)) as executor:
                try:
                    self._train(executor, missing, held)
                except KeyboardInterrupt:
                    self.journal.write(events=[EventRow("interrupted")])
                    raise
        self.journal.write(events=[EventRow("finished")])

    def _begin(self, tuning: Sequence[UnitRow], held: dict[int, UnitRow]) -> None:
        """Write down the cells and the first phase, unless the journal holds them; take over the
        results that it holds."""
        candidates = self.plan.candidates()
        known = {row.id: row for row in self.journal.candidates()}
        new = [row for row in candidates if not _same(known.get(row.id), row)]
        units = [unit for unit in tuning if not _same(held.get(unit.id), unit)]
        if new or units:
            self.journal.write(candidates=new, units=units)
        held |= {unit.id: unit for unit in units}
        for row in self.journal.results():
            self._take(row)
            self.watch.done(held[row.unit], failed=_failed(row), fresh=False)

    def _train(
        self, executor: Executor, missing: Sequence[UnitRow], held: dict[int, UnitRow]
    ) -> None:
        self.journal.write(events=[EventRow("started", {"workers": executor.workers})])
        waiting: dict[int, UnitRow] = {}

        def submit(units: Sequence[UnitRow]) -> None:
            for unit in units:
                waiting[unit.id] = unit
                executor.submit(unit.id, self._payload(unit))

        submit(missing)
        while waiting:
            rows = [result_row(outcome) for outcome in executor.wait(0.5)]
            tuned = dict.fromkeys(
                self.of_unit[r.unit].first for r in rows if r.unit in self.of_unit
            )
            events = [EventRow(kind, detail) for kind, detail in executor.events()]
            if rows or events:
                self.journal.write(results=rows, events=events)
            for row in rows:
                self._take(row)
                self.watch.done(waiting.pop(row.unit), failed=_failed(row), fresh=True)
            for contest in self.contests if tuned else ():
                if contest.first in tuned and self._tuned(contest):
                    submit(self._measuring(contest, held))
            self.watch.waiting()

    def _take(self, row: ResultRow) -> None:
        self.done[row.unit] = row
        contest = self.of_unit.get(row.unit)
        if contest is not None:
            self.metrics[row.unit] = None if _failed(row) else contest.stage.metric(_record(row))

    def _tuned(self, contest: Contest) -> bool:
        return all(unit.id in self.done for unit in contest.tuning)

    def _measuring(self, contest: Contest, held: Mapping[int, UnitRow]) -> list[UnitRow]:
        """The units of the second phase that have no result; written down unless they were held.

        The setting is the best on validation, of equals the first. A cell that failed with every
        setting has none, and is not measured: the table says so.
        """
        best: UnitRow | None = None
        for unit in contest.tuning:
            value = self.metrics[unit.id]
            than = None if best is None else self.metrics[best.id]
            if value is not None and contest.stage.better(value, than):
                best = unit
        if best is None:
            return []
        units = contest.measuring(best.payload["settings"][0], self.plan.seeds)
        new = [unit for unit in units if not _same(held.get(unit.id), unit)]
        if new:
            self.journal.write(units=new)
        return [unit for unit in units if unit.id not in self.done]

    def _payload(self, unit: UnitRow) -> dict[str, Any]:
        """What a worker needs; the shape is that of `search.confirmation.work.Trainer`."""
        return {
            "cell": self.cells[unit.candidate],
            "stage": unit.stage,
            "settings": unit.payload["settings"],
            "seed": unit.payload["seed"],
            "test": unit.payload["phase"] == "measure",
        }


def _executor(plan: Plan, workers: int | None, address: str | None) -> Executor:
    config = plan.config
    config = replace(
        config,
        workers=config.workers if workers is None else workers,
        timeout=config.timeout * max(1.0, plan.options.steps_scale),
    )
    function = Trainer.of(plan.stages, config.backend)
    return launch.executor(config, plan.stages, function, address)


def _record(row: ResultRow) -> Mapping[str, Any]:
    """The one training of a unit that some worker has finished."""
    record = row.records[0] if len(row.records) == 1 else None
    if not (
        isinstance(record, Mapping)
        and isinstance(record.get("status"), str)
        and isinstance(record.get("metrics"), Mapping)
    ):
        raise SearchError(
            f"the journal holds a result of unit {row.unit} that cellsearch did not write, "
            "expected one training with a status and metrics"
        )
    return record


def _failed(row: ResultRow) -> bool:
    return row.status != "ok" or _record(row)["status"] != "ok"


def _same(held: CandidateRow | UnitRow | None, planned: CandidateRow | UnitRow) -> bool:
    """Is the row in the journal already? Raises SearchError when another one is in its place."""
    if held is None:
        return False
    if held != planned:
        kind = "unit" if isinstance(held, UnitRow) else "candidate"
        raise SearchError(
            f"the journal holds another {kind} {held.id} than this version plans: it was written "
            "by another version, or changed"
        )
    return True

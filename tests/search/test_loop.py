"""The loop in virtual time: exact for its seed, whatever the workers do, however it is killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search import launch
from search.errors import SearchError
from search.executor import InlineExecutor, Outcome
from search.journal import Journal
from search.loop import Loop
from search.progress import Silent
from tests.search import fakes


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one unit at a time in this process."""
    directory = tmp_path_factory.mktemp("reference")
    assert fakes.run(directory, InlineExecutor(fakes.evaluate))[1]
    return directory


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_completion_leaves_no_trace(
    reference: Path, tmp_path: Path, seed: int
) -> None:
    fakes.run(tmp_path, fakes.Shuffled(seed))
    assert fakes.ledger(tmp_path) == fakes.ledger(reference)


def test_another_seed_is_another_search(reference: Path, tmp_path: Path) -> None:
    other = fakes.config().from_dict({**fakes.config().to_dict(), "seed": 2})
    fakes.run(tmp_path, InlineExecutor(fakes.evaluate), other)
    assert fakes.ledger(tmp_path)[0] != fakes.ledger(reference)[0]


def test_killed_and_resumed_again_and_again(reference: Path, tmp_path: Path) -> None:
    deaths, durable = 0, frozenset[int]()
    while True:
        executor, witness = fakes.Shuffled(seed=deaths, die_after=7), fakes.Witness()
        try:
            _, complete = fakes.run(tmp_path, executor, observer=witness)
        except ConnectionError:
            complete = False
        assert durable.isdisjoint(executor.trained), "what the journal has was computed again"
        with Journal.read(tmp_path) as journal:
            durable = frozenset(row.unit for row in journal.results(curves=False))
        assert durable.issuperset(witness.shown), "what was shown is lost"
        if complete:
            break
        deaths += 1
    assert deaths > 5
    assert fakes.ledger(tmp_path) == fakes.ledger(reference)


def test_the_hash_seed_of_python_leaves_no_trace(reference: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.search import fakes;"
        "from search.executor import InlineExecutor as E;"
        "fakes.run(Path(sys.argv[1]), E(fakes.evaluate))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": "."},
    )
    assert fakes.ledger(tmp_path) == fakes.ledger(reference)


def test_proposals_see_exactly_what_ended_before_they_start(reference: Path) -> None:
    with Journal.read(reference) as journal:
        units = journal.units()
    ends: list[float] = []
    for unit in units:
        assert unit.end == unit.start + unit.cost
        busy = sum(end > unit.start for end in ends)
        assert busy < fakes.config().virtual_workers
        assert unit.start == 0.0 or unit.start in ends
        ends.append(unit.end)
    assert [u.start for u in units] == sorted(u.start for u in units)


def test_replay_needs_no_executor_and_says_when_a_result_is_missing(
    reference: Path, tmp_path: Path
) -> None:
    before = fakes.ledger(reference)
    assert fakes.run(reference, None)[1]
    assert fakes.ledger(reference) == before
    with pytest.raises(ConnectionError):
        fakes.run(tmp_path, fakes.Shuffled(0, die_after=9))
    assert not fakes.run(tmp_path, None)[1]


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE candidates SET cell = replace(cell, 'tanh', 'relu') WHERE id = 3", "candidate 3"),
        ("UPDATE units SET stage = 'xml' WHERE id = 1", "unit 1"),
        ("UPDATE units SET cost = cost * 2 WHERE id = 5", "unit 5"),
    ],
)
def test_a_journal_that_was_changed_is_noticed(
    reference: Path, tmp_path: Path, statement: str, kind: str
) -> None:
    (tmp_path / "journal.sqlite").write_bytes((reference / "journal.sqlite").read_bytes())
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        assert database.execute(statement).rowcount == 1
    database.close()
    with pytest.raises(SearchError, match=kind):
        fakes.run(tmp_path, None)


def test_a_unit_that_no_worker_survives_is_a_failure_of_all_its_settings(tmp_path: Path) -> None:
    class Fragile(fakes.Shuffled):
        def wait(self, timeout: float | None) -> list[Outcome]:
            done = super().wait(timeout)
            return [
                Outcome(o.unit, "crashed", None, "the worker died", 0.0, "fake", 3)
                if o.unit > 20 and o.unit % 3 == 0
                else o
                for o in done
            ]

    assert fakes.run(tmp_path, Fragile(1))[1]
    with Journal.read(tmp_path) as journal:
        crashed = [r for r in journal.results() if r.status == "crashed"]
    assert crashed
    assert all(r.records == ({"error": "the worker died"},) for r in crashed)


def test_asked_to_stop_it_keeps_what_the_workers_are_at_and_starts_nothing(
    reference: Path, tmp_path: Path
) -> None:
    class Asked(fakes.Shuffled):
        """Its loop is asked to stop while it waits for the twelfth time."""

        loop: Loop
        waits = 0
        drained = False

        def submit(self, unit: int, payload: dict[str, Any]) -> None:
            assert not self.drained
            super().submit(unit, payload)

        def drain(self) -> None:
            self.drained = True
            super().drain()

        def wait(self, timeout: float | None) -> list[Outcome]:
            self.waits += 1
            if self.waits == 12:
                self.loop.stop()
            while self.drained and self.pending:  # waits without a limit for what is at work
                if done := super().wait(timeout):
                    return done
            return super().wait(timeout)

    ready = launch.plan(fakes.config())
    executor = Asked(3)
    with Journal.create(tmp_path, {}) as journal:
        executor.loop = Loop(ready.algorithm(), journal, executor, 4, Silent())
        assert not executor.loop.run()
    assert executor.drained
    assert not executor.pending
    with Journal.read(tmp_path) as journal:
        assert {row.unit for row in journal.results()} == set(executor.trained)
    assert fakes.run(tmp_path, fakes.Shuffled(4))[1]
    assert fakes.ledger(tmp_path) == fakes.ledger(reference)


def test_what_the_executor_tells_of_is_written_down(tmp_path: Path) -> None:
    class Telling(fakes.Shuffled):
        told = False

        def events(self) -> list[tuple[str, dict[str, Any]]]:
            if self.told:
                return []
            self.told = True
            return [("worker_lost", {"worker": "fake", "unit": 3})]

    fakes.run(tmp_path, Telling(1))
    with Journal.read(tmp_path) as journal:
        (event,) = journal.events()
    assert (event.kind, event.detail) == ("worker_lost", {"worker": "fake", "unit": 3})

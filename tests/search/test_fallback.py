"""A compiler that does not work: the search goes on, slower, and journal and reports say so.

What a single training does then is in tests/evaluators/test_fallback.py.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reports import collect
from search import launch
from search.executor import InlineExecutor
from search.journal import EventRow, Journal
from search.progress import Silent
from tests.search import fakes

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = """
name: broken
virtual_workers: 2
search: {candidates: 4, pool: 2, seed_settings: 2, settings: 2, mutation: {edits: [1, 2]}}
tasks:
  - task: memorisation
    options: {length: 2, symbols: 4, valid_size: 64, batch_size: 16}
    params: [1500]
    steps: 8
    eval_every: 4
"""
SUNDAY, MONDAY = "exit status 1: error: it is Sunday", "exit status 1: error: it is Monday"


def _told(directory: Path) -> list[Mapping[str, Any]]:
    """What the journal's events say of fallbacks."""
    with Journal.read(directory) as journal:
        return [event.detail for event in journal.events() if event.kind == "eager_fallback"]


# the loop


class Uncompiled(fakes.Shuffled):
    """Units whose number is even give a reason, for one of their settings."""

    reasons: tuple[str, ...] = ("cc: broken",)

    def wait(self, timeout: float | None) -> list[Any]:
        done = super().wait(timeout)
        for outcome in done:
            if outcome.unit % 2 == 0 and outcome.result is not None:
                reason = self.reasons[outcome.unit % len(self.reasons)]
                outcome.result["records"][-1]["fallback"] = reason
        return done


def test_a_reason_is_told_once_a_run(tmp_path: Path) -> None:
    """However many units have it, and however often the run is resumed."""
    deaths = 0
    while True:
        executor = Uncompiled(seed=deaths, die_after=7)
        try:
            _, complete = fakes.run(tmp_path, executor)
        except ConnectionError:
            deaths += 1
            continue
        break
    assert deaths > 3
    assert complete
    (detail,) = _told(tmp_path)
    assert detail["reason"] == "cc: broken"
    assert detail["unit"] % 2 == 0
    with Journal.read(tmp_path) as journal:
        having = [
            row.unit for row in journal.results() if any("fallback" in r for r in row.records)
        ]
        units = journal.counts()["units"]
    assert having == list(range(0, units, 2))
    assert fakes.run(tmp_path, None)[1]  # a replay
    assert len(_told(tmp_path)) == 1


def test_every_reason_is_told(tmp_path: Path) -> None:
    class Several(Uncompiled):
        reasons = ("cc: broken", "never: odd", "cc: killed by signal 9", "never: odd")

    assert fakes.run(tmp_path, Several(0))[1]
    assert sorted(d["reason"] for d in _told(tmp_path)) == ["cc: broken", "cc: killed by signal 9"]


def test_fallbacks_leave_no_trace_in_the_search(tmp_path: Path) -> None:
    fakes.run(tmp_path / "a", Uncompiled(0))
    fakes.run(tmp_path / "b", InlineExecutor(fakes.evaluate))
    assert fakes.ledger(tmp_path / "a")[:2] == fakes.ledger(tmp_path / "b")[:2]
    assert _told(tmp_path / "b") == []


def test_an_event_of_another_form_does_no_harm(tmp_path: Path) -> None:
    """Journals can be edited; a detail without a reason is merely no reason."""
    executor = Uncompiled(0, die_after=3)
    with pytest.raises(ConnectionError):
        fakes.run(tmp_path, executor)
    with Journal.open(tmp_path) as journal:
        journal.write(events=[EventRow("eager_fallback", {"unit": 0})])
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("INSERT INTO events (at, kind, detail) VALUES (0, 'eager_fallback', '[]')")
    database.close()
    assert fakes.run(tmp_path, Uncompiled(1))[1]


# a whole search


def _environment(folder: Path, message: str) -> dict[str, str]:
    """One in which the compiler fails, and none of its earlier work is left."""
    path = folder / "fakecc"
    path.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
    path.chmod(0o700)
    return {**os.environ, "CC": str(path), "CELLSEARCH_CACHE": str(folder / "cache")}


def _command(environment: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")  # no warning either
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same search with a compiler that fails, by the number of its Ray workers."""
    folder = tmp_path_factory.mktemp("broken")
    environment = _environment(folder, "error: it is Sunday")
    (folder / "broken.yaml").write_text(CONFIG)
    made = {workers: folder / workers for workers in ("0", "1")}
    config = str(folder / "broken.yaml")
    processes = [
        _command(environment, "launch", config, "--run", str(directory), "--workers", workers)
        for workers, directory in made.items()
    ]
    for process in processes:
        _answer(process)
    return made


def _units(directory: Path) -> list[int]:
    with Journal.read(directory) as journal:
        return [row.id for row in journal.units()]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_search_without_a_compiler(runs: dict[str, Path], workers: str) -> None:
    directory = runs[workers]
    run = collect.read(directory)
    assert run.state == "finished"
    (detail,) = _told(directory)
    assert detail["unit"] in _units(directory)
    assert detail["reason"].endswith(SUNDAY)
    assert "\n" not in detail["reason"]
    assert set(run.totals["statuses"]) == {"ok"}
    assert run.totals["fallbacks"] == run.totals["units"] == len(_units(directory)) > 4
    assert launch.replay(directory, watch=lambda *_: Silent())[1]
    text = (directory / "report.html").read_text(encoding="utf-8")
    assert f"{SUNDAY}: {len(run.units)}</li>" in text


def test_ray_or_not_the_numbers_are_the_same(runs: dict[str, Path]) -> None:
    texts = [collect.leaderboard_text(collect.read(directory)) for directory in runs.values()]
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) > 3


def test_a_run_is_resumed_with_another_broken_compiler(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    count = len(_units(runs["0"]))
    with sqlite3.connect(runs["0"] / "journal.sqlite") as source:
        with sqlite3.connect(run / "journal.sqlite") as database:
            source.backup(database)
            database.execute("DELETE FROM results WHERE unit >= 3")
            database.execute("DELETE FROM events WHERE kind = 'finished'")
        database.close()
    source.close()
    environment = _environment(tmp_path, "error: it is Monday")
    _answer(_command(environment, "resume", str(run), "--workers", "0"))
    first, second = _told(run)
    assert first["reason"].endswith(SUNDAY)
    assert second["reason"].endswith(MONDAY)
    assert second["unit"] >= 3
    made = collect.read(run)
    assert (made.state, list(made.fallbacks.values())) == ("finished", sorted([count - 3, 3])[::-1])
    before = collect.leaderboard_text(collect.read(runs["0"]))
    assert collect.leaderboard_text(made) == before
    text = _answer(_command(environment, "status", str(run)))
    assert f"{count}, left to torch: " in " ".join(text.split())

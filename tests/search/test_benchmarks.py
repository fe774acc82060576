"""The scripts in tests/benchmarks: that what looks for losses finds them, and what a trial does."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from search import launch
from search.bench import noop, overhead
from search.journal import FILE, Journal

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("chaos")


def test_kills_that_lose_something_are_found_out(chaos: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    _finished(run)
    expected, watched = chaos._outcome(run), chaos.Ledger()
    assert watched.look(tmp_path / "nowhere") == 0
    assert watched.look(run) == expected["results"] > 0
    assert watched.look(run) == expected["results"]
    assert watched.losses == []
    assert chaos._differences(run, expected) == []
    with closing(sqlite3.connect(run / FILE)) as database:
        database.execute("UPDATE results SET status = 'timeout' WHERE unit = 3")
        database.execute("DELETE FROM results WHERE unit = 5")
        database.commit()
    watched.look(run)
    assert watched.losses == [
        "run: row 3 of results has changed",
        "run: row 5 of results is gone",
    ]
    wrong = chaos._differences(run, expected)
    assert "run: unit 5 has no result" in wrong
    assert "run: trained differ from the undisturbed run's" in wrong


def _finished(directory: Path) -> None:
    """A run that reports can read."""
    ready = launch.plan(noop.config(20, 0))
    overhead.small(directory.parent / "small", 20, 0)
    with Journal.read(directory.parent / "small") as journal:
        rows = journal.candidates(), journal.units(), journal.results()
    meta = {
        "config": json.dumps(ready.config.to_dict()),
        "environment": json.dumps(ready.environment()),
        "seeds": json.dumps([str(cell) for cell in ready.seeds]),
        "stages": json.dumps([launch._about(stage) for stage in ready.stages]),
        "created": "2026-01-01T00:00:00+00:00",
    }
    with Journal.create(directory, meta) as journal:
        journal.write(*rows)


def test_every_kind_of_kill_comes(chaos: ModuleType) -> None:
    deck = chaos._deck(50, random.Random(0))
    assert Counter(deck) == chaos.KINDS
    assert set(chaos._deck(4, random.Random(0))) == set(chaos.KINDS)


def test_a_process_and_its_descendants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    processes = import_module("processes")
    inner = "import time; print(1, flush=True); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child_process,) = processes.descendants(process.pid)
        assert child_process.parent == process.pid
        assert processes.is_alive(child_process.pid, child_process.started)
        assert not processes.is_alive(child_process.pid, "0")
        processes.kill(child_process.pid)
        process.wait()
    assert processes.descendants(process.pid) == []
    assert not processes.is_alive(child_process.pid, child_process.started)


def test_a_trial_stops_where_a_candidate_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    trial = import_module("trial")
    seen: list[dict[str, Any]] = []

    def evaluator(payload: dict[str, Any]) -> dict[str, Any]:
        seen.append(payload)
        value = payload["settings"][0]["value"]
        good = {"status": "ok", "metrics": {"nll": value}}
        return {"records": [good, {"status": "diverged", "metrics": {"nll": 0.0}}]}

    def step(name: str, value: float, bar: float) -> Any:
        plan = {"settings": [{"value": value}], "rungs": []}
        return trial.Step(name, "nll", False, plan, True, bar)

    steps = [step("a", 1.0, 1.0), step("b", 2.0, 1.5), step("c", 0.0, 1.0)]
    assert trial.climb(trial.Course("cell", steps), evaluator) == {"passed": 1, "best": [1.0, 2.0]}
    assert [payload["stage"] for payload in seen] == ["a", "b"]
    assert {*seen[0]} == {"cell", "stage", "settings", "rungs", "screen"}


@pytest.mark.parametrize("name", ["chaos", "tune"])
def test_benchmarks_explain_themselves(name: str) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"python tests/benchmarks/{name}.py" in done.stdout

"""Runs on Ray that are killed without warning: nothing acknowledged is lost, nothing changes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reports import collect
from search import cli
from search.journal import Journal

TINY = str(Path(__file__).parent / "tiny.yaml")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The leaderboard of a run in one process that nobody killed."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert cli.main(["launch", TINY, "--run", str(directory), "--workers", "0"]) == 0
    return collect.leaderboard_text(collect.read(directory))


def _command(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _results(run: Path) -> list[tuple[int, str]]:
    """(unit, worker) of the results so far; none before there is a journal."""
    if not (run / "journal.sqlite").exists():
        return []
    with Journal.read(run) as journal:
        return [(r.unit, r.worker) for r in journal.results()]


def _wait(run: Path, count: int, process: subprocess.Popen[bytes]) -> list[tuple[int, str]]:
    """Until the journal holds `count` results, while the driver lives."""
    deadline = time.monotonic() + 120
    while len(found := _results(run)) < count:
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < deadline, f"{len(found)} results after two minutes"
        time.sleep(0.02)
    return found


def test_a_driver_and_a_worker_are_killed(tmp_path: Path, undisturbed: str) -> None:
    run = tmp_path / "run"
    driver = _command("launch", TINY, "--run", str(run), "--workers", "2")
    before = _wait(run, 3, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert frozenset(before) <= frozenset(_results(run))

    again = _command("resume", str(run), "--workers", "2")
    known = len(_results(run))
    found = _wait(run, known + 2, again)
    worker = int(found[-1][1].rpartition(":")[2])
    os.kill(worker, signal.SIGKILL)
    assert again.wait(timeout=180) == 0

    assert collect.leaderboard_text(collect.read(run)) == undisturbed
    with sqlite3.connect(run / "journal.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    with Journal.read(run) as journal:
        kinds = [event.kind for event in journal.events()]
    assert kinds == ["launched", "resumed", "worker_lost", "finished"]

"""The ledger: nothing acknowledged is ever lost, and whatever is wrong is said in one line."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.errors import SearchError
from search.journal import (
    FILE,
    LOCK,
    SCHEMA_VERSION,
    CandidateRow,
    EventRow,
    Journal,
    ResultRow,
    UnitRow,
    null_nonfinite,
)

ROOT = Path(__file__).resolve().parents[2]
CELL = "cell tanh(x, h)\n    h' = tanh(W @ x + U @ h + b)\n"
PARENT = CandidateRow(0, "ab" * 32, "tanh", CELL, "seed")
CHILD = CandidateRow(
    1, "cd" * 32, "ünïcode", CELL, "mutation", (0,), {"edits": ["insert"], "p": 0.1}
)
UNITS = (
    UnitRow(0, 0, "memorisation", {"settings": [{"lr": 0.1}], "seed": 2**62}, 1e9, 0.0, 1 / 3),
    UnitRow(1, 1, "memorisation", {"settings": []}, 2.5, 0.1, 0.30000000000000004),
)
RESULTS = (
    ResultRow(0, "ok", ({"loss": 0.1, "curve": [[1, None]]},), 1.5, "node:12", 1),
    ResultRow(1, "crashed", (), 0.0, "", 3),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run."""
    directory = tmp_path / "runs" / "one"
    with Journal.create(directory, {"name": "one", "config": "{}"}) as journal:
        journal.write([PARENT, CHILD], UNITS, RESULTS, [EventRow("started", {"workers": 2}, 1.25)])
    return directory


def refused(action: Any, *arguments: Any) -> str:
    with pytest.raises(SearchError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def python(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("way", [Journal.open, Journal.read])
def test_round_trip(run: Path, way: Any):
    with way(run) as journal:
        assert journal.meta == {
            "name": "one",
            "config": "{}",
            "schema_version": str(SCHEMA_VERSION),
        }
        assert journal.candidates() == [PARENT, CHILD]
        assert journal.units() == list(UNITS)
        assert journal.results() == list(RESULTS)
        assert journal.events() == [EventRow("started", {"workers": 2}, 1.25)]
        assert journal.counts() == {"candidates": 2, "units": 2, "results": 2, "events": 1}


def test_rows_come_in_the_order_of_their_ids(tmp_path: Path):
    with Journal.create(tmp_path, {}) as journal:
        for i in (3, 1, 2):
            journal.write(
                [CandidateRow(i, "", "", "", "")],
                [UnitRow(i, i, "", {}, 0, 0, 0)],
                [ResultRow(i, "ok")],
                [EventRow(f"event {i}")],
            )
        assert [c.id for c in journal.candidates()] == [1, 2, 3]
        assert [u.id for u in journal.units()] == [1, 2, 3]
        assert [r.unit for r in journal.results()] == [1, 2, 3]
        assert [e.kind for e in journal.events()] == ["event 3", "event 1", "event 2"]


def test_the_first_result_of_a_unit_wins(run: Path):
    with Journal.open(run) as journal:
        journal.write(units=[UnitRow(2, 1, "task", {}, 0, 0, 0)])
        again = [ResultRow(0, "timeout"), ResultRow(2, "ok"), ResultRow(2, "crashed")]
        assert journal.write(results=again) == 1
        assert journal.write(results=again) == 0
        assert journal.write() == 0
        assert [r.status for r in journal.results()] == ["ok", "crashed", "ok"]


def test_rows_are_read_ahead(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("search.journal.STRETCH", 2)
    with Journal.open(run) as journal:
        first = ResultRow(0, "ok", ({"loss": 0.1},), 1.5, "node:12", 1)
        assert journal.stretch(0) == {0: (UNITS[0], first), 1: (UNITS[1], RESULTS[1])}
        assert journal.stretch(1) == {1: (UNITS[1], RESULTS[1])}
        assert journal.stretch(2) == {}
        bare = journal.stretch(0, payloads=False)
        expected = [replace(UNITS[0], payload={}), replace(UNITS[1], payload={})]
        assert [unit for unit, _ in bare.values()] == expected
        recall = journal.recall()
        assert [recall(1), recall(2), recall(2)] == [CHILD, None, None]
        new = [CandidateRow(i, f"k{i}", "n", CELL, "mutation", (1,)) for i in (2, 3, 4)]
        journal.write(new, [UnitRow(2, 2, "s", {}, 1, 0, 1)])
        assert journal.stretch(1) == {
            1: (UNITS[1], RESULTS[1]),
            2: (UnitRow(2, 2, "s", {}, 1, 0, 1), None),
        }
        assert [recall(i) for i in (2, 3, 4, 5)] == [*new, None]
        assert [journal.candidate(4), journal.candidate(5)] == [new[2], None]


def test_an_empty_journal(tmp_path: Path):
    with Journal.create(tmp_path, {}) as journal:
        assert journal.candidates() == journal.units() == journal.results() == []
        assert (journal.stretch(0), journal.recall()(0)) == ({}, None)


def test_results_without_curves_and_with_packed_ones(run: Path):
    with Journal.read(run) as journal:
        first, second = journal.results(curves=False)
        assert first.records == ({"loss": 0.1},)
        assert second == RESULTS[1]
        packed = list(journal.packed())
        assert [result for result, _ in packed] == [first, second]
        assert [curves[0] for _, curves in packed] == [[[1, None]], None]


def test_curves_stand_in_a_column_of_their_own(run: Path):
    with sqlite3.connect(run / FILE) as database:
        rows = database.execute("SELECT records, curves FROM results ORDER BY unit").fetchall()
    database.close()
    assert rows == [
        ('[{"loss":0.1}]', b'[[1,"sf",[1,0]]]\n' + b"\0" * 6 + b"\xf8\x7f"),
        ("[]", None),
    ]


def test_a_write_is_all_or_nothing(run: Path):
    with Journal.open(run) as journal:
        before = journal.counts()
        new = CandidateRow(2, "", "", "", "")
        orphan = UnitRow(2, 99, "", {}, 0, 0, 0)
        assert "refuses a row (FOREIGN KEY" in refused(journal.write, [new], [orphan])
        assert "refuses a row (UNIQUE" in refused(journal.write, [new, CHILD])
        assert "refuses a row (FOREIGN KEY" in refused(journal.write, [new], (), [ResultRow(9, "")])
        nan_cost = UnitRow(2, 2, "", {}, math.nan, 0, 0)
        assert "refuses a row (NOT NULL" in refused(journal.write, [new], [nan_cost])
        with pytest.raises(ValueError, match="JSON"):  # a payload that a replay could not repeat
            journal.write([new], [UnitRow(2, 2, "", {"lr": math.nan}, 0, 0, 0)])
        assert journal.counts() == before
        assert journal.write([new]) == 0
        assert journal.counts()["candidates"] == 3


def test_losses_that_are_not_finite_become_null(run: Path):
    with Journal.open(run) as journal:
        journal.write(units=[UnitRow(2, 1, "", {}, 0, 0, 0)])
        record = {"curve": [[1, math.nan], [2, math.inf]], "metrics": {"loss": math.nan}}
        journal.write(results=[ResultRow(2, "ok", (record,))])
        assert journal.results()[2].records == (
            {"curve": [[1, None], [2, None]], "metrics": {"loss": None}},
        )
    assert null_nonfinite({"a": (1.5, -math.inf, {"b": math.nan}), "c": "nan", "d": 3}) == {
        "a": [1.5, None, {"b": None}],
        "c": "nan",
        "d": 3,
    }


def test_json_is_written_with_sorted_keys(run: Path):
    with sqlite3.connect(run / FILE) as database:
        (text,) = database.execute("SELECT detail FROM candidates WHERE id = 1").fetchone()
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    database.close()
    assert text == '{"edits":["insert"],"p":0.1}'
    assert mode == "wal"


WRITER = """
import sys
from search.journal import *
journal = Journal.open(sys.argv[1])
first = journal.counts()["candidates"]
print("open", flush=True)
for i in range(first, 10**9):
    journal.write([CandidateRow(i, "k" * 64, "c", "cell" * 50, "seed")],
                  [UnitRow(i, i, "s", {"x": [1] * 50}, 1, 0, 1)], [ResultRow(i, "ok")])
    print(i, flush=True)
"""


def test_kill_9_loses_nothing_acknowledged(run: Path):
    acknowledged = -1
    for pause in (0.05, 0.11, 0.17):
        writer = python(WRITER, run)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        lines = writer.stdout.read().split("\n")[:-1]  # what follows the last line end is cut off
        writer.wait()
        writer.stdout.close()
        acknowledged = int(lines[-1])

        with Journal.read(run) as snapshot:
            seen = snapshot.counts()
        with Journal.open(run) as journal:
            counts = journal.counts()
        assert seen == counts
        assert counts["candidates"] == counts["units"] == counts["results"]
        # At most the one transaction whose acknowledgement was not read is there on top.
        assert counts["candidates"] - 1 in (acknowledged, acknowledged + 1)
        with sqlite3.connect(run / FILE) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
    assert acknowledged > 20


def test_two_writers_are_refused(run: Path):
    with Journal.open(run) as journal:
        expected = f"{run}: is being written by process {os.getpid()} on "
        assert refused(Journal.open, run).startswith(expected)
        assert refused(Journal.create, run, {}).startswith(expected)
        journal.write(events=[EventRow("still writing")])
    writer = python(WRITER, run)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "open\n"
    assert f"is being written by process {writer.pid} on " in refused(Journal.open, run)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    Journal.open(run).close()  # the lock died with its process


def test_a_snapshot_stays_as_it_was_while_a_driver_writes(run: Path):
    with Journal.open(run) as writer:
        with Journal.read(run) as before, Journal.read(run) as another:
            for i in range(2, 50):
                writer.write([CandidateRow(i, "", "", "", "")])
            assert before.counts()["candidates"] == 2
            assert [c.id for c in another.candidates()] == [0, 1]
            assert "was opened for reading" in refused(before.write, [PARENT])
        with Journal.read(run) as after:
            assert after.counts()["candidates"] == 50
    assert sorted(p.name for p in run.iterdir()) == [LOCK, FILE]


def test_a_snapshot_outlives_the_writer(run: Path):
    with Journal.read(run) as finished:
        with Journal.open(run) as writer:
            writer.write([CandidateRow(2, "", "", "", "")])
            during = Journal.read(run)
        assert finished.counts()["candidates"] == 2
        assert during.counts()["candidates"] == 3
        during.close()
    during.close()


def test_reading_a_finished_run_leaves_no_litter(run: Path):
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    with Journal.read(run) as journal:
        assert len(journal.candidates()) == 2
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before


READ_ONLY = """
import os, subprocess, sys
from search.errors import SearchError
from search.journal import Journal
subprocess.run(["mount", "--bind", sys.argv[1], sys.argv[1]], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", sys.argv[1]], check=True)
with Journal.read(sys.argv[1]) as journal:
    print(journal.counts()["candidates"], len(journal.results()))
try:
    Journal.open(sys.argv[1])
except SearchError as error:
    print(error)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0
    if sys.platform == "linux"
    else True,
    reason="needs leave to mount inside a user namespace",
)
@pytest.mark.parametrize("state", ["finished", "running", "killed", "killed and copied"])
def test_on_a_read_only_file_system(run: Path, state: str):
    writer = None
    if state == "running":
        writer = Journal.open(run)
        writer.write([CandidateRow(2, "", "", "", "")])
    elif state != "finished":
        killed = python(WRITER, run)
        assert killed.stdout is not None
        assert [killed.stdout.readline() for _ in range(2)] == ["open\n", "2\n"]
        killed.kill()
        killed.wait()
        killed.stdout.close()
        if state == "killed and copied":  # as rsync --exclude='*-shm' leaves it
            (run / f"{FILE}-shm").unlink()
    command = ["unshare", "-rm", sys.executable, "-c", READ_ONLY, str(run)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts, error, _ = done.stdout.split("\n")
    found, results = map(int, counts.split())
    assert (found, results) == (2, 2) if state == "finished" else found >= 3
    assert error == f"{run / LOCK}: cannot be used: Read-only file system"
    if writer is not None:
        writer.close()


def test_not_a_run_directory(tmp_path: Path, run: Path):
    for way in (Journal.open, Journal.read):
        assert refused(way, tmp_path / "none") == f"{tmp_path / 'none'}: no such run directory"
        assert refused(way, tmp_path).endswith("is not a run directory (it has no journal.sqlite)")
        assert refused(way, run / FILE).endswith("no such run directory")
    assert refused(Journal.create, run, {}).startswith(f"{run}: holds a run already")
    assert refused(Journal.create, run / FILE / "below", {}).endswith("Not a directory")
    assert list(tmp_path.glob("*")) == [tmp_path / "runs"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a journal of cellsearch"),
        (b"no database at all, but long enough for a header\n" * 100, "is not a journal of cells"),
        ("truncated", "is damaged (database disk image is malformed)"),
        ("half a page", "is damaged (database disk image is malformed)"),
    ],
)
@pytest.mark.parametrize("way", [Journal.open, Journal.read])
def test_a_file_that_is_no_journal(run: Path, way: Any, content: bytes | str, message: str):
    file = run / FILE
    whole = file.read_bytes()
    if content == "truncated":
        content = whole[: len(whole) // 2]
    elif content == "half a page":
        content = whole[:60]
    assert isinstance(content, bytes)
    file.write_bytes(content)
    assert refused(way, run).startswith(f"{file}: {message}")


def test_a_damaged_page_is_found(run: Path):
    with Journal.open(run) as journal:
        more = [CandidateRow(i, "k" * 64, "c", "cell" * 50, "seed") for i in range(2, 500)]
        journal.write(more)
    data = bytearray((run / FILE).read_bytes())
    data[20 * 4096 : 24 * 4096] = b"\xff" * 4 * 4096
    (run / FILE).write_bytes(data)
    assert "is damaged" in refused(Journal.open, run)
    with Journal.read(run) as journal:
        assert "is damaged" in refused(journal.candidates)


def test_a_row_that_is_not_json(run: Path):
    with sqlite3.connect(run / FILE) as database:
        database.execute("UPDATE results SET records = '[1, '")
    database.close()
    with Journal.read(run) as journal:
        assert refused(journal.results).endswith("is damaged (a row is not JSON)")
        assert refused(journal.stretch, 0).endswith("is damaged (a row is not JSON)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("records = '{}'", "is damaged (it holds {} where a list was expected)"),
        ("records = '[5]'", "is damaged (the curves of unit 0 are not those of its records)"),
        ("records = '[{}, {}]'", "is damaged (the curves of unit 0 are not those of its records)"),
        ("curves = 'text'", "is damaged (the curves of unit 0 cannot be read)"),
    ],
)
def test_results_that_nobody_wrote(run: Path, change: str, message: str):
    with sqlite3.connect(run / FILE) as database:
        database.execute(f"UPDATE results SET {change} WHERE unit = 0")
    database.close()
    with Journal.read(run) as journal:
        assert refused(journal.results) == f"{run / FILE}: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            f"UPDATE meta SET value = {SCHEMA_VERSION + 1} WHERE key = 'schema_version'",
            "is of sche",
        ),
        ("DELETE FROM meta", "is not a journal of cellsearch"),
        ("UPDATE meta SET value = 'x' WHERE key = 'schema_version'", "is not a journal of cells"),
        ("ALTER TABLE meta RENAME TO other", "is not a journal of cellsearch"),
    ],
)
@pytest.mark.parametrize("way", [Journal.open, Journal.read])
def test_another_schema(run: Path, way: Any, change: str, message: str):
    with sqlite3.connect(run / FILE) as database:
        database.execute(change)
    database.close()
    assert refused(way, run).startswith(f"{run / FILE}: {message}")


DISK_FULL = """
import resource, sys
from search.errors import SearchError
from search.journal import *
journal = Journal.create(sys.argv[1], {})
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
written = 0
try:
    for written in range(10**6):
        journal.write([CandidateRow(written, "k" * 64, "c", "x" * 1000, "seed")])
except SearchError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.counts()["candidates"] == written
journal.write([CandidateRow(written, "k", "c", "there is room again", "seed")])
journal.close()
print(written)
"""


def test_a_file_that_may_not_grow(tmp_path: Path):
    """The kernel refuses to write: all that was acknowledged stays, and writing can go on."""
    child = python(DISK_FULL, tmp_path)
    output, _ = child.communicate()
    assert child.returncode == 0
    error, written, _ = output.split("\n")
    assert error.startswith(f"{tmp_path / FILE}: ")
    assert int(written) > 10
    with Journal.open(tmp_path) as journal:
        assert journal.counts()["candidates"] == int(written) + 1


def test_a_full_disk(run: Path):
    with Journal.open(run) as journal:
        journal._database.execute("PRAGMA max_page_count = 12")
        big = CandidateRow(2, "", "", "x" * 100_000, "")
        assert refused(journal.write, [big]).startswith(f"{run / FILE}: the disk is full; free")
        assert journal.counts()["candidates"] == 2
        journal._database.execute("PRAGMA max_page_count = 1000")
        journal.write([big])
        assert journal.counts()["candidates"] == 3


def test_a_killed_create_leaves_nothing_in_the_way(tmp_path: Path):
    (tmp_path / f"{FILE}.new").write_bytes(b"half of something")
    for suffix in ("journal", "wal", "shm"):
        (tmp_path / f"{FILE}.new-{suffix}").write_bytes(b"half of something")
    Journal.create(tmp_path, {"a": "b"}).close()
    with Journal.read(tmp_path) as journal:
        assert journal.meta["a"] == "b"
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, FILE]


def test_names_with_characters_that_mean_something_in_a_uri(tmp_path: Path):
    with Journal.create(tmp_path / "a?b#c%41 d", {"a": "b"}):
        pass
    with Journal.read(tmp_path / "a?b#c%41 d") as journal:
        assert journal.meta["a"] == "b"

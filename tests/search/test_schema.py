"""Ledgers of older versions load for ever. tests/assets/journal_v1.sqlite is a finished run of 12
candidates, as the first version wrote it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import cellgraph as cg
from reports import collect, page, tables
from search import schema
from search.errors import SearchError
from search.journal import FILE, LOCK, CandidateRow, EventRow, Journal, ResultRow, UnitRow

ASSETS = Path(__file__).resolve().parents[1] / "assets"
OLD = ASSETS / "journal_v1.sqlite"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of an old run."""
    directory = tmp_path / "old"
    directory.mkdir()
    shutil.copyfile(OLD, directory / FILE)
    return directory


def query(file: Path, statement: str) -> list[tuple[Any, ...]]:
    """Past `Journal`, so that a journal can be held against what is really in its file."""
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?immutable=1", uri=True)) as database:
        return database.execute(statement).fetchall()


def old_rows() -> tuple[list[CandidateRow], list[UnitRow], list[ResultRow]]:
    candidates = [
        CandidateRow(*row[:5], tuple(json.loads(row[5])), json.loads(row[6]))
        for row in query(OLD, "SELECT * FROM candidates ORDER BY id")
    ]
    units = [
        UnitRow(*row[:3], json.loads(row[3]), *row[4:])
        for row in query(OLD, "SELECT * FROM units ORDER BY id")
    ]
    results = [
        ResultRow(*row[:2], tuple(json.loads(row[2])), *row[3:])
        for row in query(OLD, "SELECT * FROM results ORDER BY unit")
    ]
    return candidates, units, results


def test_the_asset_is_what_it_should_be() -> None:
    assert OLD.stat().st_size < 200_000
    assert query(OLD, "SELECT value FROM meta WHERE key = 'schema_version'") == [("1",)]
    results = old_rows()[2]
    statuses = {record["status"] for result in results for record in result.records}
    assert statuses == {"ok", "diverged"}
    assert sum(len(record["curve"]) for r in results for record in r.records) == 472


@pytest.mark.parametrize("way", [Journal.open, Journal.read])
def test_an_old_ledger_has_its_rows(run: Path, way: Any) -> None:
    candidates, units, results = old_rows()
    with way(run) as journal:
        assert journal.candidates() == candidates
        assert journal.units() == units
        assert journal.results() == results
        assert json.dumps(journal.results()[5].records[0]["curve"]) == json.dumps(
            results[5].records[0]["curve"]
        )
        assert journal.meta["schema_version"] == str(schema.VERSION)
        old_meta = dict(query(OLD, "SELECT key, value FROM meta"))
        assert {**journal.meta, "schema_version": "1"} == old_meta
        kinds = [event.kind for event in journal.events()]
    assert kinds == ["launched", "finished"] + (["migrated"] if way == Journal.open else [])


def test_reading_an_old_ledger_changes_nothing(run: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    with Journal.read(run) as journal:
        assert journal.counts()["results"] == 41
        journal.check()
    assert (run / FILE).read_bytes() == OLD.read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_an_old_ledger_that_somebody_has_open_can_be_read(run: Path) -> None:
    with contextlib.closing(sqlite3.connect(run / FILE, isolation_level=None)) as database:
        database.execute("INSERT INTO events (at, kind, detail) VALUES (1.5, 'resumed', '{}')")
        assert (run / f"{FILE}-shm").exists()
        with Journal.read(run) as journal:
            assert journal.results() == old_rows()[2]
            assert journal.events()[-1] == EventRow("resumed", {}, 1.5)
        assert database.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()[
            0
        ] == ("1")


def test_migration_gives_the_file_that_would_be_written_today(run: Path, tmp_path: Path) -> None:
    candidates, units, results = old_rows()
    with Journal.open(run) as journal:
        assert journal.events()[-1].detail == {"from": 1, "to": schema.VERSION}
    with Journal.create(tmp_path / "new", {}) as journal:
        journal.write(candidates, units, results)
    for table in ("candidates", "units", "results"):
        statement = f"SELECT * FROM {table} ORDER BY 1"
        assert query(run / FILE, statement) == query(tmp_path / "new" / FILE, statement)
    columns = "SELECT name FROM pragma_table_info('results')"
    assert query(run / FILE, columns) == query(tmp_path / "new" / FILE, columns)
    with Journal.open(run) as journal:  # once is enough
        assert [event.kind for event in journal.events()].count("migrated") == 1


def test_an_old_run_goes_on(run: Path) -> None:
    with Journal.open(run) as journal:
        number = len(journal.units())
        journal.write(units=[UnitRow(number, 3, "xml", {"purpose": "re-evaluation"}, 1, 0, 1)])
        new = ResultRow(number, "ok", ({"status": "ok", "curve": [[5, 0.5, 0.25, 0.125]]},))
        journal.write(results=[new])
    with Journal.open(run) as journal:
        assert journal.results() == [*old_rows()[2], new]
        journal.check()


def test_reports_of_an_old_run(run: Path, tmp_path: Path) -> None:
    golden = (ASSETS / "journal_v1.leaderboard.tsv").read_text(encoding="utf-8")
    before = collect.read(run)
    assert collect.leaderboard_text(before) == golden
    Journal.open(run).close()
    after = collect.read(run)
    assert collect.leaderboard_text(after) == golden
    assert tables.status_data(after)["statuses"] == {"diverged": 12, "ok": 87}
    pages = [page.write(one, tmp_path / "page.html").read_text() for one in (before, after)]
    assert pages[0] == pages[1]
    best = after.leaderboard["key"][0]
    assert cg.load(f"{run}:{best[:10]}") == cg.parse(after.first[best].cell)


def test_a_migration_that_fails_leaves_the_old_file(run: Path, monkeypatch: Any) -> None:
    def fails(database: sqlite3.Connection, file: Path) -> None:
        pack(database, file)
        raise OSError(28, "No space left on device")

    pack = schema.MIGRATIONS[1]
    monkeypatch.setitem(schema.MIGRATIONS, 1, fails)
    with pytest.raises(SearchError, match="No space left"):
        Journal.open(run)
    monkeypatch.undo()
    assert query(run / FILE, "SELECT * FROM results") == query(OLD, "SELECT * FROM results")
    assert sorted(path.name for path in run.iterdir()) == [LOCK, FILE]
    with Journal.open(run) as journal:
        assert journal.results() == old_rows()[2]


def test_a_row_that_the_old_version_did_not_write(run: Path) -> None:
    with contextlib.closing(sqlite3.connect(run / FILE)) as database, database:
        database.execute("UPDATE results SET records = '[1, ' WHERE unit = 7")
    for way in (Journal.open, Journal.read):
        with pytest.raises(SearchError) as caught:
            way(run)
        assert str(caught.value) == f"{run / FILE}: is damaged (a row is not JSON)"


def test_migrations_run_one_after_the_other(run: Path, monkeypatch: Any) -> None:
    def rename(database: sqlite3.Connection, file: Path) -> None:
        assert schema.version(database, file) == 1  # the version is written at the end
        database.execute("UPDATE candidates SET origin = 'start' WHERE origin = 'seed'")

    monkeypatch.setattr(schema, "VERSION", 3)
    monkeypatch.setitem(schema.MIGRATIONS, 2, rename)
    with Journal.open(run) as journal:
        assert journal.meta["schema_version"] == "3"
        assert journal.candidates()[0].origin == "start"
        assert journal.results() == old_rows()[2]
        assert journal.events()[-1].detail == {"from": 1, "to": 3}
    monkeypatch.undo()
    with pytest.raises(SearchError, match="is of schema 3, this version of cellsearch knows 2"):
        Journal.open(run)


def test_every_version_has_its_migration() -> None:
    assert sorted(schema.MIGRATIONS) == list(range(1, schema.VERSION))

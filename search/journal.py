"""The ledger of a run: one SQLite file that holds every proposal and every result.

All state of a search is a replay of this file, so what `Journal.write` has returned from survives
the death of any process and of the machine: write-ahead log, synchronous=FULL, one transaction per
call. One process writes (the driver), any number read. What the rows mean is the driver's business;
nothing here knows about cells, tasks or Ray.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from search.errors import SearchError
from search.storage import clear_errors, lock, snapshot, sync_folder, uri

FILE = "journal.sqlite"
LOCK = "journal.lock"
SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE candidates (
    id      INTEGER PRIMARY KEY,
    key     TEXT NOT NULL,     -- canonical key of the cell
    name    TEXT NOT NULL,
    cell    TEXT NOT NULL,     -- its notation
    origin  TEXT NOT NULL,     -- how it came about: seed, mutation, ...
    parents TEXT NOT NULL,     -- JSON list of candidate ids
    detail  TEXT NOT NULL      -- JSON mapping
);
CREATE TABLE units (
    id        INTEGER PRIMARY KEY,
    candidate INTEGER NOT NULL REFERENCES candidates,
    stage     TEXT NOT NULL,
    payload   TEXT NOT NULL,   -- JSON mapping: everything a worker needs
    cost      REAL NOT NULL,   -- planned; "start" and "end" are virtual times
    start     REAL NOT NULL,
    "end"     REAL NOT NULL
);
CREATE TABLE results (
    unit     INTEGER PRIMARY KEY REFERENCES units,
    status   TEXT NOT NULL,
    records  TEXT NOT NULL,    -- JSON list, one record per setting
    seconds  REAL NOT NULL,
    worker   TEXT NOT NULL,
    attempts INTEGER NOT NULL
);
CREATE TABLE events (
    id     INTEGER PRIMARY KEY,
    at     REAL NOT NULL,      -- seconds since 1970
    kind   TEXT NOT NULL,
    detail TEXT NOT NULL       -- JSON mapping
);
"""


@dataclass(frozen=True)
class CandidateRow:
    """A proposed cell. Ids are the caller's, so that a replay gives the same ones."""

    id: int
    key: str
    name: str
    cell: str
    origin: str
    parents: tuple[int, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitRow:
    """One piece of work: a stage of a candidate; cost, start and end in virtual time."""

    id: int
    candidate: int
    stage: str
    payload: Mapping[str, Any]
    cost: float
    start: float
    end: float


@dataclass(frozen=True)
class ResultRow:
    """What became of a unit; `seconds` of wall time on `worker` at the last of its `attempts`."""

    unit: int
    status: str
    records: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    worker: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class EventRow:
    """Something worth telling the reader (resumed, worker lost); never part of a replay."""

    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class Journal:
    """An open ledger, from `create` or `open` (the one writer) or `read` (a fixed snapshot).

    Mappings and records must consist of what JSON knows: lists come back as lists, keys as text.
    Every method raises SearchError with one line when the file cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        database: sqlite3.Connection,
        cleanup: contextlib.ExitStack,
        writable: bool,
    ) -> None:
        self.directory = directory
        self._database = database
        self._writable = writable
        self._cleanup = cleanup
        with clear_errors(directory / FILE):
            self.meta: dict[str, str] = dict(database.execute("SELECT key, value FROM meta"))

    @classmethod
    def create(cls, directory: str | Path, meta: Mapping[str, str]) -> Journal:
        """A new, empty journal in `directory`, which is made when missing; open for writing.

        meta: what identifies the run, such as its configuration; never changed afterwards.
        Raises SearchError when the directory holds a run already or cannot be written.
        """
        directory = Path(directory)
        file = directory / FILE
        with contextlib.ExitStack() as cleanup, clear_errors(directory / FILE):
            directory.mkdir(parents=True, exist_ok=True)
            cleanup.enter_context(lock(directory / LOCK, str(directory)))
            if file.exists():
                raise SearchError(f"{directory}: holds a run already; resume it or choose a name")
            # Made aside and then renamed: a driver killed here leaves no half-made journal behind.
            draft = directory / f"{FILE}.new"
            for leftover in (draft, directory / f"{draft.name}-journal"):
                leftover.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous=FULL")
                database.executescript(f"BEGIN; {_TABLES}")
                rows = [*meta.items(), ("schema_version", str(SCHEMA_VERSION))]
                database.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                database.execute("COMMIT")
            os.rename(draft, file)
            sync_folder(directory)
            return cls._writer(directory, cleanup.pop_all())

    @classmethod
    def open(cls, directory: str | Path) -> Journal:
        """The journal of an existing run for writing; refused while another process writes it."""
        directory = Path(directory)
        _check_exists(directory)
        with contextlib.ExitStack() as cleanup, clear_errors(directory / FILE):
            cleanup.enter_context(lock(directory / LOCK, str(directory)))
            return cls._writer(directory, cleanup.pop_all())

    @classmethod
    def _writer(cls, directory: Path, cleanup: contextlib.ExitStack) -> Journal:
        with cleanup, clear_errors(directory / FILE):
            # A reader that has just found the file without a log holds it for a moment: 10 s.
            database = sqlite3.connect(
                uri(directory / FILE, "rw"), uri=True, isolation_level=None, timeout=10
            )
            cleanup.callback(database.close)
            _check_schema(directory, database)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA fullfsync=ON")  # what FULL means on macOS; nothing elsewhere
            database.execute("PRAGMA foreign_keys=ON")
            problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise SearchError(f"{directory / FILE}: is damaged: {problem.splitlines()[-1]}")
            return cls(directory, database, cleanup.pop_all(), writable=True)

    @classmethod
    def read(cls, directory: str | Path) -> Journal:
        """The journal as it is at this moment, whatever is written later; never changes the run.

        Works while a driver writes, after one was killed, and on a read-only file system. Close it
        soon: the log of the writer cannot shrink as long as a snapshot is open.
        """
        directory = Path(directory)
        _check_exists(directory)
        with contextlib.ExitStack() as cleanup, clear_errors(directory / FILE):
            database = snapshot(directory / FILE, cleanup)
            _check_schema(directory, database)
            return cls(directory, database, cleanup.pop_all(), writable=False)

    def write(
        self,
        candidates: Iterable[CandidateRow] = (),
        units: Iterable[UnitRow] = (),
        results: Iterable[ResultRow] = (),
        events: Iterable[EventRow] = (),
    ) -> int:
        """Add rows in exactly one transaction, durable on return; all of them or none.

        A result for a unit that has one already is ignored: the first wins. Returns how many of
        `results` were new. Rows that break the schema (an id given twice, a unit of an unknown
        candidate) raise SearchError.
        """
        if not self._writable:
            raise SearchError(f"{self.directory}: was opened for reading, not for writing")
        new_candidates = [
            (c.id, c.key, c.name, c.cell, c.origin, _json(list(c.parents)), _json(c.detail))
            for c in candidates
        ]
        new_units = [
            (u.id, u.candidate, u.stage, _json(u.payload), u.cost, u.start, u.end) for u in units
        ]
        new_results = [
            (r.unit, r.status, _json(null_nonfinite(r.records)), r.seconds, r.worker, r.attempts)
            for r in results
        ]
        new_events = [(e.at, e.kind, _json(e.detail)) for e in events]
        database = self._database
        with clear_errors(self.directory / FILE):
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany(
                    "INSERT INTO candidates VALUES (?,?,?,?,?,?,?)", new_candidates
                )
                database.executemany("INSERT INTO units VALUES (?,?,?,?,?,?,?)", new_units)
                added = database.executemany(
                    # Not OR IGNORE, which would also hide rows that break the schema.
                    "INSERT INTO results VALUES (?,?,?,?,?,?) ON CONFLICT (unit) DO NOTHING",
                    new_results,
                ).rowcount
                database.executemany(
                    "INSERT INTO events (at, kind, detail) VALUES (?,?,?)", new_events
                )
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # a full disk may have rolled it back already
                    database.execute("ROLLBACK")
                raise
        return max(added, 0)

    def candidates(self) -> list[CandidateRow]:
        """All candidates in the order of their ids."""
        return [
            CandidateRow(id_, key, name, cell, origin, tuple(_list(parents)), detail)
            for id_, key, name, cell, origin, parents, detail in self._rows(
                "SELECT id, key, name, cell, origin, parents, detail FROM candidates ORDER BY id",
                parsed=(5, 6),
            )
        ]

    def units(self) -> list[UnitRow]:
        """All units in the order of their ids."""
        query = 'SELECT id, candidate, stage, payload, cost, start, "end" FROM units ORDER BY id'
        return [UnitRow(*row) for row in self._rows(query, parsed=(3,))]

    def results(self) -> list[ResultRow]:
        """All results in the order of their units."""
        query = "SELECT unit, status, records, seconds, worker, attempts FROM results ORDER BY unit"
        return [
            ResultRow(unit, status, tuple(_list(records)), *rest)
            for unit, status, records, *rest in self._rows(query, parsed=(2,))
        ]

    def events(self) -> list[EventRow]:
        """All events in the order in which they were written."""
        query = "SELECT kind, detail, at FROM events ORDER BY id"
        return [EventRow(*row) for row in self._rows(query, parsed=(1,))]

    def counts(self) -> dict[str, int]:
        """Rows per table."""
        query = """SELECT (SELECT count(*) FROM candidates), (SELECT count(*) FROM units),
                          (SELECT count(*) FROM results), (SELECT count(*) FROM events)"""
        tables = ("candidates", "units", "results", "events")
        return dict(zip(tables, self._rows(query)[0], strict=True))

    def _rows(self, query: str, parsed: tuple[int, ...] = ()) -> list[list[Any]]:
        """The rows of a query, the columns `parsed` turned from JSON into data."""
        with clear_errors(self.directory / FILE):
            rows = [list(row) for row in self._database.execute(query)]
            for row in rows:
                for column in parsed:
                    try:
                        row[column] = json.loads(row[column])
                    except (ValueError, TypeError, RecursionError):
                        raise SearchError(
                            f"{self.directory / FILE}: is damaged (a row is not JSON)"
                        ) from None
        return rows

    def close(self) -> None:
        """Give the file, and the writer's lock, back. Closing twice does nothing."""
        with clear_errors(self.directory / FILE):
            self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise SearchError(f"the journal holds {value!r:.40} where a list was expected")
    return value


def null_nonfinite(value: Any) -> Any:
    """A copy of JSON-able data with NaN and ±inf, which JSON cannot write, replaced by None.

    A diverged training reports such losses; that it diverged is in the record's status.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: null_nonfinite(item) for key, item in value.items()}
    return [null_nonfinite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _json(value: Any) -> str:
    """Strict JSON with sorted keys; NaN, inf and objects of no JSON type are errors of ours."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _check_exists(directory: Path) -> None:
    if not directory.is_dir():
        raise SearchError(f"{directory}: no such run directory")
    if not (directory / FILE).is_file():
        raise SearchError(f"{directory}: is not a run directory (it has no {FILE})")


def _check_schema(directory: Path, database: sqlite3.Connection) -> None:
    file = directory / FILE
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    version = 0
    if "meta" in names:
        query = "SELECT value FROM meta WHERE key = 'schema_version'"
        for (text,) in database.execute(query):
            version = int(text) if str(text).isdecimal() else 0
    if version == 0:
        raise SearchError(f"{file}: is not a journal of cellsearch")
    if version > SCHEMA_VERSION:
        raise SearchError(
            f"{file}: is of schema {version}, this version of cellsearch knows {SCHEMA_VERSION}: "
            "update cellsearch"
        )

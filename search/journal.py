"""The ledger of a run: one SQLite file that holds every proposal and every result.

All state of a search is a replay of this file, so what `Journal.write` has returned from survives
the death of any process and of the machine: write-ahead log, synchronous=FULL, one transaction per
call. One process writes (the driver), any number read. What the rows mean is the driver's business;
nothing here knows about cells, tasks or Ray. Versions of the tables: `search.schema`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from search import schema
from search.curves import PackedCurves, split
from search.errors import SearchError
from search.rows import (
    CandidateRow,
    EventRow,
    ResultRow,
    UnitRow,
    finite_json,
    null_nonfinite,
    to_json,
)
from search.storage import (
    Guard,
    check,
    check_unopened,
    clear_errors,
    lock,
    private_copy,
    snapshot,
    sync_folder,
    uri,
)

__all__ = [
    "FILE",
    "LOCK",
    "SCHEMA_VERSION",
    "CandidateRow",
    "EventRow",
    "Journal",
    "PackedCurves",
    "ResultRow",
    "UnitRow",
    "null_nonfinite",
]

FILE = "journal.sqlite"
LOCK = "journal.lock"
SCHEMA_VERSION = schema.VERSION

_DECODE = json.JSONDecoder().decode

_CANDIDATE = "SELECT id, key, name, cell, origin, parents, detail FROM candidates"
_UNIT = 'SELECT id, candidate, stage, payload, cost, start, "end" FROM units'
STRETCH = 500  #: rows that are read ahead
_STRETCH = """SELECT id, candidate, stage, {payload}, cost, start, "end",
    unit, status, records, seconds, worker, attempts
    FROM units LEFT JOIN results ON unit = id"""
# The curves come last, here and in the file: what does not ask for them does not read them.
_RESULT = "SELECT unit, status, records, seconds, worker, attempts FROM results"
_RESULT_CURVES = "SELECT unit, status, records, seconds, worker, attempts, curves FROM results"


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
        guard: Guard | None,
    ) -> None:
        """guard: of the files that are written; None for a journal that is only read."""
        self.directory = directory
        self.file = directory / FILE
        self._database = database
        self._cleanup = cleanup
        self._guard = guard
        with clear_errors(self.file):
            self.meta: dict[str, str] = dict(database.execute("SELECT key, value FROM meta"))

    @classmethod
    def create(cls, directory: str | Path, meta: Mapping[str, str]) -> Journal:
        """A new, empty journal in `directory`, which is made when missing; open for writing.

        meta: what identifies the run, such as its configuration; never changed afterwards.
        Raises SearchError when the directory holds a run already or cannot be written.
        """
        directory = Path(directory)
        file = directory / FILE
        with contextlib.ExitStack() as cleanup, clear_errors(file):
            directory.mkdir(parents=True, exist_ok=True)
            cleanup.enter_context(lock(directory / LOCK, str(directory)))
            if file.exists():
                raise SearchError(f"{directory}: holds a run already; resume it or choose a name")
            # Made aside and then renamed: a driver killed here leaves no half-made journal behind.
            draft = directory / f"{FILE}.new"
            for suffix in ("", "-journal", "-wal", "-shm"):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=FULL")
                schema.create(database, meta)
            os.rename(draft, file)
            sync_folder(directory)
            return cls._writer(directory, cleanup.pop_all())

    @classmethod
    def open(cls, directory: str | Path) -> Journal:
        """The journal of an existing run for writing; refused while another process writes it.

        It is checked in full (`check`), and a file of an older version is brought to today's, in
        one transaction with an event that says so. Raises SearchError, the file as it was, when it
        is damaged or of a version of the future.
        """
        directory = Path(directory)
        _check_exists(directory)
        with contextlib.ExitStack() as cleanup, clear_errors(directory / FILE):
            cleanup.enter_context(lock(directory / LOCK, str(directory)))
            check_unopened(directory / FILE)
            return cls._writer(directory, cleanup.pop_all())

    @classmethod
    def _writer(cls, directory: Path, cleanup: contextlib.ExitStack) -> Journal:
        file = directory / FILE
        with cleanup, clear_errors(file):
            # A reader that has just found the file without a log holds it for a moment: 10 s.
            database = sqlite3.connect(uri(file, "rw"), uri=True, isolation_level=None, timeout=10)
            cleanup.callback(database.close)
            schema.version(database, file)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA fullfsync=ON")  # what FULL means on macOS; nothing elsewhere
            database.execute("PRAGMA foreign_keys=ON")
            schema.migrate(database, file, tell=True)
            guard = Guard(file, (directory / f"{FILE}-wal", directory / LOCK))
            return cls(directory, database, cleanup.pop_all(), guard)

    @classmethod
    def read(cls, directory: str | Path) -> Journal:
        """The journal as it is at this moment, whatever is written later; never changes the run.

        Works while a driver writes, after one was killed, on a read-only file system, and for
        files of older versions. Close it soon: the log of the writer cannot shrink as long as a
        snapshot is open.
        """
        directory = Path(directory)
        file = directory / FILE
        _check_exists(directory)
        with contextlib.ExitStack() as cleanup, clear_errors(file):
            database = snapshot(file, cleanup)
            if schema.version(database, file) < schema.VERSION:
                database = private_copy(database, cleanup)
                schema.migrate(database, file, tell=False)
            return cls(directory, database, cleanup.pop_all(), None)

    def check(self) -> None:
        """Read the whole file, every row of it; SearchError says what is damaged, if anything."""
        check(self._database, self.file)

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
        candidate) raise SearchError, and so do a full disk and files that were deleted meanwhile.
        """
        if self._guard is None:
            raise SearchError(f"{self.directory}: was opened for reading, not for writing")
        new_candidates = [
            (c.id, c.key, c.name, c.cell, c.origin, to_json(list(c.parents)), to_json(c.detail))
            for c in candidates
        ]
        new_units = [
            (u.id, u.candidate, u.stage, to_json(u.payload), u.cost, u.start, u.end) for u in units
        ]
        new_results = []
        for r in results:
            records, curves = split(r.records)
            new_results.append(
                (r.unit, r.status, finite_json(records), r.seconds, r.worker, r.attempts, curves)
            )
        new_events = [(e.at, e.kind, to_json(e.detail)) for e in events]
        database = self._database
        with clear_errors(self.file):
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany(
                    "INSERT INTO candidates VALUES (?,?,?,?,?,?,?)", new_candidates
                )
                database.executemany("INSERT INTO units VALUES (?,?,?,?,?,?,?)", new_units)
                added = database.executemany(
                    # Not OR IGNORE, which would also hide rows that break the schema.
                    "INSERT INTO results VALUES (?,?,?,?,?,?,?) ON CONFLICT (unit) DO NOTHING",
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
        # After the commit: what is acknowledged is in the files that a resumed run will find.
        self._check_presence(self._guard)
        return max(added, 0)

    def _check_presence(self, guard: Guard) -> None:
        missing = guard.missing()
        if missing is None:
            return
        what = f"{missing}: was deleted, moved or replaced while this process was writing the run"
        if missing.name == LOCK:
            raise SearchError(f"{what}; nothing is lost, resume it")
        if guard.rescue(self._database):
            raise SearchError(f"{what}; everything was put back into {self.file}, resume it")
        raise SearchError(f"{what}; what it held cannot be put back")

    def candidates(self) -> list[CandidateRow]:
        """All candidates in the order of their ids."""
        return [self._candidate(row) for row in self._rows(f"{_CANDIDATE} ORDER BY id")]

    def candidate(self, id: int) -> CandidateRow | None:
        """One candidate, with what has been written since the journal was opened."""
        row = self._row(f"{_CANDIDATE} WHERE id = ?", id)
        return None if row is None else self._candidate(row)

    def units(self) -> list[UnitRow]:
        """All units in the order of their ids."""
        return [self._unit(row) for row in self._rows(f"{_UNIT} ORDER BY id")]

    def stretch(
        self, first: int, *, payloads: bool = True
    ) -> dict[int, tuple[UnitRow, ResultRow | None]]:
        """The next hundreds of units from an id on, by id, with their results without curves: for
        who goes through a whole journal that may not fit into memory. Without `payloads` these are
        empty, and a fifth of the time is saved."""
        columns = _STRETCH.format(payload="payload" if payloads else "'{}'")
        rows = self._rows(f"{columns} WHERE id >= {int(first)} ORDER BY id LIMIT {STRETCH}")
        return {
            row[0]: (self._unit(row[:7]), None if row[7] is None else self._result(row[7:]))
            for row in rows
        }

    def recall(self) -> Callable[[int], CandidateRow | None]:
        """`candidate` for ids that are asked for one after the other, a stretch at a time."""
        ahead: dict[int, CandidateRow] = {}

        def read(id: int) -> CandidateRow | None:
            if id not in ahead:
                rows = self._rows(f"{_CANDIDATE} WHERE id >= {int(id)} ORDER BY id LIMIT {STRETCH}")
                ahead.clear()
                ahead.update((row[0], self._candidate(row)) for row in rows)
            return ahead.pop(id, None)

        return read

    def results(self, curves: bool = True) -> list[ResultRow]:
        """All results in the order of their units; without `curves` none of their records has a
        curve, and most of the time is saved."""
        if not curves:
            return [self._result(row) for row in self._rows(f"{_RESULT} ORDER BY unit")]
        return [
            self._result(row, PackedCurves(blob, self.file, row[0]))
            for *row, blob in self._rows(f"{_RESULT_CURVES} ORDER BY unit")
        ]

    def packed(self) -> Iterator[tuple[ResultRow, PackedCurves]]:
        """All results in the order of their units, one at a time, with their curves beside them,
        packed: for readers of runs that do not fit into memory otherwise."""
        for *row, blob in self._rows(f"{_RESULT_CURVES} ORDER BY unit"):
            yield self._result(row), PackedCurves(blob, self.file, row[0])

    def events(self) -> list[EventRow]:
        """All events in the order in which they were written."""
        query = "SELECT kind, detail, at FROM events ORDER BY id"
        return [EventRow(kind, self._data(text), at) for kind, text, at in self._rows(query)]

    def counts(self) -> dict[str, int]:
        """Rows per table."""
        query = """SELECT (SELECT count(*) FROM candidates), (SELECT count(*) FROM units),
                          (SELECT count(*) FROM results), (SELECT count(*) FROM events)"""
        tables = ("candidates", "units", "results", "events")
        return dict(zip(tables, self._row(query) or (), strict=True))

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        with clear_errors(self.file):
            cursor = self._database.execute(query)
        while True:
            with clear_errors(self.file):
                rows = cursor.fetchmany(1000)
            if not rows:
                return
            yield from rows

    def _row(self, query: str, *values: int) -> tuple[Any, ...] | None:
        with clear_errors(self.file):
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return row

    def _candidate(self, row: tuple[Any, ...]) -> CandidateRow:
        id_, key, name, cell, origin, parents, detail = row
        parsed = tuple(self._list(parents))
        return CandidateRow(id_, key, name, cell, origin, parsed, self._data(detail))

    def _unit(self, row: tuple[Any, ...]) -> UnitRow:
        id_, candidate, stage, payload, *times = row
        return UnitRow(id_, candidate, stage, self._data(payload), *times)

    def _result(self, row: Sequence[Any], curves: PackedCurves | None = None) -> ResultRow:
        unit, status, text, *rest = row
        records = self._list(text)
        return ResultRow(unit, status, tuple(curves.join(records) if curves else records), *rest)

    def _data(self, text: Any) -> Any:
        try:
            return _DECODE(text)
        except (ValueError, TypeError, RecursionError):
            raise SearchError(f"{self.file}: is damaged (a row is not JSON)") from None

    def _list(self, text: Any) -> list[Any]:
        value = self._data(text)
        if not isinstance(value, list):
            raise SearchError(
                f"{self.file}: is damaged (it holds {value!r:.40} where a list was expected)"
            )
        return value

    def close(self) -> None:
        """Give the file, and the writer's lock, back. Closing twice does nothing."""
        with clear_errors(self.file):
            self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_exists(directory: Path) -> None:
    if not directory.is_dir():
        raise SearchError(f"{directory}: no such run directory")
    if not (directory / FILE).is_file():
        raise SearchError(f"{directory}: is not a run directory (it has no {FILE})")

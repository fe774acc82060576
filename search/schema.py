"""The tables of the ledger, version by version, and how an older file becomes one of today.

A ledger names its version in `meta`. To change the tables: write the new `TABLES`, count `VERSION`
up, add to `MIGRATIONS` the function that turns the version before into it, and keep a ledger of the
version before in tests/assets.

    1   curves stand in the records, as JSON
    2   curves stand in a column of their own, packed (search/curves.py)
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from search.curves import split
from search.errors import SearchError
from search.rows import to_json

VERSION = 2
MIGRATED = "migrated"  #: the kind of the event; its detail: from, to

TABLES = """
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
    records  TEXT NOT NULL,    -- JSON list, one record per setting, without their curves
    seconds  REAL NOT NULL,
    worker   TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    curves   BLOB              -- those of the records; NULL where none has one
);
CREATE TABLE events (
    id     INTEGER PRIMARY KEY,
    at     REAL NOT NULL,      -- seconds since 1970
    kind   TEXT NOT NULL,
    detail TEXT NOT NULL       -- JSON mapping
);
"""


def create(database: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """The tables of today in an empty database, in one transaction."""
    database.executescript(f"BEGIN; {TABLES}")
    rows = [*meta.items(), ("schema_version", str(VERSION))]
    database.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    database.execute("COMMIT")


def version(database: sqlite3.Connection, file: Path) -> int:
    """The version of a ledger. Raises SearchError for what is none and for one of the future."""
    found = 0
    if "meta" in [name for (name,) in database.execute("SELECT name FROM sqlite_master")]:
        query = "SELECT value FROM meta WHERE key = 'schema_version'"
        for (text,) in database.execute(query):
            found = int(text) if str(text).isdecimal() else 0
    if found == 0:
        raise SearchError(f"{file}: is not a journal of cellsearch")
    if found > VERSION:
        raise SearchError(
            f"{file}: is of schema {found}, this version of cellsearch knows {VERSION}: "
            "update cellsearch"
        )
    return found


def migrate(database: sqlite3.Connection, file: Path, *, tell: bool) -> None:
    """Bring a ledger to today's version in one transaction: wholly, or not at all.

    tell: leave an event in the ledger that says so.
    Raises SearchError for a row that the old version did not write.
    """
    before = version(database, file)
    if before == VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        for step in range(before, VERSION):
            MIGRATIONS[step](database, file)
        database.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(VERSION),))
        if tell:
            database.execute(
                "INSERT INTO events (at, kind, detail) VALUES (?,?,?)",
                (time.time(), MIGRATED, to_json({"from": before, "to": VERSION})),
            )
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have rolled it back already
            database.execute("ROLLBACK")
        raise


def _pack_curves(database: sqlite3.Connection, file: Path) -> None:
    database.execute("ALTER TABLE results ADD COLUMN curves BLOB")
    last = -(2**63)
    while True:
        # By the primary key, not with one open query: the rows that it goes through are changed.
        rows = database.execute(
            "SELECT unit, records FROM results WHERE unit > ? ORDER BY unit LIMIT 1000", (last,)
        ).fetchall()
        if not rows:
            return
        changed = []
        for unit, text in rows:
            try:
                records = json.loads(text)
            except (TypeError, ValueError, RecursionError):
                raise SearchError(f"{file}: is damaged (a row is not JSON)") from None
            rest, curves = split(records if isinstance(records, list) else [])
            if curves is not None:  # else as it is: whoever reads it finds what is wrong with it
                changed.append((to_json(rest), curves, unit))
        database.executemany("UPDATE results SET records = ?, curves = ? WHERE unit = ?", changed)
        last = rows[-1][0]


#: From a version to the one after it. They run one after the other, inside one transaction.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection, Path], None]] = {1: _pack_curves}

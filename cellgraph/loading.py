"""Where cells come from: a zoo name, a notation file, or RUN:KEY for a cell that a search found."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from cellgraph import zoo
from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.notation import MAX_TEXT, parse

JOURNAL = "journal.sqlite"


def load(name: str | Path) -> CellGraph:
    """The cell behind a zoo name (`gru`), a path to a `.cell` file, or `RUN:KEY` with a run
    directory and the first digits of a key. Raises `CellError`."""
    text = str(name)
    path = Path(text)
    # os.path.isfile takes any text; Path.is_file raises OSError where a name is too long.
    is_file = os.path.isfile(text) and text not in zoo.names()
    if is_file or (path.suffix == ".cell" and "\0" not in text):
        return _from_file(path)
    run, colon, key = text.rpartition(":")
    if colon and run:
        return _from_run(Path(run), key)
    return zoo.get(text)


def _from_file(path: Path) -> CellGraph:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise CellError(f"{path} is no ordinary file, expected a .cell file")
        if path.stat().st_size > 4 * MAX_TEXT:
            raise CellError(
                f"{path} is too large for a cell, expected at most {MAX_TEXT} characters"
            )
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeError:  # also of a path that no file system can have
        raise CellError(f"{str(path)!r} is not text, expected notation in UTF-8") from None
    except OSError as error:
        raise CellError(
            f"{path} cannot be read ({error.strerror}), expected a .cell file"
        ) from None
    try:
        return parse(text)
    except CellError as error:
        raise CellError(f"{path}: {error}") from None


def _from_run(run: Path, key: str) -> CellGraph:
    """One cell out of a run's ledger, by the beginning of its key; read-only, and of its tables
    only this one query."""
    ledger = run / JOURNAL
    if not os.path.isfile(ledger):
        raise CellError(f"{run} is not a run directory (no {JOURNAL}), expected RUN:KEY")
    if not key or any(c not in "0123456789abcdef" for c in key):
        raise CellError(f"key {key!r}, expected the first hexadecimal digits of a cell's key")
    try:
        with closing(
            sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True)
        ) as database:
            rows = database.execute(
                "SELECT DISTINCT key, cell FROM candidates WHERE substr(key, 1, ?) = ? ORDER BY id",
                (len(key), key),
            ).fetchall()
    except sqlite3.Error as error:
        raise CellError(
            f"{ledger} cannot be read ({error}), expected the ledger of a run"
        ) from None
    keys = sorted({found for found, _ in rows})
    if not keys:
        raise CellError(
            f"{run} holds no cell whose key begins with {key}, see: cellsearch inspect {run}"
        )
    if len(keys) > 1:
        raise CellError(
            f"{len(keys)} cells of {run} have keys beginning with {key}, expected more digits"
        )
    return parse(rows[0][1])

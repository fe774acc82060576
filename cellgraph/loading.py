"""Where cells come from: a zoo name, a file (notation, or a recipe or a graph in JSON), or RUN:KEY
for a cell that a search found."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from cellgraph import nasbench, zoo
from cellgraph.errors import CellError
from cellgraph.graph import LONGEST_NAME, CellGraph, is_name
from cellgraph.notation import MAX_TEXT, read

JOURNAL = "journal.sqlite"


def load(name: str | Path, constants: Mapping[str, float] | None = None) -> CellGraph:
    """The cell behind a zoo name (`gru`), a path to a `.cell` file or to a recipe of NAS-Bench-NLP
    or an exported graph (`.json`), or `RUN:KEY` with a run directory and the first digits of a key.
    Raises `CellError`.

    `constants` overrides numbers that its text declares: `load("janet", constants={"beta": 2.0})`;
    see `constants`. The cell of a recipe is called like its file.
    """
    return _read(str(name), constants)[0]


def constants(source: str | Path) -> dict[str, float]:
    """The constants that a text declares, each with its default: `{"beta": 1.0}` for `janet`.

    `source` is what `load` takes, or the text itself (of two lines at least, as every cell has).
    A cell of a run has none: a printed cell has its numbers in their places. Raises `CellError`.
    """
    text = str(source)
    return (read(text) if len(text.splitlines()) > 1 else _read(text))[1]


def _read(
    name: str, constants: Mapping[str, float] | None = None
) -> tuple[CellGraph, dict[str, float]]:
    """The cell behind a name, and the constants that its text declares, with their defaults."""
    path = Path(name)
    # os.path.isfile takes any text; Path.is_file raises OSError where a name is too long.
    is_file = os.path.isfile(name) and name not in zoo.names()
    if is_file or (path.suffix in (".cell", ".json") and "\0" not in name):
        return _from_file(path, constants)
    run, colon, key = name.rpartition(":")
    if colon and run:
        return read(_from_run(Path(run), key), constants)
    return zoo.get(name, constants), dict(zoo.info(name).constants)


def _from_file(
    path: Path, constants: Mapping[str, float] | None
) -> tuple[CellGraph, dict[str, float]]:
    json = path.suffix == ".json"
    expected = "a recipe or a graph in a .json file" if json else "a .cell file"
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise CellError(f"{path} is no ordinary file, expected {expected}")
        if path.stat().st_size > 4 * MAX_TEXT:
            raise CellError(
                f"{path} is too large for a cell, expected at most {MAX_TEXT} characters"
            )
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeError:  # also of a path that no file system can have
        what = "JSON" if json else "notation"
        raise CellError(f"{str(path)!r} is not text, expected {what} in UTF-8") from None
    except OSError as error:
        raise CellError(f"{path} cannot be read ({error.strerror}), expected {expected}") from None
    try:
        if json:
            text = str(nasbench.loads(text, _name(path)))
        return read(text, constants)
    except CellError as error:
        raise CellError(f"{path}: {error}") from None


def _name(path: Path) -> str:
    """A cell's name for a file of any name."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", path.stem)[:LONGEST_NAME]
    return next(n for n in (name, f"recipe_{name}"[:LONGEST_NAME]) if is_name(n))


def _from_run(run: Path, key: str) -> str:
    """The text of one cell out of a run's ledger, by the beginning of its key; read-only, and of
    its tables only this one query."""
    ledger = run / JOURNAL
    if not os.path.isfile(ledger):
        raise CellError(f"{run} is not a run directory (no {JOURNAL}), expected RUN:KEY")
    if not key or any(c not in "0123456789abcdef" for c in key):
        raise CellError(f"key {key!r}, expected the first hexadecimal digits of a cell's key")
    try:
        rows = _cells(ledger, key)
    except (sqlite3.Error, OSError) as error:
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
    return rows[0][1]


def _cells(ledger: Path, key: str) -> list[tuple[str, str]]:
    """Key and cell of the candidates whose keys begin so, in the order of their proposals."""
    log, shared = (ledger.with_name(ledger.name + suffix) for suffix in ("-wal", "-shm"))
    with ExitStack() as stack:
        if log.exists() and not shared.exists():
            # What a killed driver left, without the file that SQLite wants beside it and cannot
            # make on a read-only file system.
            folder = stack.enter_context(TemporaryDirectory(prefix="cellsearch-"))
            copies = [shutil.copy(path, folder) for path in (ledger, log)]
            ledger = Path(copies[0])
        # Nobody has it open: SQLite need make no files beside it either.
        still = "&immutable=1" if not log.exists() else ""
        address = f"{ledger.absolute().as_uri()}?mode=ro{still}"
        database = stack.enter_context(closing(sqlite3.connect(address, uri=True)))
        return database.execute(
            "SELECT DISTINCT key, cell FROM candidates WHERE substr(key, 1, ?) = ? ORDER BY id",
            (len(key), key),
        ).fetchall()

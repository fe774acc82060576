"""Where cells come from: names, files, and runs."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import cellgraph as cg

TEXT = "# mine\ncell mine(x, h)\n    h' = tanh(W @ x + U @ h)\n"


def test_names_and_aliases() -> None:
    for name in cg.zoo.names():
        assert cg.load(name).name == name
        for alias in cg.zoo.info(name).aliases:
            assert cg.load(alias).name == name
    assert cg.load("LSTM-Peephole") == cg.load("lstm_peephole")


def test_an_unknown_name() -> None:
    with pytest.raises(cg.CellError, match=r"no cell named 'lstn' \(did you mean lstm\?\)"):
        cg.load("lstn")
    for name in ("", " ", "gru\0", "a" * 5000, "../gru"):
        with pytest.raises(cg.CellError, match="no cell named"):
            cg.load(name)


# -- files -----------------------------------------------------------------------------------------


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.cell"
    path.write_text(TEXT)
    plain = tmp_path / "without suffix"
    plain.write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    for source in (path, str(path), "mine.cell", "./mine.cell", plain, "without suffix"):
        cell = cg.load(source)
        assert cell == cg.parse(TEXT)
        assert cell.doc == "mine"


def test_a_name_wins_over_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gru").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert cg.load("gru").name == "gru"
    assert cg.load("./gru").name == "mine"


def test_files_that_hold_no_cell(tmp_path: Path) -> None:
    bad = tmp_path / "bad.cell"
    cases = [
        (lambda: bad.write_text(""), "no cell in the text"),
        (lambda: bad.write_text(TEXT.replace("+", "%")), "line 3: unexpected character '%'"),
        (lambda: bad.write_bytes(b"\xff\xfe\x00"), "is not text, expected notation in UTF-8"),
        (lambda: bad.write_text("#" * 900_000), "is too large for a cell, expected at most 200000"),
        (lambda: bad.write_text("#" * 300_000), "expected at most 200000"),
        (bad.unlink, "cannot be read (No such file or directory), expected a .cell file"),
        (bad.mkdir, "cannot be read (Is a directory), expected a .cell file"),
    ]
    for prepare, message in cases:
        prepare()
        with pytest.raises(cg.CellError) as caught:
            cg.load(bad)
        first = str(caught.value).splitlines()[0]
        assert str(bad) in first
        assert message in first


def test_paths_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(cg.CellError, match="File name too long"):
        cg.load(tmp_path / f"{'a' * 5000}.cell")
    with pytest.raises(cg.CellError, match="no cell named"):
        cg.load(f"{tmp_path}/\0.cell")


# -- runs ------------------------------------------------------------------------------------------

CELLS = {
    "abc1" + "0" * 60: TEXT,
    "abc2" + "0" * 60: str(cg.load("lstm")),
    "def0" + "0" * 60: str(cg.load("gru")),
    "bad0" + "0" * 60: "cell broken(",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's ledger as far as loading looks at it; a cell may be proposed more than once."""
    run = tmp_path / "runs" / "a run: it's 100 %?#"
    run.mkdir(parents=True)
    with closing(sqlite3.connect(run / "journal.sqlite")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            "CREATE TABLE candidates (id INTEGER PRIMARY KEY, key TEXT, name TEXT, cell TEXT, f)"
        )
        rows = [(key, "some name", text, 0.5) for key, text in CELLS.items()]
        database.executemany(
            "INSERT INTO candidates (key, name, cell, f) VALUES (?, ?, ?, ?)", [*rows, *rows]
        )
        database.commit()
    return run


def test_a_cell_of_a_run_by_the_beginning_of_its_key(run: Path) -> None:
    assert cg.load(f"{run}:abc1") == cg.parse(TEXT)
    assert cg.load(f"{run}:def") == cg.load("gru")
    assert cg.load(f"{run}:d") == cg.load("gru")
    assert cg.load(f"{run}:{next(iter(CELLS))}") == cg.parse(TEXT)
    assert cg.load(f"{run}/:abc2") == cg.load("lstm")


def test_loading_leaves_the_ledger_alone(run: Path) -> None:
    before = (run / "journal.sqlite").read_bytes()
    cg.load(f"{run}:def")
    assert (run / "journal.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("abc", "2 cells of {run} have keys beginning with abc, expected more digits"),
        ("77", "{run} holds no cell whose key begins with 77, see: cellsearch inspect {run}"),
        ("", "key '', expected the first hexadecimal digits of a cell's key"),
        ("%", "key '%', expected the first hexadecimal digits of a cell's key"),
        ("ABC1", "key 'ABC1', expected the first hexadecimal digits of a cell's key"),
        ("a' OR 1", "key \"a' OR 1\", expected the first hexadecimal digits of a cell's key"),
    ],
)
def test_keys_that_name_no_cell(run: Path, key: str, message: str) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.load(f"{run}:{key}")
    assert str(caught.value) == message.format(run=run)


def test_a_cell_of_a_run_that_does_not_parse(run: Path) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.load(f"{run}:bad")
    assert "line 1: found 'end of line', expected the input x" in str(caught.value)


def test_directories_that_are_no_runs(run: Path, tmp_path: Path) -> None:
    for other in (tmp_path, tmp_path / "missing", run / "journal.sqlite"):
        with pytest.raises(cg.CellError) as caught:
            cg.load(f"{other}:abc1")
        message = f"{other} is not a run directory (no journal.sqlite), expected RUN:KEY"
        assert str(caught.value) == message
    with pytest.raises(cg.CellError, match="is not a run directory"):
        cg.load(f"{'a' * 5000}:abc1")


def test_ledgers_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "journal.sqlite").write_text("no database")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "journal.sqlite").touch()
    for other in (broken, empty):
        with pytest.raises(cg.CellError) as caught:
            cg.load(f"{other}:abc1")
        assert str(caught.value).startswith(f"{other / 'journal.sqlite'} cannot be read (")
        assert "\n" not in str(caught.value)
    shutil.copy(run / "journal.sqlite", broken / "journal.sqlite")
    assert cg.load(f"{broken}:abc1") == cg.parse(TEXT)

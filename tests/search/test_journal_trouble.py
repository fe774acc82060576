"""Full disks, deleted files and damaged pages: one clear line, and nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from search.errors import SearchError
from search.journal import FILE, LOCK, CandidateRow, EventRow, Journal, ResultRow, UnitRow
from search.storage import check_unopened

ROOT = Path(__file__).resolve().parents[2]

needs_mounts = pytest.mark.skipif(
    sys.platform != "linux"
    or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs leave to mount inside a user namespace",
)


def candidate(number: int) -> CandidateRow:
    return CandidateRow(number, f"{number:064x}", "c", "cell text\n" * 20, "seed")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with enough rows for several pages of each table."""
    directory = tmp_path / "run"
    with Journal.create(directory, {"name": "one"}) as journal:
        journal.write(
            [candidate(i) for i in range(300)],
            [UnitRow(i, i, "stage", {"settings": [{"lr": 0.1}] * 5}, 1, 0, 1) for i in range(300)],
            [ResultRow(i, "ok", ({"metrics": {"loss": i / 7}},) * 5) for i in range(300)],
            [EventRow("started")],
        )
    return directory


def refusal(directory: Path) -> str:
    """The one line with which opening for writing is refused; the file stays as it was."""
    before = (directory / FILE).read_bytes()
    with pytest.raises(SearchError) as caught:
        Journal.open(directory)
    assert (directory / FILE).read_bytes() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- a full disk


FULL = """
import os, subprocess, sys
from pathlib import Path
from search.errors import SearchError
from search.journal import *

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", sys.argv[1]], check=True)
directory = Path(sys.argv[1]) / "run"
ballast = Path(sys.argv[1]) / "ballast"
ballast.write_bytes(bytes(300_000))
row = lambda i: CandidateRow(i, f"{i:064x}", "c", "x" * 1000, "seed")

driver = os.fork()
if driver == 0:
    journal = Journal.create(directory, {})
    written = 0
    try:
        while True:
            journal.write([row(written)])
            written += 1
    except SearchError as error:
        print(error)
    print(written, journal.counts()["candidates"], flush=True)
    if sys.argv[2] == "closed":
        journal.close()
    os._exit(0)
os.waitpid(driver, 0)
with Journal.read(directory) as snapshot:
    print(snapshot.counts()["candidates"])
try:
    with Journal.open(directory) as journal:
        journal.write([row(10**6 + i) for i in range(1000)])
except SearchError as error:
    print(error)
ballast.unlink()
with Journal.open(directory) as journal:
    journal.check()
    journal.write([row(10**6)])
    print(journal.counts()["candidates"])
"""


@needs_mounts
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_a_disk_that_is_really_full(tmp_path: Path, end: str) -> None:
    command = ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path), end]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, counts, seen, second, after = done.stdout.splitlines()
    run = tmp_path / "run"
    assert first.startswith(f"{run / FILE}: the disk is full; free some space and resume (")
    written = int(counts.split()[0])
    assert written > 20
    assert counts == f"{written} {written}"
    assert seen == str(written)
    assert second.startswith(f"{run}{os.sep}")
    assert after == str(written + 1)


def test_a_disk_that_fills_up_in_a_migration(tmp_path: Path) -> None:
    old = Path(__file__).resolve().parents[1] / "assets" / "journal_v1.sqlite"
    shutil.copyfile(old, tmp_path / FILE)
    code = (
        "import resource, sys; from search.errors import SearchError\n"
        "from search.journal import Journal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, resource.RLIM_INFINITY))\n"
        "try: Journal.open(sys.argv[1])\n"
        "except SearchError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path / FILE}: ")
    assert done.stdout.count("\n") == 1
    assert (tmp_path / FILE).read_bytes() == old.read_bytes()
    with Journal.open(tmp_path) as journal:
        assert journal.counts()["results"] == 41


# -- a file that may not be written


def test_a_database_that_has_become_read_only(run: Path) -> None:
    with Journal.open(run) as journal:
        journal._database.execute("PRAGMA query_only=ON")
        with pytest.raises(SearchError, match=r"journal\.sqlite: is read-only \(attempt to write"):
            journal.write([candidate(300)])
        journal._database.execute("PRAGMA query_only=OFF")
        journal.write([candidate(300)])
        assert journal.counts()["candidates"] == 301


# -- files that are deleted while they are written


def test_a_deleted_file_is_put_back(run: Path) -> None:
    with Journal.open(run) as journal:
        journal.write([candidate(300)])
        for path in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
            (run / path).unlink()
        with pytest.raises(SearchError) as caught:
            journal.write([candidate(301)])
    assert str(caught.value) == (
        f"{run / FILE}: was deleted, moved or replaced while this process was writing the run; "
        f"everything was put back into {run / FILE}, resume it"
    )
    assert sorted(path.name for path in run.iterdir()) == [LOCK, FILE]
    with Journal.open(run) as journal:
        assert [row.id for row in journal.candidates()] == list(range(302))
        assert len(journal.results()) == 300


def test_a_deleted_log_is_put_back(run: Path) -> None:
    with Journal.open(run) as journal:
        journal.write([candidate(300)])
        (run / f"{FILE}-wal").unlink()
        with pytest.raises(SearchError, match=r"-wal: was deleted.*; everything was put back into"):
            journal.write([candidate(301)])
    with Journal.open(run) as journal:
        assert [row.id for row in journal.candidates()] == list(range(302))


def test_a_deleted_lock_stops_the_driver(run: Path) -> None:
    with Journal.open(run) as journal:
        (run / LOCK).unlink()  # from here on a second driver could begin
        with pytest.raises(SearchError, match=r"\.lock: was deleted.*nothing is lost, resume it"):
            journal.write([candidate(300)])
    with Journal.open(run) as journal:
        assert journal.counts()["candidates"] == 301


def test_a_file_that_was_replaced_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    shutil.copyfile(run / FILE, tmp_path / "backup")
    with Journal.open(run) as journal:
        journal.write([candidate(300)])
        os.replace(tmp_path / "backup", run / FILE)
        with pytest.raises(SearchError, match=r"replaced while.*what it held cannot be put back"):
            journal.write([candidate(301)])
    (run / f"{FILE}-wal").unlink(missing_ok=True)
    with Journal.open(run) as journal:
        assert journal.counts()["candidates"] == 300


def test_a_directory_that_was_deleted(run: Path) -> None:
    with Journal.open(run) as journal:
        shutil.rmtree(run)
        with pytest.raises(SearchError, match=r"was deleted, moved .* cannot be put back"):
            journal.write([candidate(300)])
    assert not run.exists()


# -- damage


def pages(run: Path, table: str) -> list[int]:
    """The numbers of the leaf pages of a table, from 1."""
    with contextlib.closing(sqlite3.connect(run / FILE)) as database:
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
    data = (run / FILE).read_bytes()
    page = data[(root - 1) * 4096 : root * 4096]
    assert page[0] == 5, "the root of a table of several pages is an interior page"
    cells = int.from_bytes(page[3:5], "big")
    pointers = [int.from_bytes(page[12 + 2 * i : 14 + 2 * i], "big") for i in range(cells)]
    return [int.from_bytes(page[pointer : pointer + 4], "big") for pointer in pointers]


def spoil(run: Path, page: int, offset: int, data: bytes) -> None:
    with (run / FILE).open("r+b") as file:
        file.seek((page - 1) * 4096 + offset)
        file.write(data)


def test_a_spoilt_page_is_found_before_anything_is_written(run: Path) -> None:
    spoil(run, pages(run, "results")[2], 0, b"\xff" * 100)
    text = refusal(run)
    assert text.startswith(f"{run / FILE}: is damaged (")
    assert "nothing was changed; go back to a copy, or keep one and recover rows with" in text
    with Journal.read(run) as journal:
        assert len(journal.units()) == 300  # what is whole can be read
        with pytest.raises(SearchError, match="is damaged"):
            journal.results()
        with pytest.raises(SearchError, match="is damaged"):
            journal.check()


def test_rows_in_the_wrong_order_are_found(run: Path) -> None:
    """The page reads well and every row is whole; only its place in the tree is wrong."""
    first, second = pages(run, "candidates")[1:3]
    data = (run / FILE).read_bytes()
    spoil(run, first, 0, data[(second - 1) * 4096 : second * 4096])
    with Journal.read(run) as journal:
        journal.candidates()
    assert "is damaged (" in refusal(run)
    assert "out of order" in refusal(run)


def test_a_result_without_its_unit_is_found(run: Path) -> None:
    with contextlib.closing(sqlite3.connect(run / FILE)) as database, database:
        database.execute("DELETE FROM units WHERE id = 17")
    assert "is damaged (row 17 of results belongs to none of units)" in refusal(run)


def test_damage_with_the_log_of_a_killed_writer(run: Path) -> None:
    """Closing a database copies its log into the file; a damaged file is not to be touched."""
    code = (
        "import os, sys; from search.journal import *; j = Journal.open(sys.argv[1])\n"
        "j.write(events=[EventRow('last')]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, cwd=ROOT)
    spoil(run, pages_without_log(run), 0, b"\xff" * 100)
    log = (run / f"{FILE}-wal").read_bytes()
    assert "is damaged (" in refusal(run)
    assert (run / f"{FILE}-wal").read_bytes() == log


def pages_without_log(run: Path) -> int:
    """A leaf page of the candidates, found in a copy: opening the file would use up its log."""
    copy = run.parent / "copy"
    copy.mkdir()
    shutil.copyfile(run / FILE, copy / FILE)
    return pages(copy, "candidates")[0]


def test_a_change_that_was_half_made_before_there_was_a_log_is_undone(run: Path) -> None:
    """Of a driver that was killed while it turned the file to its write-ahead log."""
    code = (
        "import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "d.execute('PRAGMA journal_mode=DELETE'); d.execute('PRAGMA cache_size=1')\n"
        "d.execute('PRAGMA cache_spill=1'); d.execute('BEGIN')\n"
        "d.execute('DELETE FROM results'); d.execute('UPDATE units SET payload = 5')\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(run / FILE)], check=True)
    assert (run / f"{FILE}-journal").exists()
    check_unopened(run / FILE)
    with Journal.open(run) as journal:
        assert len(journal.results()) == 300
        assert journal.stretch(5)[5][0] == UnitRow(
            5, 5, "stage", {"settings": [{"lr": 0.1}] * 5}, 1, 0, 1
        )


def test_a_whole_file_passes(run: Path) -> None:
    with Journal.open(run) as journal:
        journal.check()
        journal.write([candidate(300)])
        journal.check()
    with Journal.read(run) as journal:
        journal.check()


# -- a cell out of a ledger: cellgraph reads it by itself

LOAD = """
import subprocess, sys
import cellgraph as cg
subprocess.run(["mount", "--bind", sys.argv[1], sys.argv[1]], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", sys.argv[1]], check=True)
print(cg.load(sys.argv[1] + ":0a").name, cg.load(sys.argv[1] + ":0b").name)
"""


@needs_mounts
@pytest.mark.parametrize("state", ["finished", "running", "killed", "killed and copied"])
def test_a_cell_of_a_run_on_a_read_only_file_system(tmp_path: Path, state: str) -> None:
    run = tmp_path / "run"
    text = "cell {}(x, h)\n    h' = tanh(W @ x + U @ h + b)\n"
    Journal.create(run, {}).close()
    code = (
        "import os, sys; from search.journal import *; j = Journal.open(sys.argv[1])\n"
        "for i, key in enumerate(('0a' * 32, '0b' * 32)):\n"
        f"    j.write([CandidateRow(i, key, '', {text!r}.format('c' + key[:2]), 'seed')])\n"
        "if sys.argv[2] == 'finished': j.close()\n"
        "print(flush=True); sys.stdin.read(); os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(run), state]
    driver = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    driver.stdout.readline()
    if state != "running":
        driver.communicate()
    if state == "killed and copied":  # as rsync --exclude='*-shm' leaves it
        (run / f"{FILE}-shm").unlink()
    before = sorted(path.name for path in run.iterdir())
    command = ["unshare", "-rm", sys.executable, "-c", LOAD, str(run)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    driver.communicate()
    assert done.stdout == "c0a c0b\n", done.stderr
    assert sorted(path.name for path in run.iterdir()) == before

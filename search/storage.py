"""What a run's files need around them: the writer's lock, a consistent snapshot, clear errors.

Knows SQLite and the file system, not what is stored.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from search.errors import SearchError


@contextlib.contextmanager
def lock(file: Path, subject: str) -> Iterator[None]:
    """Hold `file` locked; the kernel lets go when this process ends, however it ends.

    Raises SearchError "SUBJECT: is being written by ..." when another holder exists. Lock a file
    made for that, never a database: SQLite keeps locks of its own on it, and closing any other
    handle on that file would silently drop them.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise SearchError(f"{subject}: is being written by {holder}") from None
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)


def snapshot(file: Path, cleanup: contextlib.ExitStack) -> sqlite3.Connection:
    """A connection that sees the present state and nothing later.

    The shared-memory file beside a database is there while some process has it open (or died so).
    Then SQLite coordinates readers and writer, even on a read-only file system. When it is not
    there, opening would create it, which leaves litter in a finished run and fails on a read-only
    file system; but then nobody writes either, and a copy is a snapshot.
    """
    log, shared = (file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))
    while True:
        if shared.exists():
            database = sqlite3.connect(uri(file, "ro"), uri=True, isolation_level=None)
            try:
                database.execute("BEGIN")
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                database.close()
                if shared.exists():
                    raise
                continue  # the last process closed it in between
            cleanup.callback(database.close)
            return database
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="cellsearch-")))
        for part in (file, log):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(part, folder / part.name)
        if not shared.exists():
            database = sqlite3.connect(
                uri(folder / file.name, "rw"), uri=True, isolation_level=None
            )
            cleanup.callback(database.close)
            return database


def private_copy(database: sqlite3.Connection, cleanup: contextlib.ExitStack) -> sqlite3.Connection:
    """A copy of what a connection sees, to change and throw away."""
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="cellsearch-")))
    copy = sqlite3.connect(folder / "copy.sqlite", isolation_level=None)
    cleanup.callback(copy.close)
    copy.execute("PRAGMA synchronous=OFF")
    database.backup(copy)
    return copy


def check(database: sqlite3.Connection, file: Path) -> None:
    """Read every page and every row, and raise SearchError with the first thing that is wrong.

    `PRAGMA integrity_check` finds damaged pages, lost or doubled ones and rows that do not fit
    their table; `foreign_key_check` rows that belong to others which are gone. Files of any size
    are checked in full, in half a second for 100 MB.
    """
    with clear_errors(file):
        problem = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if problem != "ok":
            raise SearchError(f"{file}: is damaged ({problem.splitlines()[-1]}); {_ADVICE}")
        orphan = database.execute("PRAGMA foreign_key_check").fetchone()
        if orphan is not None:
            table, row, parent = orphan[:3]
            raise SearchError(
                f"{file}: is damaged (row {row} of {table} belongs to none of {parent}); {_ADVICE}"
            )


def check_unopened(file: Path) -> None:
    """`check` a database before anything else touches it, so that a damaged one stays as it is.

    A connection for writing would, on closing, copy the log of a killed writer into the file.
    """
    # What SQLite before its write-ahead log leaves behind; only a writer can undo that half change.
    mode = "rw" if file.with_name(f"{file.name}-journal").exists() else "ro"
    with (
        clear_errors(file),
        contextlib.closing(
            sqlite3.connect(uri(file, mode), uri=True, isolation_level=None, timeout=10)
        ) as database,
    ):
        check(database, file)


class Guard:
    """Notices when the files behind an open database are no longer those under their names.

    SQLite goes on writing to a file that was deleted, and all of it is gone in the end.
    """

    def __init__(self, file: Path, others: tuple[Path, ...]) -> None:
        self.file = file
        self._identity = {path: _identity(path) for path in (file, *others)}

    def missing(self) -> Path | None:
        """The first file that was deleted, moved or replaced since."""
        for path, before in self._identity.items():
            if _identity(path) != before:
                return path
        return None

    def rescue(self, database: sqlite3.Connection) -> bool:
        """Put everything that the open database holds back under its name, durably.

        False where that cannot be done: the directory is gone, or the name is taken.
        """
        try:
            if _identity(self.file) == self._identity[self.file]:  # only its log was deleted
                return bool(database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
            draft = self.file.with_name(f"{self.file.name}.new")
            draft.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(draft)) as copy:
                copy.execute("PRAGMA synchronous=FULL")
                database.backup(copy)
            os.link(draft, self.file)  # unlike a rename, refuses a name that is taken
            draft.unlink()
            sync_folder(self.file.parent)
        except (sqlite3.Error, OSError):
            return False  # the caller says what was lost
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def scratch(prefix: str, longest: int) -> Iterator[Path]:
    """A temporary folder with a path of at most `longest` characters, deleted at the end.

    Also deletes the folders that processes which were killed have left under the same prefix.
    Raises SearchError when no temporary directory has a path short enough.
    """
    short = longest - len(prefix) - 9  # mkdtemp adds 8 characters, the separator is one
    places = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - mkdtemp makes it ours alone
    base = next((place for place in places if len(str(place)) <= short), None)
    if base is None:
        raise SearchError(f"{places[0]}: this temporary directory has a path that is too long")
    for leftover in sorted(base.glob(f"{prefix}*")):
        # In use, another user's, or deleted by somebody else just now.
        with contextlib.suppress(SearchError, OSError):
            # A folder that young may belong to a process that has not come to lock it yet.
            if time.time() - leftover.stat().st_mtime > 60:
                with lock(leftover / "lock", str(leftover)):
                    shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    with lock(folder / "lock", str(folder)):
        try:
            yield folder
        finally:
            # Processes that used it may take a moment to end, and write while they do.
            for _ in range(20):
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    break
                time.sleep(0.1)


def uri(file: Path, mode: str) -> str:
    """The name by which SQLite opens `file` in a mode: ro or rw, which does not create it."""
    return f"{file.absolute().as_uri()}?mode={mode}"


def sync_folder(directory: Path) -> None:
    """Make a rename in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


#: For the owner of a damaged file. Nothing of ours writes to it from then on.
_ADVICE = (
    "nothing was changed; go back to a copy, or keep one and recover rows with: "
    "sqlite3 FILE .recover; cellsearch report still reads it where the damage allows"
)

# The start of SQLite's name of an error, and what it means for the owner of the run.
_MEANINGS = {
    "SQLITE_FULL": "the disk is full; free some space and resume",
    "SQLITE_READONLY": "is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_BUSY": "is locked by another process",
    "SQLITE_NOTADB": "is not a journal of cellsearch, or is damaged",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_IOERR": "cannot be read or written",
    "SQLITE_CONSTRAINT": "refuses a row",
}


@contextlib.contextmanager
def clear_errors(subject: Path) -> Iterator[None]:
    """SearchError with one line in place of what SQLite and the file system raise."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        meaning = next((m for start, m in _MEANINGS.items() if name.startswith(start)), "failed")
        advice = f"; {_ADVICE}" if name.startswith("SQLITE_CORRUPT") else ""
        raise SearchError(f"{subject}: {meaning} ({error}){advice}") from error
    except OSError as error:
        file = error.filename or subject
        raise SearchError(f"{file}: cannot be used: {error.strerror or error}") from error

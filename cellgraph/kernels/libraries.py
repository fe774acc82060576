"""Compiled libraries on disk: the folder `kernels` of the cache, and which of its files are loaded.

Lives here: the folder, its entries, and the checks. Must not live here: how a library comes about.
A library is loaded only when nobody else can have put it there and its bytes are those that were
stored. Where the cache will not do, a process keeps its libraries in a folder of its own.

An entry is three files: NAME-DIGEST.json names the library and its SHA-256, NAME-DIGEST.c is what
was built, and the library, which several entries may share, is named by its own bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cellgraph import cache
from cellgraph.errors import CellError

_LONGEST_ENTRY = 4096  # bytes
_LEFTOVER = 24 * 3600.0  # seconds after which what a killed process has left is deleted


@dataclass
class _Process:
    """What this process knows of its folders."""

    own: Path | None = None  # deleted when it ends
    unusable: dict[Path, str] = field(default_factory=dict)  # folder: why it is left alone

    def after_fork(self) -> None:
        self.own = None  # the parent will delete it


_process = _Process()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_process.after_fork)


def where() -> tuple[Path, str | None]:
    """The folder of the cache, and None; or this process's own, and what is wrong with the cache.

    Raises OSError when there is no place for either.
    """
    folder, problem = _shared()
    if problem is None:
        return folder, None
    if _process.own is None:
        _process.own = Path(tempfile.mkdtemp(prefix="cellsearch-kernels-"))
        atexit.register(_delete, _process.own, os.getpid())
    return _process.own, problem


def _shared() -> tuple[Path, str | None]:
    """The folder of the cache, and what is wrong with it."""
    try:
        folder = cache.directory() / "kernels"
    except CellError as error:  # there is no home directory
        return Path(), str(error)
    try:
        folder = folder.absolute()  # the compiler runs in another folder
        problem = _process.unusable.get(folder)
        if problem is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = distrust(folder.stat())
    except OSError as error:
        problem = f"cannot be used ({reason(error)})"
    return folder, f"{folder} {problem}" if problem else None


def leave(error: OSError) -> None:
    """The cache has failed in use: from now on this process keeps its own."""
    folder, problem = where()
    if problem is None:
        _process.unusable[folder] = f"cannot be used ({reason(error)})"


def distrust(status: os.stat_result) -> str | None:
    """Why a file or folder may hold what somebody else has put there; None when it cannot."""
    if hasattr(os, "geteuid"):  # not on Windows
        if status.st_uid != os.geteuid():
            return "belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "can be written by others"
    return None


def reason(error: OSError) -> str:
    """What happened, without the path, which may be a temporary one."""
    return error.strerror or str(error)  # dlopen's have no strerror


def _delete(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a child that was forked inherits what is to be done at exit
        shutil.rmtree(folder, ignore_errors=True)


def find(folder: Path, stem: str) -> ctypes.CDLL | None:
    """The library of an entry, loaded; None when it is not there, damaged or not to be trusted."""
    try:
        entry = json.loads(_read(folder / f"{stem}.json", _LONGEST_ENTRY))
        name, size, digest = entry["library"], entry["size"], entry["sha256"]
        if not re.fullmatch(r"[0-9a-f]{32}\.so", name):  # a path, perhaps
            return None
        # Loading a library that was cut short kills the process (SIGBUS).
        content = _read(folder / name, size)
        if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
            return None
        return ctypes.CDLL(str(folder / name))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None  # whatever damaged JSON leads to


def _read(path: Path, longest: int) -> bytes:
    """The bytes of a file. Raises OSError, and ValueError for one that `find` must not use."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if problem := distrust(status):
            raise ValueError(f"{path} {problem}")
        if status.st_size > longest:
            raise ValueError(f"{path} has {status.st_size} bytes, expected at most {longest}")
        return file.read()


@contextlib.contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """An empty folder beside the entries, deleted at the end; so are those of killed processes."""
    shared = folder / "unfinished"
    shared.mkdir(mode=0o700, exist_ok=True)
    for leftover in shared.iterdir():
        with contextlib.suppress(OSError):  # somebody else has deleted it just now
            if time.time() - leftover.stat().st_mtime > _LEFTOVER:
                shutil.rmtree(leftover, ignore_errors=True)
    into = Path(tempfile.mkdtemp(dir=shared))
    try:
        yield into
    finally:
        shutil.rmtree(into, ignore_errors=True)


def keep(built: Path, texts: Mapping[str, str], folder: Path) -> ctypes.CDLL:
    """Load what was built in a workshop of the folder, and make it the library of entries.

    texts: by the stem of each entry, its source.

    All is written first and then moved, which is atomic: whoever builds the same at the same time
    reads and replaces whole files. The entries come last, when what they name is there.
    """
    content = built.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    library = ctypes.CDLL(str(built))  # before it gets a name: it may be no library
    name = f"{digest[:32]}.so"
    entry = json.dumps({"library": name, "size": len(content), "sha256": digest})
    moves = [(built, name)]
    for suffix, contents in ((".c", texts), (".json", dict.fromkeys(texts, entry))):
        for stem, text in contents.items():
            path = built.with_name(f"{stem}{suffix}")
            path.write_text(text, encoding="utf-8")
            moves.append((path, path.name))
    for path, final in moves:
        path.chmod(0o600)  # whatever the umask: nobody else may write what will be loaded
        path.replace(folder / final)
    return library

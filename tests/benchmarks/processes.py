"""The processes of this machine that descend from one of ours, as /proc shows them. Linux only."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """started: by the clock of the machine; a later process of the same id has another."""

    pid: int
    parent: int
    started: str
    program: str
    title: str  # its command line, which a process may change


def descendants(pid: int) -> list[Process]:
    """Children, their children, and so on; those that end meanwhile are left out."""
    everyone = [process for process in map(_read, _pids()) if process is not None]
    found, parents = [], {pid}
    while parents:
        generation = [process for process in everyone if process.parent in parents]
        found += generation
        parents = {process.pid for process in generation}
    return found


def is_alive(pid: int, started: str) -> bool:
    """Is the process that started then still there?"""
    process = _read(pid)
    return process is not None and process.started == started


def kill(pid: int) -> None:
    """SIGKILL, to a process that may have ended already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(pid: int) -> Process | None:
    place = Path("/proc") / str(pid)
    try:
        # "pid (program) state parent …"; the program's name may hold anything, parentheses too.
        before, _, after = (place / "stat").read_text().rpartition(")")
        title = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    fields = after.split()
    if fields[0] == "Z":
        return None
    return Process(pid, int(fields[1]), fields[19], before.partition("(")[2], title)

"""Where what was worked out once is kept on this machine.

Lives here: the directory, and nothing of what is put into it. Nothing else in the project reads
$CELLSEARCH_CACHE or $XDG_CACHE_HOME.
"""

from __future__ import annotations

import os
from pathlib import Path

from cellgraph.errors import CellError

VARIABLE = "CELLSEARCH_CACHE"


def directory() -> Path:
    """$CELLSEARCH_CACHE, else $XDG_CACHE_HOME/cellsearch, else ~/.cache/cellsearch."""
    named = os.environ.get(VARIABLE)
    if named:
        return expanded(f"${VARIABLE}", named)
    # The XDG specification: a relative path there is invalid and to be ignored.
    shared = expanded("$XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not shared.is_absolute():
        shared = expanded("the cache", "~/.cache")
    return shared / "cellsearch"


def expanded(what: str, named: Path | str) -> Path:
    """A directory with ~ and ~user replaced; CellError, which begins with `what`, if it cannot."""
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise CellError(f"{what}: there is no home directory for {str(named)!r}") from error

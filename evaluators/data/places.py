"""Where data are looked for, and where what was worked out once is kept.

Lives here: the two directories and looking for a file in them. Nothing else in the project reads
$CELLSEARCH_DATA; which directory the cache is, cellgraph/cache.py says.
"""

from __future__ import annotations

import os
from pathlib import Path

from cellgraph import CellError, cache
from evaluators.data.catalogue import DataSet
from evaluators.errors import DataError

DATA_VARIABLE = "CELLSEARCH_DATA"


def data_directory() -> Path | None:
    """The directory that $CELLSEARCH_DATA names, whether or not it exists; None when unset."""
    named = os.environ.get(DATA_VARIABLE)
    return expanded(f"${DATA_VARIABLE}", named) if named else None


def cache_directory() -> Path:
    """$CELLSEARCH_CACHE, else $XDG_CACHE_HOME/cellsearch, else ~/.cache/cellsearch."""
    try:
        return cache.directory()
    except CellError as error:
        raise DataError(str(error)) from error


def expanded(what: str, named: Path | str) -> Path:
    """A directory with ~ and ~user replaced; DataError, which begins with `what`, if it cannot."""
    try:
        return cache.expanded(what, named)
    except CellError as error:
        raise DataError(str(error)) from error


def read(file: Path) -> bytes:
    """All bytes of a file; DataError, naming it, when it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def path() -> dict[str, Path | None]:
    """The directories searched, in order: {"$CELLSEARCH_DATA": …, "cache": …}; None if unset."""
    return {f"${DATA_VARIABLE}": data_directory(), "cache": cache_directory()}


def locate(entry: DataSet) -> list[Path]:
    """The files to read a data set from: all of a text's, or the first there is of a roll's.

    Raises DataError saying what is missing, where it was looked for and how to get it, or which
    directory cannot be searched.
    """
    for label, directory in path().items():
        if directory is None:
            continue
        try:
            here = [directory / name for name in entry.files if (directory / name).is_file()]
        except OSError as error:  # no permission, or a name longer than the system takes
            raise DataError(
                f"{entry.name}: cannot search {label} ({error.strerror}): {directory}"
            ) from error
        if entry.kind == "roll" and here:
            return here[:1]
        if entry.kind == "text" and len(here) == len(entry.files):
            return here
    raise DataError(_missing(entry))


def _missing(entry: DataSet) -> str:
    data, cache = data_directory(), cache_directory()
    known = [directory for directory in (data, cache) if directory is not None]
    # Of an incomplete set, name the file that lacks where the others are.
    lacking = entry.files[0]
    for directory in known:
        absent = [name for name in entry.files if not (directory / name).is_file()]
        if entry.kind == "text" and 0 < len(absent) < len(entry.files):
            lacking = absent[0]
            break
    where = f"(not set) nor under {cache}" if data is None else f"({data}) nor under {cache}"
    return (
        f"{entry.name} needs {lacking}: not under ${DATA_VARIABLE} {where}; "
        f"get it with: cellsearch data fetch {entry.bundle}"
    )

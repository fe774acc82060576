"""Data as plain numpy arrays: loaded once in a process, or installed by whoever has them.

Lives here: the public functions of the data layer. Workers are given arrays (`install`) and read
no files; everything a data set consists of is therefore an array, its vocabulary too, none of them
pickled. Must not live here: formats, addresses, directories (the other files of this folder).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from evaluators.data import chorales, rolls, text
from evaluators.data.catalogue import BUNDLES, DATA_SETS, DataSet, find
from evaluators.data.check import check
from evaluators.data.fetch import fetch
from evaluators.data.places import locate, path
from evaluators.errors import DataError

__all__ = ["checksum", "fetch", "forget", "install", "load", "names", "path", "source"]

Arrays = dict[str, NDArray[Any]]

_HELD: dict[str, Arrays] = {}
_SUMS: dict[str, str] = {}


def _rolls(entry: DataSet) -> Mapping[str, NDArray[Any]]:
    return rolls.read(locate(entry)[0])


_READERS: dict[str, Callable[[DataSet], Mapping[str, NDArray[Any]]]] = {
    "ptb_word": lambda entry: text.treebank(locate(entry), "word"),
    "ptb_char": lambda entry: text.treebank(locate(entry), "char"),
    "pydoc_char": lambda entry: text.topics(),
    "nottingham": _rolls,
    "jsb": _rolls,
    "piano_midi": _rolls,
    "chorales": lambda entry: chorales.load(),
}


def load(name: str) -> Arrays:
    """The arrays of a data set, read-only; the first call in a process reads them.

    text: train, valid, test: int32 numbers into vocab, an array of strings.
    roll: train, valid, test: (frames, 88) uint8, all pieces end to end; train_lengths, …: int64.
    Both: source, strings that say what was read, with SHA-256.

    Raises DataError for an unknown name, and for missing or damaged files.
    """
    entry = find(name)
    if name not in _HELD:
        install(name, _READERS[name](entry))
    return dict(_HELD[name])


def install(name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Puts arrays in place of the files of a data set, for this process; DataError if unfit.

    The arrays are not copied: those that Ray keeps in shared memory stay there.
    """
    entry = find(name)
    check(entry, arrays)
    views = {key: value.view() for key, value in arrays.items()}
    for view in views.values():
        view.flags.writeable = False  # one process, one copy: nobody may change it for the others
    _HELD[name] = views
    _SUMS.pop(name, None)


def forget() -> None:
    """Drops what this process has loaded or been given, so that the next `load` reads again."""
    _HELD.clear()
    _SUMS.clear()


def checksum(name: str) -> str:
    """SHA-256 over all arrays but `source`: that of the data, whatever file they are from."""
    arrays = load(name)
    if name not in _SUMS:
        digest = hashlib.sha256()
        for key in sorted(arrays.keys() - {"source"}):
            array = arrays[key]
            strings = array.dtype.kind == "U"
            values = "\n".join(array.tolist()).encode() if strings else array.tobytes()
            digest.update(f"{key} {array.dtype.kind} {array.shape} {len(values)}\n".encode())
            digest.update(values)
        _SUMS[name] = digest.hexdigest()
    return _SUMS[name]


def source(name: str) -> list[str]:
    """What the data set was read from, with the SHA-256 of the files or of the text."""
    return [str(line) for line in load(name)["source"]]


def names() -> dict[str, dict[str, Any]]:
    """The catalogue: for every data set a row that can be printed as JSON.

    description, kind ("text" | "roll"), source, licence: strings.
    available: whether `load` would find it here (nothing is read).
    where: the files it would read, or what is missing and how to get it.
    files: where under a data directory it is expected.
    fetch: what to pass to `fetch`, None where nothing need be downloaded; size: bytes to download.
    """
    return {name: _row(entry) for name, entry in DATA_SETS.items()}


def _row(entry: DataSet) -> dict[str, Any]:
    available, where = True, ""
    try:
        where = _where(entry)
    except DataError as error:
        available, where = False, str(error)
    remote = BUNDLES[entry.bundle] if entry.bundle else ()
    return {
        "description": entry.description,
        "kind": entry.kind,
        "source": entry.source,
        "licence": entry.licence,
        "available": available,
        "where": where,
        "files": list(entry.files),
        "fetch": entry.bundle,
        "size": sum(file.size for file in remote),
    }


def _where(entry: DataSet) -> str:
    if entry.name in _HELD:
        return "in memory"
    if entry.name == "pydoc_char":
        return text.topics_file()
    if entry.name == "chorales":
        cached = chorales.cache_file()
        return str(cached if os.path.isfile(cached) else chorales.scores()[0].parent)
    return ", ".join(str(file) for file in locate(entry))

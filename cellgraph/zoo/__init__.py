"""The named cells. One `.cell` file each, in notation, with its reference; nothing here computes
anything.

The comment above a cell's header is its record: the first lines are the title, then `key: value`
lines for
`reference`, `tags`, `aliases` and `notes` (a value may continue on lines without a key).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.notation import closest, parse

_FIELDS = ("reference", "tags", "aliases", "notes")


@dataclass(frozen=True, slots=True)
class Info:
    """What the literature says of a cell: its title, where it was published, tags, other names,
    traps."""

    name: str
    title: str
    reference: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    notes: str


@cache
def _catalogue() -> dict[str, tuple[CellGraph, Info]]:
    """Every named cell, read once. A file that does not parse is a fault of this package and
    raises."""
    found: dict[str, tuple[CellGraph, Info]] = {}
    for entry in sorted(files(__package__).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".cell"):
            cell = parse(entry.read_text(encoding="utf-8"))
            if f"{cell.name}.cell" != entry.name:
                raise CellError(
                    f"zoo file {entry.name} holds cell {cell.name}, expected equal names"
                )
            found[cell.name] = (cell, _info(cell))
    return found


def _info(cell: CellGraph) -> Info:
    values = {"title": ""} | dict.fromkeys(_FIELDS, "")
    current = "title"
    for line in cell.doc.splitlines():
        word, colon, rest = line.partition(":")
        key = word.strip() if colon and word.strip() in _FIELDS else ""
        current = key or current
        values[current] = f"{values[current]} {(rest if key else line).strip()}".strip()

    def words(text: str) -> tuple[str, ...]:
        return tuple(text.replace(",", " ").split())

    return Info(
        cell.name,
        values["title"],
        values["reference"],
        words(values["tags"]),
        words(values["aliases"]),
        values["notes"],
    )


@cache
def _by_name() -> dict[str, str]:
    """Every name that `get` understands -> the name of the file."""
    known = {name: name for name in _catalogue()}
    for name, (_, info) in _catalogue().items():
        for alias in info.aliases:
            if known.setdefault(alias, name) != name:
                raise CellError(f"zoo alias {alias} of {name} already means {known[alias]}")
    return known


def names() -> list[str]:
    """The names of all cells, sorted."""
    return list(_catalogue())


def get(name: str) -> CellGraph:
    """The cell of that name or alias; `-` and upper case are accepted (`LSTM-f`). Raises
    `CellError`."""
    return _catalogue()[_resolve(name)][0]


def info(name: str) -> Info:
    """Title, reference, tags, aliases and notes of a named cell. Raises `CellError`."""
    return _catalogue()[_resolve(name)][1]


def _resolve(name: str) -> str:
    known = _by_name()
    plain = str(name).lower().replace("-", "_")
    if plain not in known:
        raise CellError(
            f"no cell named {name!r}{closest(plain, known)}, expected one of {', '.join(names())}"
        )
    return known[plain]

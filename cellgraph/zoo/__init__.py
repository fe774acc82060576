"""The named cells. One `.cell` file each, in notation, with its reference; nothing here computes
anything.

The comment above a cell's header is its record: the first lines are the title, then `key: value`
lines for
`reference`, `tags`, `aliases` and `notes` (a value may continue on lines without a key).

Not here is MC-LSTM, the mass-conserving LSTM (Hoedt et al. 2021, arXiv 2101.05186). It would need
a sum over the units of a vector, by which it normalises its input gate, a matrix that depends on
input and state, by which it redistributes the mass, and an x in two parts, mass and auxiliary
inputs; in the notation all but `@` is elementwise, a matrix is a parameter, and x is one vector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from cellgraph.errors import CellError, closest
from cellgraph.graph import CellGraph
from cellgraph.notation import parse, read

_FIELDS = ("reference", "tags", "aliases", "notes")


@dataclass(frozen=True, slots=True)
class Info:
    """What the literature says of a cell: its title, where it was published, tags, other names,
    traps; and the constants that its text declares, with their defaults."""

    name: str
    title: str
    reference: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    notes: str
    constants: Mapping[str, float]

    @property
    def year(self) -> int | None:
        """The first year that the reference names, or else that of its arXiv number; None where it
        has neither."""
        plain = re.search(r"(?<![\d./])(?:19|20)\d\d(?![\d./]*\d)", self.reference)
        if plain:
            return int(plain[0])
        preprint = re.search(r"arXiv (\d\d)(?:0[1-9]|1[0-2])\.\d", self.reference)
        return 2000 + int(preprint[1]) if preprint else None


@cache
def _catalogue() -> dict[str, tuple[CellGraph, Info]]:
    """Every named cell, read once. A file that does not parse is a fault of this package and
    raises."""
    found: dict[str, tuple[CellGraph, Info]] = {}
    for entry in sorted(files(__package__).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".cell"):
            cell, constants = read(entry.read_text(encoding="utf-8"))
            if f"{cell.name}.cell" != entry.name:
                raise CellError(
                    f"zoo file {entry.name} holds cell {cell.name}, expected equal names"
                )
            found[cell.name] = (cell, _info(cell, constants))
    return found


def _info(cell: CellGraph, constants: Mapping[str, float]) -> Info:
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
        constants,
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


def get(name: str, constants: Mapping[str, float] | None = None) -> CellGraph:
    """The cell of that name or alias; `-` and upper case are accepted (`LSTM-f`). `constants` are
    numbers that differ from the defaults of `info(name).constants`. Raises `CellError`."""
    found = _resolve(name)
    if constants is None:
        return _catalogue()[found][0]
    return parse((files(__package__) / f"{found}.cell").read_text(encoding="utf-8"), constants)


def info(name: str) -> Info:
    """Title, reference, tags, aliases, notes and constants of a named cell. Raises `CellError`."""
    return _catalogue()[_resolve(name)][1]


def tags() -> list[str]:
    """The tags of all cells, sorted."""
    return sorted({tag for _, info in _catalogue().values() for tag in info.tags})


def tagged(tag: str) -> list[str]:
    """The names of the cells with a tag, sorted. Raises `CellError`."""
    known = tags()
    if tag not in known:
        raise CellError(f"no tag {tag!r}{closest(tag, known)}, expected one of {', '.join(known)}")
    return [name for name, (_, info) in _catalogue().items() if tag in info.tags]


def _resolve(name: str) -> str:
    known = _by_name()
    plain = str(name).lower().replace("-", "_")
    if plain not in known:
        raise CellError(
            f"no cell named {name!r}{closest(plain, known)}, expected one of {', '.join(names())}"
        )
    return known[plain]

"""The structure of cells, computed from their graphs: as data, as lines of text, and as the list of
the named cells."""

from __future__ import annotations

from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from reports.wording import clean

LEAST_TITLE = 20  #: columns; a narrower terminal gets whole titles


def data(cell: CellGraph) -> dict[str, Any]:
    """The facts of a cell at X = H = 64, the named cells nearest to it, and those that are the same
    function."""
    nearest = cg.closest(cell)
    return {
        **cg.facts(cell).to_dict(),
        "closest": {"names": list(nearest.names), "distance": nearest.distance},
        "same_function": list(cg.same_function_as(cell)),
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """What `data` says, for people."""
    shown = [f"recurrence: {facts['structure']}{_scan(facts)}"]
    if len(facts["blocks"]) > 1:
        shown.append(f"in this order: {'; '.join(map(_block, facts['blocks']))}")
    parts = [
        f"matrices: {facts['recurrent_matrices']} recurrent "
        f"({facts['recurrent_multiplications']:,} multiplications a step and row), "
        f"{facts['input_matrices']} input",
        *(f"{kind}: {facts[kind]}" for kind in ("vectors", "scalars")),
    ]
    shown.append("; ".join(parts))
    for gate in facts["gates"]:
        sees = ", ".join(_seen(name, ways) for name, ways in gate["sees"].items())
        reads = f"; reads {', '.join(gate['reads'])}" if gate["reads"] else ""
        shown.append(f"gate {gate['name']} sees {sees or 'nothing, it is learned alone'}{reads}")
    for coupling in facts["couplings"]:
        value = f"{coupling['value']} = " if coupling["value"] else ""
        shown.append(f"coupled: {', '.join(coupling['gates'])} in {value}{coupling['equation']}")
    distance = facts["closest"]["distance"]
    edits = "same key" if not distance else f"{distance} edit{'s' if distance > 1 else ''}"
    shown.append(f"closest named cell: {', '.join(facts['closest']['names'])} ({edits})")
    if facts["same_function"]:
        shown.append(f"same function as: {', '.join(facts['same_function'])}")
    return shown


def _scan(facts: dict[str, Any]) -> str:
    return " (a parallel scan can replace the loop)" if facts["parallel"] else ""


def _block(block: dict[str, Any]) -> str:
    names = ", ".join(block["states"])
    if not block["recurrent"]:
        return f"{names} without recurrence"
    linear = "linear" if block["linear"] else "nonlinear"
    return f"{names} {linear}, {'elementwise' if block['elementwise'] else 'matrix'}"


def _seen(name: str, ways: list[str]) -> str:
    """The usual way, through a matrix, goes without saying."""
    return name if ways == ["matrix"] else f"{name} ({' and '.join(ways)})"


# -- the named cells -------------------------------------------------------------------------------


def zoo(tag: str | None = None, *, near: bool = True) -> list[dict[str, Any]]:
    """One row for every named cell, or those with a tag. near: with the closest cells and those of
    the same function, which takes most of the time. Raises CellError for an unknown tag."""
    rows = []
    for name in cg.zoo.names() if tag is None else cg.zoo.tagged(tag):
        cell, info = cg.zoo.get(name), cg.zoo.info(name)
        facts = data(cell) if near else cg.facts(cell).to_dict()
        rows.append(
            {
                "name": name,
                "title": info.title,
                "reference": info.reference,
                "year": info.year,
                "tags": list(info.tags),
                "aliases": list(info.aliases),
                "states": [state.name for state in cell.states],
                "parameters_64": facts["parameters"],
                "flops_64": facts["flops_per_step"],
                "key": facts["key"],
                "structure": facts,
            }
        )
    return rows


def zoo_text(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """The rows of `zoo` as a table, a cell a line. width: where titles are cut, unless hardly
    anything would be left of them."""
    table = [("name", "year", "states", "matrices", "parameters", "FLOPs", "recurrence", "title")]
    for row in rows:
        facts = row["structure"]
        table.append(
            (
                row["name"],
                str(row["year"] or ""),
                " ".join(row["states"]),
                str(facts["matrices"]),
                f"{facts['parameters']:,}",
                f"{facts['flops_per_step']:,}",
                facts["structure"],
                row["title"],
            )
        )
    sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = []
    for row_texts in table:
        *texts, title = map(clean, row_texts)
        padded = [
            text.rjust(size) if 3 <= i <= 5 else text.ljust(size)
            for i, (text, size) in enumerate(zip(texts, sizes, strict=False))
        ]
        start = "  ".join(padded) + "  "
        room = len(title) if width is None else width - len(start)
        cut = len(title) > room >= LEAST_TITLE
        shown.append((start + (f"{title[: room - 1]}…" if cut else title)).rstrip())
    count = f"{len(rows)} cell{'' if len(rows) == 1 else 's'}"
    shown.append(
        f"{count}, parameters and FLOPs of a step at H = X = 64; "
        "more of one: cellsearch inspect NAME"
    )
    return "\n".join(shown)

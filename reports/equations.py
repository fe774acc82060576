"""Cells of a run as equations, and what a child changed in those of its parent."""

from __future__ import annotations

from collections.abc import Sequence

import cellgraph as cg
from cellgraph import CellError, CellGraph
from cellgraph.printing import equations
from reports.collect import Run

#: X and H at which the sizes of cells are compared; other widths of a state get half of it.
SIZE = 64


def lines(cell: CellGraph) -> list[tuple[str, str]]:
    """(left side, right side) in the order of the text, then `skew` and `init` lines as
    equations."""
    skews = [(f"skew {name}", f"{name} - {name}^T") for name in cell.skews]
    inits = [(f"init {p.name}", str(p.init)) for p in cell.params if p.init is not None]
    return [*equations(cell), *skews, *inits]


def changes(parent: CellGraph, child: CellGraph) -> list[str]:
    """The equations that differ, in the order of the child: `+` new, `−` gone, `→` changed.

    Compared by the name on the left side and as text: renaming a value counts as a change.
    """
    before, after = dict(lines(parent)), dict(lines(child))
    found = []
    for name, text in after.items():
        if name not in before:
            found.append(f"+ {name} = {text}")
        elif before[name] != text:
            found.append(f"{name} = {before[name]} → {text}")
    return found + [f"− {name} = {before[name]}" for name in before if name not in after]


def inherited(run: Run, key: str) -> list[str]:
    """`changes` from the first parent of a cell; empty for a seed, and one line if unreadable.

    A journal outlives versions, so notation that no longer parses is said, not raised.
    """
    parents = run.parents(key)
    if not parents:
        return []
    try:
        parent, child = (cg.parse(run.first[k].cell) for k in (parents[0], key))
    except CellError as error:
        return [f"(unreadable notation: {str(error).splitlines()[0]})"]
    return changes(parent, child)


def sizes(cell: CellGraph) -> dict[str, int]:
    """Parameters and floating-point operations of a step at X = H = 64, in one layer."""
    widths: dict[str, int] = dict.fromkeys(cell.widths[1:], SIZE // 2)
    return {
        "input_size": SIZE,
        "hidden_size": SIZE,
        **widths,
        "parameters": cg.count_parameters(cell, SIZE, SIZE, widths=widths),
        "flops_per_step": cg.flops_per_step(cell, SIZE, SIZE, widths=widths),
    }


def aligned(pairs: Sequence[tuple[str, str]]) -> str:
    """Equations under each other, their signs of equality in one column; other lines below."""
    pad = max((len(name) for name, _ in pairs if " " not in name), default=0)
    return "\n".join(f"{name:<{pad}} = {text}" for name, text in pairs)

"""A cell as source for Graphviz: the boxes and arrows of `drawing.py`, placed by `dot`."""

from __future__ import annotations

from cellgraph.exporters.drawing import Box, drawing
from cellgraph.exporters.source import printable
from cellgraph.graph import CellGraph

_LOOKS = {
    "input": 'shape=box, style="rounded,filled", fillcolor="#dbe9fb", color="#0b63c5"',
    "state": 'shape=box, style="rounded,filled", fillcolor="#dbe9fb", color="#0b63c5"',
    "matrix": 'shape=box, style=filled, fillcolor="#fce8d9", color="#b9500f"',
    "op": 'shape=box, style=filled, fillcolor="#f5f7f9", color="#59636e"',
    "next": 'shape=box, style="rounded,filled", fillcolor="#dff1e0", color="#24762b"',
    "output": 'shape=box, style="rounded,filled", fillcolor="#dff1e0", color="#24762b", penwidth=2',
}


def render(cell: CellGraph) -> str:
    """The graph as text. `cell` must be as `parse` gives it."""
    boxes = drawing(cell).boxes
    lines = [f"// {printable(line)}".rstrip() for line in str(cell).splitlines()]
    lines += [
        f"digraph {_quoted(cell.name)} {{",
        '    node [fontname="monospace", fontsize=11, height=0.3, margin="0.1,0.03"];',
        '    edge [fontname="monospace", fontsize=9, color="#59636e", arrowsize=0.7];',
        *(f"    {_box(i, box)}" for i, box in enumerate(boxes)),
        *(f"    {arrow}" for i, box in enumerate(boxes) for arrow in _arrows(i, box)),
        _rank("source", [i for i, b in enumerate(boxes) if b.kind in ("input", "state")]),
        _rank("sink", [i for i, b in enumerate(boxes) if b.kind in ("next", "output")]),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _box(number: int, box: Box) -> str:
    return (
        f"n{number} [label={_quoted(box.short())}, tooltip={_quoted(box.label())}, "
        f"{_LOOKS[box.kind]}];"
    )


def _arrows(number: int, box: Box) -> list[str]:
    return [
        f"n{source} -> n{number}{f' [label={_quoted(mark)}]' if box.lettered else ''};"
        for source, mark in zip(box.sources, box.marks, strict=True)
    ]


def _rank(name: str, numbers: list[int]) -> str:
    return f"    {{ rank={name}; {'; '.join(f'n{number}' for number in numbers)}; }}"


def _quoted(text: str) -> str:
    """A string of Graphviz, in which a backslash begins an escape."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

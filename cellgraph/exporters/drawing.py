"""The graph of one step as boxes and arrows: what every picture of a cell shows, wherever it is
drawn.

A box is an op, written as in the notation with `·` for each value that an arrow brings. Parameters
and numbers stand in the box that reads them, and a sum of a few terms is one box, as is a product:
an LSTM has 40 nodes and 26 boxes. No coordinates here; `layers.py` has those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Node, use_counts
from cellgraph.ops import OPS
from cellgraph.printing import render

Kind = Literal["input", "state", "matrix", "op", "next", "output"]

#: Terms of a sum or a product that are written in one box.
MOST_TERMS = 4
#: Characters of a label; a name can have a hundred.
LONGEST = 36
HOLE = "·"


@dataclass(frozen=True, slots=True)
class Box:
    """A value. `node` is what it holds, None for the places in which a step leaves its results;
    `name` what the text calls it, or the state whose next value it is.

    `sources` are the boxes that arrows come from, `holes` their nodes, in the order of the
    arguments; `marks` is what stands for each of them in the label.
    """

    kind: Kind
    name: str
    node: Node | None
    sources: tuple[int, ...] = ()
    holes: tuple[Node, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def lettered(self) -> bool:
        """Are arrows told apart by letters, because the order of the arguments matters?"""
        return len(self.marks) > 1 and self.marks[0] != HOLE

    @property
    def held(self) -> Node:
        """The node of a box that has one."""
        if self.node is None:
            raise TypeError(f"the {self.kind} {self.name} holds no node of its own")
        return self.node

    def label(self) -> str:
        """As a line of the notation, whole."""
        text = ""
        if self.node is not None:
            text = render(self.node, dict(zip(self.holes, self.marks, strict=True)), top=True)
        shown = " = ".join(part for part in (self.name, text) if part)
        if self.kind != "output":
            return shown
        return f"{shown} (output)" if shown else "output"

    def short(self) -> str:
        """The label, cut where it is too long for a picture."""
        text = self.label()
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


@dataclass(frozen=True, slots=True)
class Drawing:
    """The boxes of a step; arguments come before what reads them."""

    name: str
    boxes: tuple[Box, ...]


def drawing(cell: CellGraph) -> Drawing:
    """The picture of one step of a cell."""
    names: dict[Node, str] = {}
    for name, node in cell.names:
        if not node.is_leaf and not name.endswith("'"):
            names.setdefault(node, name)
    absorbed = _absorbed(cell, names)
    boxes = [Box("input", "", Node(INPUT, (), "x"))]
    boxes += [Box("state", "", Node(STATE, (), state.name)) for state in cell.states]
    place = {box.node: i for i, box in enumerate(boxes) if box.node is not None}
    for node in cell.nodes:
        if not node.is_leaf and node not in absorbed:
            holes = tuple(_holes(node, absorbed))
            sources = tuple(place[hole] for hole in holes)
            kind: Kind = "matrix" if node.op == MATMUL else "op"
            place[node] = len(boxes)
            boxes.append(Box(kind, names.get(node, ""), node, sources, holes, _marks(node, holes)))
    boxes += _results(cell, place)
    return Drawing(cell.name, tuple(boxes))


def _absorbed(cell: CellGraph, names: Mapping[Node, str]) -> dict[Node, None]:
    """The sums and products that are written within the one that reads them."""
    counts = use_counts(cell.roots)
    terms: dict[Node, int] = {}
    found: dict[Node, None] = {}
    for node in cell.nodes:
        if not _gathers(node):
            continue
        terms[node] = len(node.args)
        for arg in node.args:
            inner = arg.op == node.op and counts[arg] == 1 and arg not in names
            if inner and terms[node] + terms[arg] - 1 <= MOST_TERMS:
                terms[node] += terms[arg] - 1
                found[arg] = None
    return found


def _gathers(node: Node) -> bool:
    """Is it an infix op whose arguments may stand in any order?"""
    return node.op in OPS and OPS[node.op].commutes and OPS[node.op].infix is not None


def _holes(node: Node, absorbed: Mapping[Node, None]) -> Iterable[Node]:
    """What arrows bring to a box, each once, from left to right."""
    found: dict[Node, None] = {}
    stack = list(reversed(node.args))
    while stack:
        arg = stack.pop()
        if arg in absorbed:
            stack.extend(reversed(arg.args))
        elif arg.op not in (PARAM, CONST):
            found[arg] = None
    return found


def _marks(node: Node, holes: Sequence[Node]) -> tuple[str, ...]:
    ordered = node.op in OPS and not OPS[node.op].commutes and len(holes) > 1
    return tuple("abcd"[: len(holes)]) if ordered else (HOLE,) * len(holes)


def _results(cell: CellGraph, place: Mapping[Node, int]) -> list[Box]:
    """Where a step leaves the next states, and its output where that is none of them."""
    output, found = cell.outputs[0], []
    emitted = next((state for state in cell.states if state.next is output), None)
    for state in cell.states:
        kind: Kind = "output" if state is emitted else "next"
        found.append(_result(kind, f"{state.name}'", state.next, place))
    return found if emitted else [*found, _result("output", "", output, place)]


def _result(kind: Kind, name: str, node: Node, place: Mapping[Node, int]) -> Box:
    if node in place:
        return Box(kind, name, None, (place[node],), (node,), (HOLE,))
    return Box(kind, name, node)  # a parameter or a number, which has no box

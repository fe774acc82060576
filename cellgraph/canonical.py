"""The canonical key: one digest for one cell, whatever its names, the order of its lines, or dead
code in it.

The key is the SHA-256 of a canonical text with ordered ports. Because the text determines the cell
up to renaming, two different cells never share a key (short of a collision of SHA-256). The
opposite error can happen: arguments of a commutative op are ordered by colour refinement, and where
refinement cannot tell two arguments apart that are nevertheless not interchangeable, one cell can
get two keys. Such a cell is merely evaluated twice. Parameters are nominal: they lose their names,
but two of them are never merged because they look alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from cellgraph.graph import (
    CONST,
    PARAM,
    STATE,
    CellGraph,
    Node,
    format_number,
    rebuilt,
    substitute,
    topological,
)
from cellgraph.ops import OPS


def live_states(cell: CellGraph) -> frozenset[str]:
    """The states that reach the output, directly or through the next values of others. For
    membership only."""
    nexts = {s.name: s.next for s in cell.states}
    live: dict[str, None] = {}
    pending = list(cell.outputs)
    while pending:
        for node in topological([pending.pop()]):
            if node.op == STATE and str(node.attr) not in live:
                live[str(node.attr)] = None
                pending.append(nexts[str(node.attr)])
    return frozenset(live)


def dead_states_removed(cell: CellGraph) -> CellGraph:
    """Only states that reach the output remain. Dead nodes need no pass: what no root reaches is
    not in a graph.

    Shapes stay: where a dead state decides on the width of what lives (by adding x to itself, say),
    the live part would be another function under the widths that it would have on its own.
    """
    live = live_states(cell)
    states = tuple(state for state in cell.states if state.name in live)
    if states == cell.states:
        return cell
    alive = frozenset(topological([*(state.next for state in states), *cell.outputs]))
    return replace(
        cell,
        states=states,
        params=tuple(p for p in cell.params if Node(PARAM, (), p.name) in alive),
        names=tuple((name, node) for name, node in cell.names if node in alive),
    )


def duplicates_merged(cell: CellGraph) -> CellGraph:
    """No value is computed twice: arguments of commutative ops stand in the order in which the walk
    first met them, so that `x * h` and `h * x` are one node."""
    met: dict[Node, int] = {}

    def put(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op in OPS and OPS[node.op].commutes:
            args = tuple(sorted(args, key=met.__getitem__))
        made = rebuilt(node, args)
        met.setdefault(made, len(met))
        return made

    image = substitute(cell.roots, put)
    return replace(
        cell,
        states=tuple(replace(state, next=image[state.next]) for state in cell.states),
        outputs=tuple(image[output] for output in cell.outputs),
        names=(),
    )


#: In order; each is named by what holds after it.
PASSES: tuple[Callable[[CellGraph], CellGraph], ...] = (dead_states_removed, duplicates_merged)


def canonical(cell: CellGraph) -> CellGraph:
    """The cell after every pass: the same outputs for the same parameters and live states."""
    for rewrite in PASSES:
        cell = rewrite(cell)
    return cell


def key(cell: CellGraph) -> str:
    """64 hexadecimal digits; equal for cells that differ in names, dead code or order of
    commutative arguments."""
    return hashlib.sha256(canonical_text(canonical(cell)).encode()).hexdigest()


def canonical_text(cell: CellGraph) -> str:
    """One line a node, arguments as line numbers, leaves numbered in the order in which the walk
    meets them."""
    colour = _colours(cell)
    states = {s.name: i for i, s in enumerate(cell.states)}
    kinds = {p.name: p for p in cell.params}
    widths = _widths(cell)
    number: dict[Node, int] = {}
    lines: list[str] = []
    params = 0

    def ordered(node: Node) -> list[Node]:
        if node.op in OPS and OPS[node.op].commutes:
            return sorted(node.args, key=lambda a: (colour[a], number.get(a, len(colour))))
        return list(node.args)

    for root in cell.roots:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if node in number:
                continue
            if not done and node.args:
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(ordered(node)))
                continue
            if node.op == PARAM:
                param = kinds[str(node.attr)]
                names = [w for w in (param.rows, param.cols) if w]
                shape = " ".join(widths.setdefault(w, f"W{len(widths) - 2}") for w in names)
                lines.append(f"param{params} {param.kind} {shape} {param.init}")
                params += 1
            elif node.op == STATE:
                lines.append(f"state {states[str(node.attr)]}")
            elif node.op == CONST:
                lines.append(f"const {format_number(float(node.attr))}")  # type: ignore[arg-type]
            else:
                lines.append(" ".join([node.op, *(str(number[a]) for a in ordered(node))]))
            number[node] = len(lines) - 1
    declared = " ".join(widths[s.width] for s in cell.states)
    roots = " ".join(str(number[r]) for r in cell.roots)
    return "\n".join([f"states {declared}", *lines, f"roots {roots}"])


def _widths(cell: CellGraph) -> dict[str, str]:
    """Width names other than H and X are bound names: numbered by the states that declare them."""
    widths = {"H": "H", "X": "X"}
    for state in cell.states:
        widths.setdefault(state.width, f"W{len(widths) - 2}")
    return widths


def _colours(cell: CellGraph) -> dict[Node, int]:
    """Colour refinement with ordered ports, downwards and upwards, until the number of classes
    stands still."""
    nodes = topological(cell.roots)
    kinds = {p.name: p for p in cell.params}
    states = {s.name: i for i, s in enumerate(cell.states)}
    widths = _widths(cell)
    parents: dict[Node, list[tuple[Node, int]]] = {n: [] for n in nodes}
    label: dict[Node, str] = {}
    for node in nodes:
        commutes = node.op in OPS and OPS[node.op].commutes
        for port, arg in enumerate(node.args):
            parents[arg].append((node, 0 if commutes else port))
        attr = str(node.attr)
        if node.op == PARAM:
            param = kinds[attr]
            # A width that only a dead state declared is no state's; the walk numbers it later.
            shape = " ".join(widths.get(w, "?") for w in (param.rows, param.cols) if w)
            attr = f"{param.kind} {shape} {param.init}"
        elif node.op == STATE:
            attr = str(states[attr])
        roots = [i for i, root in enumerate(cell.roots) if root is node]
        label[node] = f"{node.op} {attr} {roots}"
    colour = _ranked({n: (label[n],) for n in nodes})
    classes = len(set(colour.values()))
    while classes < len(nodes):
        signature: dict[Node, tuple[object, ...]] = {}
        for node in nodes:
            below = [colour[a] for a in node.args]
            if node.op in OPS and OPS[node.op].commutes:
                below.sort()
            above = sorted((colour[p], port) for p, port in parents[node])
            signature[node] = (colour[node], below, above)
        colour = _ranked(signature)
        refined = len(set(colour.values()))
        if refined == classes:
            break
        classes = refined
    return colour


def _ranked(signature: dict[Node, tuple[object, ...]]) -> dict[Node, int]:
    """Replace signatures by their rank, which depends on their values alone and never on a hash."""
    ranks: dict[str, int] = {}
    text = {node: repr(value) for node, value in signature.items()}
    for value in sorted(set(text.values())):
        ranks[value] = len(ranks)
    return {node: ranks[value] for node, value in text.items()}

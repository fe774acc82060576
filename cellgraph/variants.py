"""The cells that constructor arguments ask for: without biases, and with a projection that has a
width of its own. Graphs in, graphs out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cellgraph.errors import CellError
from cellgraph.graph import (
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Node,
    depends_on,
    rebuilt,
    substitute,
)
from cellgraph.ops import INFIX
from cellgraph.schedule import signs
from cellgraph.widths import build


def biases(cell: CellGraph) -> tuple[str, ...]:
    """The parameters that are biases: vectors which the cell only ever adds to something that x or
    a state reaches. `b` is one in `tanh(W @ x + b)`, none in `b * h`, `1 - b` or `h' = b`."""
    reached = depends_on(cell.roots, lambda leaf: leaf.op in (INPUT, STATE))
    only_added = dict.fromkeys(cell.nodes, True)
    for root in cell.roots:
        only_added[root] = reached[root]
    for node in reversed(cell.nodes):  # whoever reads a node comes before it
        for arg in node.args:
            terms = signs(node) is not None and (reached[node] or only_added[node])
            only_added[arg] = only_added[arg] and terms
    vectors = {p.name for p in cell.params if p.kind == "vector"}
    leaves = (n for n in cell.nodes if n.op == PARAM and n.attr in vectors)
    return tuple(str(n.attr) for n in leaves if only_added[n])


def without_biases(cell: CellGraph) -> CellGraph:
    """The cell whose biases are zero for good, and so are no parameters. A cell that has none is
    returned itself. Raises `CellError` where a bias decides on the width of something else."""
    names = biases(cell)
    if not names:
        return cell
    zero: set[Node] = {n for n in cell.nodes if n.op == PARAM and n.attr in names}

    def image(node: Node, args: tuple[Node, ...]) -> Node:
        own = signs(node)
        if own is None:
            return rebuilt(node, args)
        left = [
            (sign, new)
            for sign, old, new in zip(own, node.args, args, strict=True)
            if old not in zero
        ]
        if not left:
            zero.add(node)
        if not left or len(left) == len(own):
            return rebuilt(node, args)
        ((sign, term),) = left
        return term if sign > 0 else Node(INFIX["-", 1].name, (term,))

    images = substitute(cell.roots, image)
    made = _rebuilt(cell, images, {}, ((n, v) for n, v in cell.names if v not in zero))
    before = {p.name: (p.rows, p.cols) for p in cell.params}
    changed = [p.name for p in made.params if before[p.name] != (p.rows, p.cols)]
    if changed or made.raw_x != cell.raw_x:
        raise CellError(
            f"cell {cell.name} without its biases {', '.join(names)} has other widths "
            f"({', '.join(changed) or 'x'}), expected bias=True"
        )
    return made


def with_projection(cell: CellGraph) -> tuple[CellGraph, str]:
    """The cell with a width of its own for what it emits, and the name of that width.

    That is the cell itself where its output has such a width (`cell a(x, r: P, c)`); and, where the
    output is a matrix product and the next value of a state, the cell in which that state is
    declared so. Raises `CellError` for a cell without a projection.
    """
    output = cell.outputs[0]
    states = [s for s in cell.states if s.next is output]
    own = [s.width for s in states if s.width != "H"]
    if own:
        return cell, own[0]
    if output.op == MATMUL and states:
        width = next(name for name in ("P", "P_out", "P_projected") if name not in cell.widths)
        widths = dict.fromkeys((s.name for s in states), width)
        try:
            return _rebuilt(cell, {n: n for n in cell.nodes}, widths, cell.names), width
        except CellError:
            pass  # the projection is added to something of width H
    raise CellError(
        f"cell {cell.name} has no projection, expected proj_size=0 or a cell whose output is a "
        "state and a matrix product, such as lstm_projection_torch"
    )


def _rebuilt(
    cell: CellGraph,
    images: Mapping[Node, Node],
    widths: Mapping[str, str],
    names: Iterable[tuple[str, Node]],
) -> CellGraph:
    """The cell of other nodes, and of other widths for some of its states."""
    return build(
        cell.name,
        [(s.name, widths.get(s.name, s.width), images[s.next]) for s in cell.states],
        images[cell.outputs[0]],
        scalars=cell.scalars,
        skews=cell.skews,
        inits={p.name: p.init for p in cell.params if p.init is not None},
        names=[(name, images[node]) for name, node in names if not images[node].is_leaf],
        doc=cell.doc,
    )

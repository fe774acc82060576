"""The notation of cells: graph to text. `parse(to_text(cell)) == cell`; the grammar stands in
`notation.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cellgraph.graph import CONST, MATMUL, CellGraph, Node, format_number, use_counts
from cellgraph.notation import MAX_DEPTH
from cellgraph.ops import ATOM, MATRIX, OPS, SUM, UNARY

_Piece = str | tuple[Node, int]  # written as it is, or a node that must bind at least so tightly


def to_text(cell: CellGraph) -> str:
    """The cell as notation: comment, header, one aligned equation a line, then `scalar`, `skew` and
    `init` lines."""
    lines = [f"# {line}".rstrip() for line in cell.doc.splitlines()]
    order = named(cell)
    statements = _statements(cell, order)
    pad = max(len(name) for name, _ in statements)
    lines.append(header(cell, {node: label for label, node in order}))
    lines += [f"    {name:<{pad}} = {text}" for name, text in statements]
    for word, declared in (("scalar", cell.scalars), ("skew", cell.skews)):
        if declared:
            lines.append(f"    {word} {', '.join(declared)}")
    lines += [f"    init {p.name} = {p.init}" for p in cell.params if p.init is not None]
    return "\n".join(lines) + "\n"


def header(cell: CellGraph, label: Mapping[Node, str]) -> str:
    """`cell NAME(x, h, …)`, with `-> NAME` when the output is not the next value of the first
    state."""
    states = [s.name if s.width == "H" else f"{s.name}: {s.width}" for s in cell.states]
    text = f"cell {cell.name}({', '.join([*cell.inputs, *states])})"
    output = cell.outputs[0]
    if output is cell.states[0].next:
        return text
    for state in cell.states:
        if output is state.next:
            return f"{text} -> {state.name}"
    return f"{text} -> {label[output]}"


def named(cell: CellGraph) -> list[tuple[str, Node]]:
    """The nodes that get a line of their own, in an order that can be read top down: (name, node).

    Names of the text are kept. A node that is used more than once and is more than one op on leaves
    gets a generated name, and so do an output that is no state and parentheses deeper than `parse`
    would read.
    """
    states = {f"{s.name}'": s.next for s in cell.states}
    output = cell.outputs[0]
    bare = (
        output not in states.values()
    )  # the output needs a name of its own, even when it is a leaf
    wanted: dict[Node, str] = {}
    for name, node in cell.names:
        if name not in states and (not node.is_leaf or (bare and node is output)):
            wanted.setdefault(node, name)
    for name, node in states.items():
        if not node.is_leaf:
            wanted.setdefault(node, name)
    taken = {p.name for p in cell.params} | {s.name for s in cell.states} | set(wanted.values())
    counts = use_counts(cell.roots)
    fresh = (f"n{i}" for i in range(1, len(cell.nodes) + len(taken) + 2))
    nesting: dict[Node, int] = {}
    large = len(cell.nodes) > MAX_DEPTH // 2  # a smaller one cannot nest too deeply
    for node in cell.nodes:
        shared = counts[node] > 1 and not all(a.is_leaf for a in node.args)
        if large:
            nesting[node] = _nesting(node, nesting, wanted)
        deep = large and nesting[node] >= MAX_DEPTH // 2
        if node not in wanted and (shared or deep or (bare and node is output)):
            wanted[node] = next(name for name in fresh if name not in taken)
        if node in wanted:
            nesting[node] = 0
    # The order of the text where there is one; a line's dependencies always come first.
    order: list[tuple[str, Node]] = []
    placed: set[Node] = set()
    by_text = {node: None for _, node in cell.names if node in wanted}
    for first in [*by_text, *cell.nodes]:
        if first in wanted and first not in placed:
            for node in _below(first, placed):
                if node in wanted:
                    order.append((wanted[node], node))
    return order


def _below(root: Node, placed: set[Node]) -> list[Node]:
    """The nodes below `root` that are not yet placed, arguments first; marks them placed."""
    order: list[Node] = []
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in placed:
            placed.add(node)
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return order


def equations(cell: CellGraph) -> list[tuple[str, str]]:
    """(left side, right side) of every line, in order; a state's line ends in a prime."""
    return _statements(cell, named(cell))


def _statements(cell: CellGraph, order: Sequence[tuple[str, Node]]) -> list[tuple[str, str]]:
    label = {node: name for name, node in order}
    lines: list[tuple[str, str]] = []
    pending = {f"{s.name}'": s.next for s in cell.states}
    for name, node in order:
        lines.append((name, render(node, label, top=True)))
        pending.pop(name, None)
        # A state whose next value carries another name: `h' = g`, as soon as g is known.
        for state in [s for s, n in pending.items() if n is node]:
            lines.append((state, name))
            del pending[state]
    lines += [(state, render(node, label)) for state, node in pending.items()]
    return lines


def render(root: Node, label: Mapping[Node, str], *, top: bool = False) -> str:
    """One expression, with as few parentheses as reading it back exactly allows; labelled nodes by
    their names."""
    text: list[str] = []
    todo: list[_Piece] = [(root, SUM)]
    while todo:
        piece = todo.pop()
        if isinstance(piece, str):
            text.append(piece)
            continue
        node, least = piece
        if node in label and not (top and node is root):
            text.append(label[node])
            continue
        inner, binds = _layout(node)
        todo += reversed(inner if binds >= least else ["(", *inner, ")"])
    return "".join(text)


def _layout(node: Node) -> tuple[list[_Piece], int]:
    """How one op is written, and how tightly that binds."""
    if node.op == CONST:
        value = float(node.attr)  # type: ignore[arg-type]
        return [format_number(value)], UNARY if value < 0 else ATOM
    if node.is_leaf:
        return [str(node.attr)], ATOM
    first, *rest = node.args
    if node.op == MATMUL:
        return [(first, ATOM), " @ ", (rest[0], UNARY)], MATRIX
    op = OPS[node.op]
    if op.infix is None:
        others: list[_Piece] = [piece for arg in rest for piece in (", ", (arg, SUM))]
        return [f"{op.name}(", (first, SUM), *others, ")"], ATOM
    if op.arity == 1:
        # `-1` reads back as a number, so the negation of a written number keeps its parentheses.
        literal = first.op == CONST and not str(first.attr).startswith("-")
        return [op.infix, (first, ATOM + 1 if literal else op.binds)], op.binds
    return [(first, op.binds), f" {op.infix} ", (rest[0], op.binds + 1)], op.binds


def _nesting(node: Node, below: Mapping[Node, int], named: Mapping[Node, str]) -> int:
    """How deep parentheses stand in one another in the text of a node; `below` knows that of its
    arguments."""
    inner, _ = _layout(node)
    call = node.op in OPS and OPS[node.op].infix is None
    depth = 0
    for arg, least in (piece for piece in inner if not isinstance(piece, str)):
        binds = ATOM if arg in named else _layout(arg)[1]
        depth = max(depth, below[arg] + (call or binds < least))
    return depth

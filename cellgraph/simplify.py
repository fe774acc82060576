"""From the normal form back to a cell: `simplify` keeps the nodes of a cell that no rule makes
better, and writes the others anew.
"""

from __future__ import annotations

from cellgraph.canonical import state_colours, unambiguous
from cellgraph.graph import CONST, MATMUL, CellGraph, Node, State, rebuilt
from cellgraph.normal import SIGNS, Form, take_form
from cellgraph.ops import INFIX
from cellgraph.rewrites import FILL, ONE, PRODUCT, SUM, Value
from cellgraph.widths import build

_ADD, _SUBTRACT, _NEGATE = (INFIX[s].name for s in (("+", 2), ("-", 2), ("-", 1)))
_MULTIPLY, _DIVIDE = (INFIX[s].name for s in (("*", 2), ("/", 2)))


def simplify(cell: CellGraph) -> CellGraph:
    """The cell by the rules of `rules.py`, without dead states: the same outputs from zero states.

    Names of equations and parameters that remain are kept, and so is the way in which things are
    written, unless a rule knows a better one. The state that is emitted stands first, the others in
    an order that does not depend on names; a state that nothing reads remains only if it is
    emitted, or if there is no other. Idempotent, and a cell that is simple already is returned
    itself.

    The key stays, ties of `canonical.py` apart, with one exception: a cell that no longer uses x
    outside a matrix takes x at any width (`raw_x` becomes None), so it is another cell. Where a
    removed part decided on any other width, or the simple form would be the longer one, the cell is
    left as it is.

    Raises `CellError` where the output or the next value of a state comes to a number, which no
    cell can say (`h' = x - x`); `viable` is false for such a cell.
    """
    form, image = take_form(cell)
    writer = _Writer(cell, form, image)
    states, output = writer.states()
    roots = [writer.built[writer.image[s.next]] for s in states]
    if tuple(states) == cell.states and (*roots, output) == cell.roots:
        return cell
    made = build(
        cell.name,
        [(s.name, s.width, root) for s, root in zip(states, roots, strict=True)],
        output,
        scalars=writer.form.scalars,
        skews=cell.skews,
        inits={p.name: p.init for p in cell.params if p.init is not None},
        names=writer.names(output),
        doc=cell.doc,
    )
    if not _as_wide(made, cell) or _ops(made) > _ops(cell):
        return cell
    # Told here only where it is certain that the new cell, read from its text, would get the same.
    if made.raw_x == cell.raw_x and unambiguous(form) and _reads_alike(made, cell, form, image):
        made.__dict__["_key"] = cell.key()
    return made


def _reads_alike(made: CellGraph, cell: CellGraph, form: Form, image: dict[Node, Value]) -> bool:
    """Has the simple cell the very same normal form? Its terms are known already, so that this is
    quicker than another form of it."""
    values, nexts = form.values(made), {s.name: s.next for s in cell.states}
    pairs = [(made.outputs[0], cell.outputs[0]), *((s.next, nexts[s.name]) for s in made.states)]
    return all(values[new] == image[old] for new, old in pairs)


def _ops(cell: CellGraph) -> int:
    return sum(not node.is_leaf for node in cell.nodes)


def _as_wide(made: CellGraph, cell: CellGraph) -> bool:
    """Do all parameters keep their widths, where x is as wide as `cell` wants it?"""
    before = {p.name: (p.rows, p.cols) for p in cell.params}
    x = cell.raw_x or "X"
    return made.raw_x in (None, cell.raw_x) and all(
        before[p.name] == tuple(x if w == "X" else w for w in (p.rows, p.cols)) for p in made.params
    )


class _Writer:
    """Nodes for the values of a cell."""

    def __init__(self, cell: CellGraph, form: Form, image: dict[Node, Value]) -> None:
        self.cell, self.form, self.image = cell, form, image
        self.built: dict[Value, Node] = {}
        if form.rewritten:
            self._rewrite()
            return
        for node in cell.nodes:
            if image[node] not in self.built:
                self.built[image[node]] = self._kept(node)

    def _rewrite(self) -> None:
        """Read the cell once more, and write what a rule makes better as soon as it is read: what
        is written can be terms of its own, and the order of terms is that of arguments."""
        self.form, self.image = Form.of(self.cell), {}
        for node in self.cell.nodes:
            before = self.form.rewritten
            value = self.image[node] = self.form.read(node, self.image)
            if value not in self.built:
                if self.form.rewritten == before:
                    self.built[value] = self._kept(node)
                else:
                    self._write(value)

    def states(self) -> tuple[list[State], Node]:
        """The states that remain, in order, and the node of the output."""
        cell, form = self.cell, self.form
        nexts = {s.name: self.image[s.next] for s in cell.states}
        end = self.image[cell.outputs[0]]
        live = form.live(end[1], nexts)
        emitted = [s.name for s in cell.states if nexts[s.name] == end]
        if emitted and not live.intersection(emitted):
            live |= {emitted[0]}
        if not live:  # a cell has at least one state: the first, and what it needs
            first = cell.states[0].name
            live = form.live(nexts[first][1], nexts) | {first}
        kept = [s for s in cell.states if s.name in live]
        front = next((s for s in kept if nexts[s.name] == end), kept[0])
        if len(kept) > 2:
            colour = state_colours(cell, form, self.image)
            kept.sort(key=lambda s: colour.get(s.name, 0))
        kept.sort(key=lambda s: s is not front)
        return kept, self.built[end]

    def names(self, output: Node) -> list[tuple[str, Node]]:
        pairs = [(name, self.built[self.image[node]]) for name, node in self.cell.names]
        return [(name, node) for name, node in pairs if not node.is_leaf or node is output]

    # -- nodes as they are written

    def _kept(self, node: Node) -> Node:
        """The node over what its arguments have become."""
        if node.op == MATMUL and self.form.op[self.form.args[self.image[node][1]][1]] == FILL:
            return node  # its operand has come to a number, which cannot stand right of @
        args = tuple([self.built[self.image[a]] for a in node.args])
        signs = SIGNS.get(node.op)
        if signs and (node.op == _NEGATE or _NEGATE in [a.op for a in args]):
            return self._signed(node, signs, args)
        return rebuilt(node, args)

    def _signed(self, node: Node, signs: tuple[int, ...], args: tuple[Node, ...]) -> Node:
        """A sum of one or two without a negation among its arguments: `a - b` for `a + -b`."""
        negated = [a.op == _NEGATE for a in args]
        signs = tuple([-s if n else s for s, n in zip(signs, negated, strict=True)])
        args = tuple([a.args[0] if n else a for a, n in zip(args, negated, strict=True)])
        if signs == (-1,) and args[0].op != _SUBTRACT:
            return rebuilt(node, args)
        if len(args) == 1:
            return args[0] if signs == (1,) else Node(_SUBTRACT, args[0].args[::-1])
        if signs == (-1, -1):
            k, t = self.image[node]
            return Node(_NEGATE, (self.built.setdefault((-k, t), Node(_ADD, args)),))
        if signs == (1, 1):
            return Node(_ADD, args)
        return Node(_SUBTRACT, args if signs == (1, -1) else args[::-1])

    # -- nodes that no one has written

    def _write(self, value: Value) -> None:
        """A node for the value and for what it is made of; iterative, lest a hostile cell be deeper
        than Python's stack."""
        pending = [value]
        while pending:
            missing = [part for part in self._parts(pending[-1]) if part not in self.built]
            if missing:
                pending += reversed(missing)
            else:
                last = pending.pop()
                if last not in self.built:
                    self.built[last] = self._made(last)

    def _turned(self, value: Value) -> bool:
        """Is it the negative of a difference, so that the difference can be turned round?"""
        k, t = value
        return k == -1 and self.form.op[t] == SUM and min(self.form.weights[t]) < 0

    def _parts(self, value: Value) -> list[Value]:
        """The values whose nodes the node of this one needs."""
        (k, t), form = value, self.form
        if k != 1 and t != ONE and not self._turned(value):
            return [(1.0, t)]
        pairs = list(zip(form.weights[t], form.args[t], strict=True))
        if form.op[t] == SUM:
            return [(abs(w), a) for w, a in pairs]
        return [(1.0, ONE), *((1.0, a) for _, a in pairs)] if form.op[t] == PRODUCT else pairs

    def _made(self, value: Value) -> Node:
        (k, t), form = value, self.form
        op, attr = form.op[t], form.attr[t]
        if t == ONE:
            return Node(CONST, (), k)
        if k != 1 and not self._turned(value):
            inside = self.built[1.0, t]
            if k == -1:
                return Node(_NEGATE, (inside,))
            return Node(_MULTIPLY, (Node(CONST, (), k), inside))
        if op == SUM:
            terms = [(k * w, a) for w, a in zip(form.weights[t], form.args[t], strict=True)]
            lead = next(i for i, (w, _) in enumerate(terms) if w > 0)
            terms.insert(0, terms.pop(lead))
            return self._chain([(_ADD if w > 0 else _SUBTRACT, (abs(w), a)) for w, a in terms])
        if op == PRODUCT:
            over: list[Value] = []
            under: list[Value] = []
            for e, a in zip(form.weights[t], form.args[t], strict=True):
                (over if e > 0 else under).extend([(1.0, a)] * abs(int(e)))
            steps = [(_MULTIPLY, v) for v in over or [(1.0, ONE)]] + [(_DIVIDE, v) for v in under]
            return self._chain(steps)
        return Node(op, tuple([self.built[part] for part in self._parts(value)]), attr)

    def _chain(self, steps: list[tuple[str, Value]]) -> Node:
        """The values one after the other, each joined to those before it by its op."""
        (_, value), *rest = steps
        for op, following in rest:
            pair = (value, following)
            value = self.form.value(op, pair)
            if value not in self.built:
                self.built[value] = Node(op, tuple([self.built[v] for v in pair]))
        return self.built[value]

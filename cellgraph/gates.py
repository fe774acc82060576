"""The gates of a cell: which values scale others, and what they see.

A *gate* is a function of the op table that scales something, itself or in an affine form such as
`1 - z` or `dt * z`. Of the factors of a product, these are gates:

- values within [0, 1] (sigmoid), where another factor is none of that kind;
- values that are never negative (exp), where another factor can be;
- values within [-1, 1] (tanh), where another factor is a state or a function of one alone.

Where all factors lie within [0, 1], those are gates that are gates elsewhere, else all of them.
Everything is read off the normal form, so that neither the order of factors nor the way in which a
sum is written counts. Which gates share one whole is a matter of `couplings.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Node
from cellgraph.normal import Form
from cellgraph.ops import INFIX, OPS
from cellgraph.printing import named, render
from cellgraph.rewrites import FILL, ONE, PRODUCT, SUM, Value

#: What a factor may be made of without becoming another one: coefficients.
COEFFICIENTS = frozenset([PARAM, CONST, FILL])
_SEVERAL = -1  # in the place of the one core of a term

_ADD, _SUBTRACT, _NEGATE = (INFIX[s].name for s in (("+", 2), ("-", 2), ("-", 1)))
_MULTIPLY, _DIVIDE = (INFIX[s].name for s in (("*", 2), ("/", 2)))
_NUMBER = Node(CONST, (), 1.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate.

    `name` is that of a line of the cell where there is one, else made up; `expression` is what it
    stands for, and `op` the function. `sees`: what the argument is made of (x, previous states `c`,
    next values `c'`), and how each gets there: by a "matrix", a "vector" of parameters (a peephole)
    or "direct". `reads`: the other gates among what it is made of, states whose next value is a
    gate included.
    """

    name: str
    op: str
    expression: str
    sees: Mapping[str, tuple[str, ...]]
    reads: tuple[str, ...]


@cache
def _range(op: str) -> tuple[bool, bool]:
    """Are all values of a function within [-1, 1]; are they never negative? By its values at
    numbers of every size, and by the op table."""
    from cellgraph.numeric import number  # numpy takes longer to load than all of this package

    row = OPS.get(op)
    if row is None or row.arity != 1:
        return False, False
    sizes = [sign * 10.0**k for k in range(-2, 7) for sign in (1, -1)]
    return all(abs(number(op, size)) <= 1 for size in sizes), row.nonnegative


class Reading:
    """The normal form of a cell with its gates, and the way back from values to text.

    `core[t]`: the one term that t is an affine form of, with coefficients that depend on nothing;
    None for a coefficient, `_SEVERAL` where there are more. `next`: the term of every state's next
    value; `following`: whose next value a term is, the first state's if it is that of several.
    `gates`: the terms that are gates, with their names, in the order of lines.
    """

    def __init__(self, cell: CellGraph, form: Form, image: Mapping[Node, Value]) -> None:
        self.cell, self.form, self.image = cell, form, image
        self.next = {s.name: image[s.next][1] for s in cell.states}
        self.following = {t: name for name, t in reversed(self.next.items())}
        self.lines = {node: name for name, node in named(cell)}
        self.written: dict[Value, Node] = {}  # the node of a value, one with a line if possible
        for node in [*self.lines, *cell.nodes]:
            self.written.setdefault(image[node], node)
        self._nodes = {(1.0, ONE): _NUMBER, **self.written}  # and those that `node` has made
        self.live = sorted({image[node][1] for node in cell.nodes})
        self.core = self._cores()
        self.gates = self._named(self._gates())

    # -- terms

    def _cores(self) -> list[int | None]:
        form, core = self.form, list[int | None]()
        for t, op in enumerate(form.op):
            below = [core[a] for a in form.args[t]]
            found = {a for a in below if a is not None}
            powers = zip(form.weights[t], below, strict=True)
            if op in COEFFICIENTS or (op in (SUM, PRODUCT) and not found):
                core.append(None)
            elif op == PRODUCT and any(e != 1 and a is not None for e, a in powers):
                core.append(t)  # of a quotient or a power
            elif op in (SUM, PRODUCT):
                several = len(found) > 1 or (op == PRODUCT and len(below) - below.count(None) > 1)
                core.append(_SEVERAL if several else found.pop())
            else:
                core.append(t)
        return core

    def node(self, value: Value) -> Node:
        """A node of that value: one of the cell where it has one."""
        for t in below(self.form.args, [value[1]]):  # arguments first
            if (1.0, t) not in self._nodes:
                self._nodes[1.0, t] = self._made(t)
        return self._scaled(value)

    def _scaled(self, value: Value) -> Node:
        """A node of a value whose term has one."""
        k, t = value
        found = self._nodes.get(value)
        if found is not None:
            return found
        if t == ONE:
            return Node(CONST, (), k)
        term = self._nodes[1.0, t]
        return Node(_NEGATE, (term,)) if k == -1 else Node(_MULTIPLY, (Node(CONST, (), k), term))

    def _made(self, t: int) -> Node:
        """A node for a term whose arguments have theirs."""
        op = self.form.op[t]
        pairs = list(zip(self.form.weights[t], self.form.args[t], strict=True))
        if op == PRODUCT:
            powers = [(e, self._nodes[1.0, a]) for e, a in pairs for _ in range(abs(int(e)))]
            return _chain(powers, _MULTIPLY, _DIVIDE, _NUMBER)
        if op == SUM:
            return _chain([(w, self._scaled((abs(w), a))) for w, a in pairs], _ADD, _SUBTRACT, None)
        parts = tuple(map(self._scaled, pairs))
        return parts[0] if op == FILL else Node(op, parts, self.form.attr[t])

    def line(self, t: int) -> str:
        """The name of the first line that is a term, a factor aside; "" where there is none."""
        return next((name for node, name in self.lines.items() if self.image[node][1] == t), "")

    # -- which are gates

    def _products(self) -> Iterator[list[int]]:
        """The factors of every product that depend on something, each as its core if it has one."""
        for t in self.live:
            if self.form.op[t] == PRODUCT:
                pairs = zip(self.form.weights[t], self.form.args[t], strict=True)
                cores = [(a, self.core[a]) for e, a in pairs if e > 0]
                factors = [a if c == _SEVERAL else c for a, c in cores if c is not None]
                if len(factors) > 1:
                    yield factors

    def _gates(self) -> list[int]:
        gates: dict[int, None] = {}
        unclear: list[list[int]] = []
        for factors in self._products():
            kinds = {t: _range(self.form.op[t]) for t in factors}
            units = [t for t in factors if kinds[t] == (True, True)]
            others = [t for t in factors if t not in units]
            if not others:
                unclear.append(factors)
                continue
            signed = any(not kinds[t][1] for t in others)
            carried = any(map(self._of_a_state, others))
            for t in others:
                bounded, nonnegative = kinds[t]
                if (nonnegative and signed) or (bounded and carried and not self._of_a_state(t)):
                    units.append(t)
            gates |= dict.fromkeys(units)
        for factors in unclear:
            if not any(t in gates for t in factors):
                gates |= dict.fromkeys(factors)
        return list(gates)

    def _of_a_state(self, t: int) -> bool:
        """Is it a state, previous or next, or a function of one alone?"""
        inside = self.form.args[t] if self.form.op[t] in OPS else ()
        return any(
            self.form.op[a] == STATE or a in self.following
            for a in (t, *(inside if len(inside) == 1 else ()))
        )

    def _named(self, gates: list[int]) -> dict[int, str]:
        """The name of the first line that is the gate, or else an affine form of it (`f = 1 - i`);
        without any, a name that is free."""
        place: dict[int, tuple[int, str]] = {}
        values = [(self.image[node], name) for node, name in self.lines.items()]
        for i, ((k, t), name) in enumerate(values):
            if k == 1:
                place.setdefault(t, (i, name))
        for i, ((_, t), name) in enumerate(values):
            core = self.core[t]
            if core is not None and core != t:
                place.setdefault(core, (i, name))
        taken = {*self.lines.values(), *(p.name for p in self.cell.params)}
        taken |= {state.name for state in self.cell.states}
        fresh = (name for name in (f"gate{i}" for i in count(1)) if name not in taken)
        order = sorted(gates, key=lambda t: (place[t][0] if t in place else len(values), t))
        return {t: place[t][1] if t in place else next(fresh) for t in order}

    # -- what they see

    def described(self) -> tuple[Gate, ...]:
        """All gates."""
        return tuple(self._described(t) for t in self.gates)

    def _described(self, gate: int) -> Gate:
        sees: dict[str, set[str]] = {}
        reads: dict[str, None] = {}
        pending = [(a, "direct") for a in self.form.args[gate]]
        seen = set(pending)
        while pending:
            t, way = pending.pop()
            op, state = self.form.op[t], self.following.get(t)
            name = str(self.form.attr[t]) if op in (STATE, INPUT) else f"{state}'" if state else ""
            if name:
                sees.setdefault(name, set()).add(way)
                if op == STATE and self._is_gate(name):
                    reads[name] = None
            if t in self.gates:
                reads[self.gates[t]] = None
            elif not name:
                new = {(a, self._way(t, way)) for a in self.form.args[t]} - seen
                seen |= new
                pending += sorted(new)
        node = next((n for n, name in self.lines.items() if name == self.gates[gate]), None)
        node = node or next(n for n in self.cell.nodes if self.core[self.image[n][1]] == gate)
        order = ["x", *(n for s in self.cell.states for n in (s.name, f"{s.name}'"))]
        return Gate(
            name=self.gates[gate],
            op=self.form.op[gate],
            expression=render(node, self.lines, top=True),
            sees={name: tuple(sorted(sees[name])) for name in order if name in sees},
            reads=tuple(sorted(reads)),
        )

    def _way(self, t: int, way: str) -> str:
        """How the arguments of a term get to where the term gets in some way."""
        if way == "matrix" or self.form.op[t] == MATMUL:
            return "matrix"
        scaled = self.form.op[t] == PRODUCT and any(
            self.form.op[a] == PARAM and self.form.attr[a] not in self.form.scalars
            for a in self.form.args[t]
        )
        return "vector" if scaled else way

    def _is_gate(self, state: str) -> bool:
        """Is the next value of a state a gate, or an affine form of one?"""
        return self.core[self.next[state]] in self.gates


def below(args: Sequence[Sequence[int]], roots: Iterable[int]) -> list[int]:
    """The terms that some terms are made of, those included, ascending: arguments first."""
    seen, pending = set(roots), list(roots)
    while pending:
        for a in args[pending.pop()]:
            if a not in seen:
                seen.add(a)
                pending.append(a)
    return sorted(seen)


def _chain(parts: list[tuple[float, Node]], plus: str, minus: str, empty: Node | None) -> Node:
    """Nodes one after the other, those of positive weight first. `empty`: what stands in front
    where there is none of them; None for a negation of the first one."""
    parts = sorted(parts, key=lambda part: part[0] < 0)
    (weight, total), *rest = parts
    if weight < 0:
        total = Node(_NEGATE, (total,)) if empty is None else Node(minus, (empty, total))
    for weight, node in rest:
        total = Node(plus if weight > 0 else minus, (total, node))
    return total

"""The normal form of a cell: its values as hash-consed terms, built bottom-up by the rules of
`rules.py`. The digest of it is `canonical.py`, the way back to a cell `simplify.py`.

A term is a leaf, a sum with coefficients, a product with exponents, or an op over values; sums and
products have any number of arguments. A value is a pair (k, term), so that a factor or a sign never
hides a term that is known. Arguments are normal when a term is made of them, so one pass from the
leaves up reaches the fixed point.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter

from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Node
from cellgraph.ops import OPS
from cellgraph.rewrites import FILL, ONE, PRODUCT, SUM, Value, View
from cellgraph.rules import FUNCTIONS, MATRICES, PRODUCTS, SUMS, Rule

SIGNS = {name: op.signs for name, op in OPS.items()}
_POWERS = {name: op.powers for name, op in OPS.items()}
_NONNEGATIVE = frozenset(name for name, op in OPS.items() if op.nonnegative)
_RULES: dict[str, tuple[Rule, ...]] = {
    name: tuple(rule for rule in FUNCTIONS if rule.fits(op)) for name, op in OPS.items()
} | {MATMUL: MATRICES}
COMMUTES = frozenset([SUM, PRODUCT, *(name for name, op in OPS.items() if op.commutes)])
_LEAVES = frozenset([INPUT, STATE, PARAM, CONST])
_BY_TERM = itemgetter(1, 0)

ON_X, ON_STATE, VECTOR = 1, 2, 4  # what a term depends on, and whether it is one
REACH = {INPUT: ON_X, STATE: ON_STATE}

MASK = (1 << 64) - 1
FACTOR = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd


def mix(a: int, b: int) -> int:
    """Two numbers of 64 bits as one; the same on every machine and Python, unlike `hash`."""
    a = ((a ^ b) * FACTOR + b) & MASK
    return a ^ (a >> 29)


@lru_cache(maxsize=4096)
def code(label: str | float) -> int:
    """64 bits for a word or a number."""
    data = label.encode() if isinstance(label, str) else struct.pack(">d", label)
    return zlib.crc32(data) << 32 | zlib.adler32(data)


class Form:
    """Terms, numbered so that arguments come before what is made of them; term 0 is the number 1.

    `op[t]`, `args[t]`, `weights[t]` and `attr[t]` describe term t; `shape[t]` is a digest of what
    it looks like without names, `reach[t]` what it depends on, `nonnegative[t]` whether it is known
    to be at least zero. `fired` counts the rules that applied.
    """

    def __init__(self, scalars: frozenset[str] = frozenset()) -> None:
        self.op: list[str] = []
        self.args: list[tuple[int, ...]] = []
        self.weights: list[tuple[float, ...]] = []
        self.attr: list[str | float | None] = []
        self.shape: list[int] = []
        self.reach: list[int] = []
        self.nonnegative: list[bool] = []
        self.fired: Counter[str] = Counter()
        self.rewritten = 0  # how often a rule has applied whose right side is the better cell
        self.scalars = scalars
        self.colour: dict[int, int] = {}  # of the live terms, once `canonical.py` needs them
        self._known: dict[tuple[object, ...], int] = {}
        self.constant(1.0)

    @classmethod
    def of(cls, cell: CellGraph) -> Form:
        """An empty form for the nodes of a cell."""
        return cls(frozenset(cell.scalars))

    # -- terms

    def leaf(self, op: str, attr: str | float) -> int:
        found = self._known.get((op, attr))
        if found is None:
            found = self._known[op, attr] = len(self.op)
            self.op.append(op)
            self.args.append(())
            self.weights.append(())
            self.attr.append(attr)
            # Names are no part of the look; the number 1 sorts first.
            look = 0 if found == ONE else code(attr) if op == CONST else code(op)
            self.shape.append(look)
            vector = op != CONST and attr not in self.scalars
            self.reach.append(REACH.get(op, 0) | (VECTOR if vector else 0))
            self.nonnegative.append(op == CONST and float(attr) >= 0)
        return found

    def constant(self, number: float) -> int:
        return self.leaf(CONST, number)

    def number(self, t: int) -> float:
        """The value of a term that is a number."""
        return float(self.attr[t])  # type: ignore[arg-type]

    def term(self, op: str, args: Iterable[tuple[float, int]]) -> int:
        """The term of an op over (weight, term) pairs."""
        commutes = op in COMMUTES
        pairs = sorted(args, key=_BY_TERM) if commutes else list(args)
        key = (op, *pairs)
        found = self._known.get(key)
        if found is not None:
            return found
        found = self._known[key] = len(self.op)
        shape, reach = self.shape, VECTOR if op == FILL else 0
        look = start = code(op)
        for weight, t in pairs:
            port = code(weight)
            part = ((shape[t] ^ port) * FACTOR + port) & MASK  # `mix`, written out: it is hot
            part ^= part >> 29
            if commutes:
                part = ((start ^ part) * FACTOR + part) & MASK
                look = (look + (part ^ (part >> 29))) & MASK
            else:
                part = ((look ^ part) * FACTOR + part) & MASK
                look = part ^ (part >> 29)
            reach |= self.reach[t]
        self.op.append(op)
        self.args.append(tuple([t for _, t in pairs]))
        self.weights.append(tuple([w for w, _ in pairs]))
        self.attr.append(None)
        shape.append(look)
        self.reach.append(reach)
        self.nonnegative.append(self._never_negative(op, pairs))
        return found

    def _never_negative(self, op: str, pairs: Sequence[tuple[float, int]]) -> bool:
        if op == SUM:
            return all(w > 0 and self.nonnegative[t] for w, t in pairs)
        if op == PRODUCT:
            return all(w % 2 == 0 or self.nonnegative[t] for w, t in pairs)
        return op in _NONNEGATIVE

    # -- values

    def _applied(self, rules: tuple[Rule, ...], view: View) -> View:
        for rule in rules:
            changed = rule.apply(self, view)
            if changed is not None:
                view = changed
                self._count(rule)
        return view

    def _count(self, rule: Rule) -> None:
        self.fired[rule.name] += 1
        self.rewritten += rule.rewrites

    def sum(self, values: Iterable[Value]) -> Value:
        """The sum of some values."""
        k, terms = self._applied(SUMS, (1.0, list(values)))
        if len(terms) == 1:
            coefficient, t = terms[0]
            return k * coefficient, t
        return (k, self.term(SUM, terms)) if terms else (0.0, ONE)

    def product(self, powers: Iterable[tuple[float, int]]) -> Value:
        """The product of some (exponent, term)."""
        k, factors = self._applied(PRODUCTS, (1.0, list(powers)))
        if not factors:
            return k, ONE
        if len(factors) == 1 and factors[0][0] == 1:
            return k, factors[0][1]
        return k, self.term(PRODUCT, factors)

    def call(self, op: str, values: tuple[Value, ...]) -> Value:
        """A function of the op table, or the matrix product."""
        for rule in _RULES[op]:
            found: Value | None = rule.apply(self, op, values)
            if found is not None:
                self._count(rule)
                return found
        return 1.0, self.term(op, values)

    def value(self, op: str, values: tuple[Value, ...]) -> Value:
        """Any op of the graph over values."""
        signs, powers = SIGNS.get(op), _POWERS.get(op)
        if signs:
            return self.sum([(s * k, t) for s, (k, t) in zip(signs, values, strict=True)])
        if powers:
            factors: list[tuple[float, int]] = []
            for power, (k, t) in zip(powers, values, strict=True):
                if k != 1:
                    factors.append((float(power), self.constant(k)))
                if t != ONE or k == 1:
                    factors.append((float(power), t))
            return self.product(factors)
        if op == MATMUL and not self.reach[values[1][1]] & VECTOR and values[1][0] != 0:
            # An operand that has come to a number is still a vector: that number everywhere.
            return 1.0, self.term(op, (values[0], (1.0, self.term(FILL, values[1:]))))
        return self.call(op, values)

    def read(self, node: Node, image: Mapping[Node, Value]) -> Value:
        """The value of a node of a graph, given those of its arguments."""
        if node.op == CONST:
            return float(node.attr), ONE  # type: ignore[arg-type]
        if node.op in _LEAVES:
            return 1.0, self.leaf(node.op, str(node.attr))
        return self.value(node.op, tuple([image[a] for a in node.args]))

    def values(self, cell: CellGraph) -> dict[Node, Value]:
        """The values of all nodes of a cell."""
        image: dict[Node, Value] = {}
        for node in cell.nodes:
            image[node] = self.read(node, image)
        return image

    def alive(self, output: int, nexts: Mapping[str, Value]) -> list[int]:
        """The terms that the output reaches, also through next values of states, ascending."""
        seen = {output}
        pending = [output]
        while pending:
            t = pending.pop()
            below = self.args[t]
            if self.op[t] == STATE:
                below = (nexts[str(self.attr[t])][1],)
            for a in below:
                if a not in seen:
                    seen.add(a)
                    pending.append(a)
        return sorted(seen)

    def live(self, output: int, nexts: Mapping[str, Value]) -> frozenset[str]:
        """The states among these terms, by name; for membership only."""
        alive = self.alive(output, nexts)
        return frozenset([str(self.attr[t]) for t in alive if self.op[t] == STATE])


def form_of(cell: CellGraph) -> tuple[Form, dict[Node, Value]]:
    """The normal form of a cell, and the value of every node of it."""
    form = Form.of(cell)
    return form, form.values(cell)


def leave_form(cell: CellGraph, form: Form, image: dict[Node, Value]) -> None:
    """Let `simplify` have the normal form of a cell that is on its way there."""
    cell.__dict__["_form"] = form, image


def take_form(cell: CellGraph) -> tuple[Form, dict[Node, Value]]:
    """The normal form of a cell; one that was left is given away, lest it live as long as the
    cell."""
    left: tuple[Form, dict[Node, Value]] | None = cell.__dict__.pop("_form", None)
    return left or form_of(cell)

"""Recurrences that need no loop: states whose update is linear and elementwise in themselves.

A state with s' = a * s + b, where a and b need nothing that is still unknown, can be computed for
all time steps at once by a scan (Blelloch 1990; for recurrent networks Martin and Cundy 2018, arXiv
1709.04057). What needs only x is known from the beginning; when the values of a state are known at
every step, what reads that state is known as well, and may be part of the next recurrence. A cell
is solved when all its states are, one after the other. This module holds no tensors and imports no
torch; the backend is `scan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellgraph.graph import CONST, STATE, CellGraph, Node
from cellgraph.ops import INFIX, OPS

_ONE = Node(CONST, (), 1.0)


@dataclass(frozen=True, slots=True)
class Recurrence:
    """`state` becomes factor * state + term; a factor of None: the state does not see itself, a
    term of None: nothing is added.

    Both are nodes over x, parameters and the states that are solved before this one.
    """

    state: str
    factor: Node | None
    term: Node | None


def solve(cell: CellGraph) -> tuple[Recurrence, ...] | None:
    """The recurrences of all states in an order in which each can be solved; None when there is no
    such order, that is when a state is not linear in itself, passes through a matrix, or goes
    around through another state."""
    known: set[str] = set()
    found: list[Recurrence] = []
    while len(found) < len(cell.states):
        before = len(found)
        for state in cell.states:
            if state.name not in known and (part := _Affine(cell, state.name, known).parts()):
                factor, term = part
                found.append(Recurrence(state.name, factor, term))
                known.add(state.name)
        if len(found) == before:
            return None
    return tuple(found)


Part = tuple[Node | None, Node | None]  # factor and term; None for zero


class _Affine:
    """Every node that the next value of a state needs, as factor * state + term."""

    def __init__(self, cell: CellGraph, state: str, known: set[str]) -> None:
        self.cell, self.state, self.known = cell, state, known
        self.root = next(s.next for s in cell.states if s.name == state)

    def parts(self) -> Part | None:
        """Those of the state's next value; None when it has none."""
        found: dict[Node, Part | None] = {}
        for node in self.cell.nodes:
            found[node] = self._part(node, [found[a] for a in node.args])
            if node is self.root:
                break
        return found[self.root]

    def _part(self, node: Node, args: list[Part | None]) -> Part | None:
        if node.op == STATE:
            if node.attr == self.state:
                return _ONE, None
            return (None, node) if node.attr in self.known else None
        if node.is_leaf:
            return None, node
        parts = [part for part in args if part is not None]
        if len(parts) < len(args):
            return None
        if all(factor is None for factor, _ in parts):
            return None, node
        op = OPS.get(node.op)  # None: a matrix mixes the units
        if op is None:
            return None
        if op.signs is not None:
            return _sum(op.signs, parts)
        if op.powers is not None:
            return _product(op.powers, node, parts)
        return None


def _sum(signs: tuple[int, ...], parts: list[Part]) -> Part:
    factor = term = None
    for sign, (f, t) in zip(signs, parts, strict=True):
        factor, term = _plus(factor, f, sign), _plus(term, t, sign)
    return factor, term


def _product(powers: tuple[int, ...], node: Node, parts: list[Part]) -> Part | None:
    """A product, or a quotient, of which one side has the state in it."""
    inside = [index for index, (factor, _) in enumerate(parts) if factor is not None]
    index = inside[0]
    if len(inside) > 1 or powers[index] != 1:
        return None
    other = node.args[1 - index]  # free of the state, so that it stands for itself

    def scaled(part: Node | None) -> Node | None:
        if part is None:
            return None
        if part is _ONE and powers[1 - index] == 1:
            return other
        return Node(node.op, (part, other) if index == 0 else (other, part))

    factor, term = parts[index]
    return scaled(factor), scaled(term)


def _plus(total: Node | None, part: Node | None, sign: int) -> Node | None:
    if part is None:
        return total
    if total is None:
        return part if sign > 0 else Node(INFIX["-", 1].name, (part,))
    return Node(INFIX["+" if sign > 0 else "-", 2].name, (total, part))

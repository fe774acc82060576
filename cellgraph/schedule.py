"""Lowering: a cell as a short program for a whole sequence, with everything that needs no state
hoisted out of the loop.

Three facts make a cell fast. What depends only on x and parameters can be computed for all T·B rows
at once. A sum such as `W @ x + U @ h + b` can be reordered so that its part without state is one
hoisted value. And all matrices that multiply the same operand can be stacked into one product, to
which the hoisted parts are added as they are. This module derives that program; it holds no tensors
and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Node,
    depends_on,
    rebuilt,
    topological,
    use_counts,
)
from cellgraph.ops import INFIX, OPS


@dataclass(frozen=True, slots=True)
class Pointwise:
    """`out` = op(args), elementwise; args and out are slots."""

    op: str
    args: tuple[int, ...]
    out: int


@dataclass(frozen=True, slots=True)
class Product:
    """One stacked product: outs[i] = matrices[i] @ operand (+ bases[i], one for every matrix or
    none at all)."""

    matrices: tuple[str, ...]
    operand: int
    outs: tuple[int, ...]
    bases: tuple[int, ...]


Instruction = Pointwise | Product


@dataclass(frozen=True, slots=True)
class Schedule:
    """The program of a cell over numbered slots.

    Before the loop the leaves are loaded and `before` runs on all steps at once; `step` runs once a
    time step and may read everything. Bases of products have a time axis.
    """

    size: int
    inputs: tuple[int, ...]  # slots of x
    states: tuple[
        tuple[str, int], ...
    ]  # (state, slot of its previous value), for states that are read
    params: tuple[tuple[str, int], ...]  # vectors and scalars
    consts: tuple[tuple[float, int], ...]
    before: tuple[Instruction, ...]
    step: tuple[Instruction, ...]
    carried: tuple[
        int, ...
    ]  # with a time axis, computed before the loop, read inside it or as a next state
    nexts: tuple[tuple[str, int], ...]  # (state, slot of its next value), every state in order
    fixed: tuple[
        int, ...
    ]  # next states that neither x nor a state reaches: (width,), no batch axis
    output: int
    output_before: bool  # the output needs no state: its slot holds all steps already
    names: tuple[tuple[str, int], ...]  # names of the text, for those who print programs


def lower(cell: CellGraph) -> Schedule:
    """The schedule of a cell."""
    return _Lowering(cell, sums_hoisted(cell)).schedule()


def sums_hoisted(cell: CellGraph) -> dict[Node, Node]:
    """Every node of the cell with its signed sums reordered: the terms without state first, as one
    subtree.

    The only step that changes rounding; values agree with the interpreter to a few units in the
    last place.
    """
    counts = use_counts(cell.roots)
    dynamic = depends_on(cell.roots, lambda leaf: leaf.op == STATE)
    inner = {  # sums that only another sum reads: they dissolve into it
        arg
        for node in cell.nodes
        if signs(node)
        for arg in node.args
        if signs(arg) and counts[arg] == 1
    }

    def reorder(node: Node, args: tuple[Node, ...]) -> Node:
        if not signs(node) or node in inner or not dynamic[node]:
            return rebuilt(node, args)
        terms = signed_terms(node, inner)
        still = [(s, t) for s, t in terms if not dynamic[t]]
        if not any(t.op != CONST for _, t in still):
            return rebuilt(node, args)  # `1 - z` is best left alone
        moving = [(s, image[t]) for s, t in terms if dynamic[t]]
        return folded([(1, folded(still)), *moving])

    image: dict[Node, Node] = {}
    for node in cell.nodes:
        image[node] = reorder(node, tuple(image[a] for a in node.args))
    return image


def signs(node: Node) -> tuple[int, ...] | None:
    """The coefficients of a node that is a signed sum; None for any other."""
    return OPS[node.op].signs if node.op in OPS else None


def signed_terms(root: Node, inner: set[Node]) -> list[tuple[int, Node]]:
    """The signed terms of a sum, left to right, through the sums in `inner`."""
    terms: list[tuple[int, Node]] = []
    stack = [(1, root)]
    while stack:
        sign, node = stack.pop()
        own = signs(node)
        if own and (node is root or node in inner):
            stack.extend((sign * s, a) for s, a in reversed(list(zip(own, node.args, strict=True))))
        else:
            terms.append((sign, node))
    return terms


def folded(terms: list[tuple[int, Node]]) -> Node:
    """The signed sum of the terms, from left to right."""
    sign, total = terms[0]
    if sign < 0:
        total = Node(INFIX["-", 1].name, (total,))
    for sign, term in terms[1:]:
        total = Node(INFIX["+" if sign > 0 else "-", 2].name, (total, term))
    return total


class _Lowering:
    """Slots, hoisting and grouping for the nodes of a cell under their images."""

    def __init__(self, cell: CellGraph, image: dict[Node, Node]) -> None:
        self.cell, self.image = cell, image
        self.roots = roots = tuple(image[root] for root in cell.roots)
        self.nodes = topological(roots)
        self.slot = {node: i for i, node in enumerate(self.nodes)}
        self.counts = use_counts(roots)
        self.dynamic = depends_on(roots, lambda leaf: leaf.op == STATE)
        self.on_x = depends_on(roots, lambda leaf: leaf.op == INPUT)

    def _fused(self) -> dict[Node, Node]:
        """Product -> the sum `base + product` that can be had with it, base being known before the
        loop."""
        fused: dict[Node, Node] = {}
        add = INFIX["+", 2].name
        for node in self.nodes:
            if node.op == add and self.dynamic[node]:
                base, product = node.args
                # What has x in it is a vector with a time axis; a bare bias is not, and is added as
                # it is.
                hoisted = self.on_x[base] and not self.dynamic[base]
                if product.op == MATMUL and self.counts[product] == 1 and hoisted:
                    fused[product] = node
        return fused

    def _program(self, nodes: list[Node], fused: dict[Node, Node]) -> tuple[Instruction, ...]:
        """Instructions for these nodes in an order that lets products of one operand run as one."""
        groups: dict[tuple[Node, bool], list[Node]] = {}
        for node in nodes:
            if node.op == MATMUL:
                groups.setdefault((node.args[1], node in fused), []).append(node)
        sums = {fused[m]: m for m in nodes if m in fused}
        instructions: list[Instruction] = []
        done: set[Node] = set()
        for node in nodes:
            product = sums.get(node, node)
            if node in fused or node in done:  # a fused product appears where its sum stands
                continue
            if product.op != MATMUL:
                instructions.append(
                    Pointwise(node.op, tuple(self.slot[a] for a in node.args), self.slot[node])
                )
                continue
            members = groups[product.args[1], product in fused]
            outs = [fused.get(m, m) for m in members]
            done.update(outs)
            instructions.append(
                Product(
                    matrices=tuple(str(m.args[0].attr) for m in members),
                    operand=self.slot[product.args[1]],
                    outs=tuple(self.slot[o] for o in outs),
                    bases=tuple(self.slot[fused[m].args[0]] for m in members if m in fused),
                )
            )
        return tuple(instructions)

    def schedule(self) -> Schedule:
        matrices = {n.args[0] for n in self.nodes if n.op == MATMUL}
        inner = [n for n in self.nodes if not n.is_leaf]
        fused = self._fused()
        before = self._program([n for n in inner if not self.dynamic[n]], {})
        step = self._program([n for n in inner if self.dynamic[n]], fused)
        *nexts, output = self.roots
        read = {a for i in step if isinstance(i, Pointwise) for a in i.args}
        read |= {i.operand for i in step if isinstance(i, Product)}
        read |= {self.slot[n] for n in nexts}
        if self.dynamic[output]:
            read.add(self.slot[output])
        return Schedule(
            size=len(self.nodes),
            inputs=tuple(self.slot[n] for n in self.nodes if n.op == INPUT),
            states=tuple((str(n.attr), self.slot[n]) for n in self.nodes if n.op == STATE),
            params=tuple(
                (str(n.attr), self.slot[n])
                for n in self.nodes
                if n.op == PARAM and n not in matrices
            ),
            consts=tuple((float(n.attr), self.slot[n]) for n in self.nodes if n.op == CONST),  # type: ignore[arg-type]
            before=before,
            step=step,
            carried=tuple(
                self.slot[n]
                for n in self.nodes
                if self.on_x[n] and not self.dynamic[n] and self.slot[n] in read
            ),
            nexts=tuple(
                (s.name, self.slot[n]) for s, n in zip(self.cell.states, nexts, strict=True)
            ),
            fixed=tuple(self.slot[n] for n in nexts if not (self.dynamic[n] or self.on_x[n])),
            output=self.slot[output],
            output_before=not self.dynamic[output],
            names=tuple(
                (name, self.slot[self.image[n]])
                for name, n in self.cell.names
                if self.image[n] in self.slot
            ),
        )

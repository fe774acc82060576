"""The adjoint of one time step: reverse mode on the graph itself, from the derivative column.

The gradient is a graph of the same nodes as the cell. Its further leaves are the gradients that
come in: of the output, of every next state, and of what a matrix multiplied (a product with the
transposed matrix, which whoever runs the graph has to provide). This module holds no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from cellgraph.graph import CONST, INPUT, PARAM, STATE, Node, substitute
from cellgraph.notation import parse
from cellgraph.ops import INFIX, OPS
from cellgraph.stages import Core, is_block, is_inner

ZERO = Node(CONST, (), 0.0)


@dataclass(frozen=True)
class Adjoint:
    """Gradients as nodes over the nodes of the core and the leaves named below.

    `static` has one entry per static value and per width at which it enters (a scalar may enter at
    several).
    """

    blocks: dict[Node, Node]  # leaf of a block -> gradient of its sum
    states: dict[Node, Node]  # state -> the part of its gradient that is not a product's
    rows: dict[Node, Node]  # row input -> the same
    static: dict[tuple[Node, str], Node]
    operand: dict[Node, Node]  # inner operand -> the leaf that stands for the products' gradient
    output: Node  # leaf: gradient of the output
    nexts: tuple[Node, ...]  # leaves: gradients of the next states
    needs: dict[Node, tuple[Node, ...]]  # leaf of an operand -> gradients of the blocks it takes
    width: dict[Node, str | None]  # of every node of the adjoint


def adjoint(core: Core) -> Adjoint:
    """Reverse mode over one time step of the core."""
    return _Reverse(core).adjoint()


@cache
def derivative(op: str, index: int) -> Node:
    """The derivative column as a node over the states a, b and y."""
    names = ["a", "b"][: OPS[op].arity]
    text = OPS[op].derivative[index]
    # A bare number is no vector; the sum with an empty product is taken off again.
    lines = [f"d = ({text}) + 0 * y", "y' = y", *(f"{n}' = {n}" for n in names)]
    cell = parse(f"cell derivative(x, {', '.join(names)}, y) -> d\n" + "\n".join(lines))
    return cell.outputs[0].args[0]


class _Reverse:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.parts: dict[Node, list[tuple[int, Node]]] = {}
        self.static: dict[tuple[Node, str], list[tuple[int, Node]]] = {}
        self.width: dict[Node, str | None] = dict(core.width)
        self.level: dict[Node, int] = {}

    def leaf(self, label: str, width: str | None) -> Node:
        node = Node(INPUT, (), label)
        self.width[node] = width
        return node

    def adjoint(self) -> Adjoint:
        core = self.core
        output = self.leaf("@dy", core.width[core.output])
        nexts = tuple(self.leaf(f"@d{s.name}'", s.width) for s in core.cell.states)
        self.add(core.output, 1, output)
        for node, gradient in zip(core.nexts, nexts, strict=True):
            self.add(node, 1, gradient)
        blocks: dict[Node, Node] = {}
        operand: dict[Node, Node] = {}
        needs: dict[Node, tuple[Node, ...]] = {}
        users: dict[Node, list[Node]] = {}
        for block in core.blocks:
            for term in block.terms:
                users.setdefault(term.operand, []).append(block.leaf)
        for node in reversed(core.order):
            if node in users and is_inner(node, core):
                label = f"@p{len(operand)}"
                operand[node] = self.leaf(label, core.width[node])
                needs[operand[node]] = tuple(blocks[b] for b in users[node])
                self.level[operand[node]] = 1 + max(self.of(d) for d in needs[operand[node]])
                self.add(node, 1, operand[node])
            if is_block(node):
                blocks[node] = self.total(node)
            elif not node.is_leaf:
                self.spread(node)
        return Adjoint(
            blocks=blocks,
            states={n: self.total(n) for n in core.order if n.op == STATE and n in self.parts},
            rows={n: self.total(n) for n in core.rows if n in self.parts},
            static={place: self.fold(parts) for place, parts in self.static.items()},
            operand=operand,
            output=output,
            nexts=nexts,
            needs=needs,
            width=self.width,
        )

    def spread(self, node: Node) -> None:
        """Hand the gradient of a pointwise node to its arguments."""
        if node not in self.parts:
            return
        above, op = self.total(node), OPS[node.op]
        for index, arg in enumerate(node.args):
            text = op.derivative[index]
            if arg.op == CONST or text == "0":
                continue
            if text in ("1", "-1"):
                self.add(arg, int(text), above, self.core.width[node])
                continue
            given = dict(zip("ab", node.args, strict=False)) | {"y": node}
            factor = self.applied(derivative(op.name, index), given)
            product = self.put(Node(INFIX["*", 2].name, (above, factor)))
            self.add(arg, 1, product, self.core.width[node])

    def applied(self, column: Node, given: dict[str, Node]) -> Node:
        """A derivative column over actual arguments."""

        def put(old: Node, args: tuple[Node, ...]) -> Node:
            if old.op == STATE:
                return given[str(old.attr)]
            return old if old.is_leaf else self.put(Node(old.op, args, old.attr))

        return substitute([column], put)[column]

    def add(self, node: Node, sign: int, gradient: Node, width: str | None = None) -> None:
        if node.op == PARAM:
            place = (node, width or str(self.core.width[node]))
            self.static.setdefault(place, []).append((sign, gradient))
        elif node.op != CONST:
            self.parts.setdefault(node, []).append((sign, gradient))

    def total(self, node: Node) -> Node:
        return self.fold(self.parts[node]) if node in self.parts else ZERO

    def fold(self, parts: list[tuple[int, Node]]) -> Node:
        """The signed sum; what is known early is added first, so that one value waits."""
        ordered = sorted(parts, key=lambda part: (self.of(part[1]), -part[0]))
        sign, total = ordered[0]
        if sign < 0:
            total = self.put(Node(INFIX["-", 1].name, (total,)))
        for sign, part in ordered[1:]:
            total = self.put(Node(INFIX["+" if sign > 0 else "-", 2].name, (total, part)))
        return total

    def put(self, node: Node) -> Node:
        """Note the width of a new node."""
        if node not in self.width:
            self.width[node] = next(
                (w for a in node.args if (w := self.width.get(a)) is not None), None
            )
        return node

    def of(self, node: Node) -> int:
        """How many products have to come before it; 0 for everything of the forward pass."""
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [a for a in top.args if a not in self.level and a not in self.core.width]
            if top in self.level or not missing:
                if top not in self.level:
                    below = [0 if a in self.core.width else self.level[a] for a in top.args]
                    self.level[top] = 0 if top in self.core.width else max(below, default=0)
                stack.pop()
            else:
                stack.extend(missing)
        return self.level[node]

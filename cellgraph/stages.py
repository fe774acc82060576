"""Lowering for compiled backends: a cell as matrix products and pointwise work over few leaves.

Three moves turn a cell into its core. What needs neither x nor a state (`sigmoid(a)` of a
parameter) is a static value, computed once a sequence. What a matrix multiplies and needs only x
(`W @ tanh(x)`) is a row input like x itself, computed for all T·B rows at once. And the products
in a sum, `W @ x + U @ h + b`, become one block: columns of a buffer into which they accumulate,
those of row inputs for all rows before the loop, those of states and inner values step by step.
What remains is pointwise. This module holds no tensors and imports no torch; how to differentiate
is `adjoint.py`, what to store is `kernels/plan.py`.
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
)
from cellgraph.schedule import folded, signed_terms, signs
from cellgraph.widths import node_widths


@dataclass(frozen=True, slots=True)
class Term:
    """One product of a block: a matrix times a row input, a state or an inner value."""

    matrix: str
    operand: Node


@dataclass(frozen=True, slots=True)
class Block:
    """A sum of products; the core reads it through `leaf`."""

    leaf: Node
    width: str
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Core:
    """What a compiled backend runs.

    Leaves of its nodes: row inputs (x first, where it is read at all), states, blocks, static
    values, numbers. `prelude` maps the leaves that the cell itself does not have to the nodes of
    the cell that they stand for. `order` holds every node and leaf, each after what it needs; a
    block needs its operands.
    """

    cell: CellGraph
    order: tuple[Node, ...]
    width: dict[Node, str | None]  # of every node; None: a scalar
    blocks: tuple[Block, ...]
    rows: tuple[Node, ...]
    statics: tuple[Node, ...]
    prelude: dict[Node, Node]
    nexts: tuple[Node, ...]  # of every state of the cell, in order
    output: Node
    names: dict[Node, str]  # readable names, where the cell gives them

    @property
    def operands(self) -> tuple[Node, ...]:
        """Whatever a matrix multiplies, in order of first use."""
        return tuple(dict.fromkeys(t.operand for b in self.blocks for t in b.terms))

    def matrices(self) -> tuple[str, ...]:
        """The matrices that blocks read, in order of first use."""
        return tuple(dict.fromkeys(t.matrix for b in self.blocks for t in b.terms))


def core(cell: CellGraph) -> Core:
    """The core of a cell."""
    return _Cutter(cell).core()


class _Cutter:
    """Cuts a cell into leaves, blocks and pointwise nodes."""

    def __init__(self, cell: CellGraph) -> None:
        self.cell = cell
        roots = cell.roots
        self.dynamic = depends_on(roots, lambda leaf: leaf.op == STATE)
        self.on_x = depends_on(roots, lambda leaf: leaf.op == INPUT)
        self.widths = node_widths(cell)
        self.row_inputs: set[Node] = set()  # for membership only
        self.reached = self._reach()
        self.counts = self._use_counts()
        self.image: dict[Node, Node] = {}
        self.order: list[Node] = []
        self.width: dict[Node, str | None] = {}
        self.blocks: list[Block] = []
        self.prelude: dict[Node, Node] = {}

    def static(self, node: Node) -> bool:
        """Needs neither x nor a state, and is more than a number."""
        return node.op != CONST and not self.dynamic[node] and not self.on_x[node]

    def cut(self, node: Node) -> bool:
        """Is it a leaf of the core?"""
        return node.is_leaf or self.static(node) or node in self.row_inputs

    def _reach(self) -> list[Node]:
        """The nodes that the core reads, arguments first; marks the row inputs on the way."""
        wanted = dict.fromkeys(self.cell.roots)
        reached: list[Node] = []
        for node in reversed(self.cell.nodes):  # users come before what they use
            if node not in wanted:
                continue
            reached.append(node)
            if self.cut(node):
                continue
            args = node.args
            if node.op == MATMUL:
                operand = args[1]
                args = (operand,)
                if not self.dynamic[operand] and operand.op != INPUT:
                    self.row_inputs.add(operand)
            wanted |= dict.fromkeys(args)
        return reached[::-1]

    def _use_counts(self) -> dict[Node, int]:
        counts = dict.fromkeys(self.reached, 0)
        for node in self.reached:
            if not self.cut(node):
                for arg in node.args[1:] if node.op == MATMUL else node.args:
                    counts[arg] += 1
        for root in self.cell.roots:
            counts[root] += 1
        return counts

    def _sums(self) -> set[Node]:
        """Sums that only another sum reads: they dissolve into it."""
        return {
            arg
            for node in self.reached
            if not self.cut(node) and signs(node)
            for arg in node.args
            if not self.cut(arg) and signs(arg) and self.counts[arg] == 1
        }

    def core(self) -> Core:
        inner = self._sums()
        dissolved = set(inner)  # for membership only: sums and products that a block swallows
        fused: dict[Node, list[tuple[int, Node]]] = {}
        for node in self.reached:
            if self.cut(node) or not signs(node) or node in inner:
                continue
            terms = signed_terms(node, inner)
            products = [t for s, t in terms if s > 0 and self._swallowed(t)]
            if products:
                fused[node] = terms
                dissolved.update(products)
            else:
                dissolved -= set(_sums_below(node, inner))
        for node in self.reached:
            if node not in dissolved:
                self.image[node] = self._image(node, fused.get(node))
        cell = self.cell
        return Core(
            cell=cell,
            order=tuple(self.order),
            width=self.width,
            blocks=tuple(self.blocks),
            rows=tuple(n for n in self.order if n.op == INPUT and not is_block(n)),
            statics=tuple(n for n in self.order if n.op == PARAM),
            prelude=self.prelude,
            nexts=tuple(self.image[state.next] for state in cell.states),
            output=self.image[cell.outputs[0]],
            names={
                self.image[node]: name for name, node in reversed(cell.names) if node in self.image
            },
        )

    def _swallowed(self, node: Node) -> bool:
        return node.op == MATMUL and not self.cut(node) and self.counts[node] == 1

    def _image(self, node: Node, terms: list[tuple[int, Node]] | None) -> Node:
        width = self.widths[node]
        if self.cut(node):
            return self._put(self._leaf(node), width)
        if node.op == MATMUL:
            return self._block([node], width)
        if terms is None:
            return self._put(rebuilt(node, tuple(self.image[a] for a in node.args)), width)
        products = [t for s, t in terms if s > 0 and self._swallowed(t)]
        rest = [(s, self.image[t]) for s, t in terms if not (s > 0 and self._swallowed(t))]
        total = self._block(products, width)
        for sign, term in rest:
            total = self._put(folded([(1, total), (sign, term)]), width)
        return total

    def _leaf(self, node: Node) -> Node:
        """The leaf that stands for a node of the cell; its name has an @, as no other can."""
        if node.is_leaf:
            return node
        kind = PARAM if self.static(node) else INPUT
        leaf = Node(kind, (), f"@{'s' if kind == PARAM else 'u'}{len(self.prelude)}")
        self.prelude[leaf] = node
        return leaf

    def _block(self, products: list[Node], width: str | None) -> Node:
        leaf = Node(INPUT, (), f"@{len(self.blocks)}")
        terms = tuple(Term(str(m.args[0].attr), self.image[m.args[1]]) for m in products)
        self.blocks.append(Block(leaf, str(width), terms))
        return self._put(leaf, width)

    def _put(self, node: Node, width: str | None) -> Node:
        if node not in self.width:
            self.width[node] = width
            self.order.append(node)
        return node


def is_block(node: Node) -> bool:
    """Is it the leaf of a block?"""
    return node.op == INPUT and str(node.attr)[:1] == "@" and str(node.attr)[1:].isdigit()


def is_inner(operand: Node, core: Core) -> bool:
    """Is an operand computed within a time step, rather than a state or a row input?"""
    return operand.op != STATE and operand not in core.rows


def _sums_below(root: Node, inner: set[Node]) -> list[Node]:
    """The inner sums that would have dissolved into `root`."""
    found, stack = [], [root]
    while stack:
        for arg in stack.pop().args:
            if arg in inner:
                found.append(arg)
                stack.append(arg)
    return found

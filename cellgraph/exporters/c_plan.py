"""One time step of a cell as products and loops: what is computed when, and where it lies.

Inference alone keeps nothing for a way back, so this is a smaller plan than that of the compiled
backend. x is taken for one more state, which nobody sets: all that depends on it is computed in
the step. What depends on parameters alone is static, known when the file is written. No names and
no source code here; `c_cell.py` writes what this module plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cellgraph.graph import (
    CONST,
    INPUT,
    PARAM,
    STATE,
    CellGraph,
    Node,
    State,
    rebuilt,
    substitute,
    topological,
)
from cellgraph.stages import Block, Core, core

#: x as a leaf of the step.
X = Node(STATE, (), "x")


@dataclass(frozen=True, slots=True)
class Product:
    """blocks += matrices @ operand, for blocks whose sums are neighbours."""

    matrices: tuple[str, ...]
    operand: Node
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """Pointwise work over one width: `values` in order; then what is stored, a value into a place
    of its own (None), into states (by name) or into the output ("")."""

    width: str
    values: tuple[Node, ...]
    stores: tuple[tuple[Node, str | None], ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """Products, then loops."""

    products: tuple[Product, ...]
    loops: tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The plan of a step.

    `blocks` in the order of their sums; `held` values have a place of their own between loops;
    `early` values lie in their state already, by name; `statics` are leaves with the nodes of the
    cell that they stand for.
    """

    core: Core
    blocks: tuple[Block, ...]
    phases: tuple[Phase, ...]
    held: tuple[Node, ...]
    early: dict[Node, str]
    statics: dict[Node, Node]

    @property
    def products(self) -> tuple[Product, ...]:
        """All products, in order."""
        return tuple(product for phase in self.phases for product in phase.products)


def plan(cell: CellGraph) -> Step:
    """The plan of a cell's step."""
    return _Planner(cell).plan()


def _with_x_as_state(cell: CellGraph) -> CellGraph:
    """The cell with x as its last state; what does not depend on x keeps its nodes."""

    def image(node: Node, args: tuple[Node, ...]) -> Node:
        return X if node.op == INPUT else rebuilt(node, args)

    images = substitute(cell.roots, image)
    x = State("x", cell.raw_x or "X", X)
    states = tuple(replace(state, next=images[state.next]) for state in cell.states)
    return replace(
        cell,
        states=(*states, x),
        outputs=(images[cell.outputs[0]],),
        names=tuple((name, images[node]) for name, node in cell.names),
    )


class _Planner:
    def __init__(self, cell: CellGraph) -> None:
        self.core = cut = core(_with_x_as_state(cell))
        # In the order of the text; but blocks that share operands as neighbours, so that one
        # product serves them all.
        in_text = topological([*reversed(cut.names), *cut.nexts, cut.output])
        self.rank = rank = {
            node: at for at, node in enumerate(dict.fromkeys([*in_text, *cut.order]))
        }
        number = {operand: i for i, operand in enumerate(cut.operands)}
        self.blocks = sorted(
            sorted(cut.blocks, key=lambda b: rank[b.leaf]),
            key=lambda b: (sorted(number[t.operand] for t in b.terms), b.width),
        )
        statics = sorted((n for n in cut.order if n.op == PARAM), key=rank.__getitem__)
        self.statics = {leaf: cut.prelude.get(leaf, leaf) for leaf in statics}
        #: How often a matrix is multiplied: only what is multiplied once may stand in a stack.
        self.times = Counter(t.matrix for b in self.blocks for t in b.terms)
        self.level = self._levels()
        self.last = max(self.level.values(), default=0)
        self.home: dict[Node, int] = {}  # the phase that computes a value
        self.reads: list[set[Node]] = []  # what every phase loads, for membership only

    def _levels(self) -> dict[Node, int]:
        """How many products come before a value within a step."""
        level: dict[Node, int] = {}
        terms = {b.leaf: b.terms for b in self.blocks}
        for node in self.core.order:
            inner = [t.operand for t in terms.get(node, ()) if t.operand.op != STATE]
            found = [*(level[o] + 1 for o in inner), *(level[a] for a in node.args)]
            level[node] = max(found, default=0)
        return level

    def plan(self) -> Step:
        nexts = dict(zip(self.core.cell.states[:-1], self.core.nexts[:-1], strict=True))
        operands = [o for o in self.core.operands if not o.is_leaf]
        ends = [*nexts.values(), self.core.output]
        values = []
        for phase in range(self.last + 1):
            roots = [o for o in operands if self.level[o] == phase]
            values.append(self._closure(roots + (ends if phase == self.last else []), phase))
        read = {n for reads in self.reads for n in reads}  # for membership only
        wanted = [n for found in values for n in found if n in operands or n in read]
        stores: list[list[tuple[Node, str | None]]] = [[] for _ in values]
        early: dict[Node, str] = {}
        for state, node in nexts.items():
            leaf, at = Node(STATE, (), state.name), self.home.get(node, self.last)
            if any(leaf in reads for reads in self.reads[at + 1 :]):
                at = self.last  # the old value is still needed
            elif at < self.last:
                early.setdefault(node, state.name)
            if node is not leaf:
                stores[at].append((node, state.name))
        held = tuple(n for n in wanted if n not in early)
        for node in held:
            stores[self.home[node]].insert(0, (node, None))
        stores[self.last].insert(0, (self.core.output, ""))
        phases = [
            Phase(tuple(self._products(phase)), tuple(self._loops(values[phase], stores[phase])))
            for phase in range(self.last + 1)
        ]
        blocks, statics = tuple(self.blocks), self.statics
        return Step(self.core, blocks, tuple(phases), held, early, statics)

    def _closure(self, roots: Iterable[Node], phase: int) -> list[Node]:
        """What this phase computes for the roots, arguments first."""
        loads, values = set[Node](), dict[Node, None]()
        stack = [(root, False) for root in reversed(list(roots))]
        while stack:
            node, done = stack.pop()
            if node in values or node in loads or node.op == CONST:
                continue
            if node.is_leaf or self.home.get(node, phase) < phase:
                loads.add(node)
            elif done:
                values[node] = None
                self.home[node] = phase
            else:
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(node.args))
        self.reads.append({n for n in loads if n.op == STATE or not n.is_leaf})
        return list(values)

    def _products(self, phase: int) -> Iterator[Product]:
        """The products of all operands that are known when a phase begins."""
        for operand in self.core.operands:
            ready = 0 if operand.op == STATE else self.level[operand] + 1
            if ready != phase:
                continue
            rounds: list[list[tuple[int, str]]] = []
            for at, block in enumerate(self.blocks):
                matrices = [t.matrix for t in block.terms if t.operand is operand]
                for turn, matrix in enumerate(matrices):  # a block may multiply it several times
                    rounds += [[]] if turn == len(rounds) else []
                    rounds[turn].append((at, matrix))
            for run in (run for terms in rounds for run in self._runs(terms)):
                blocks = tuple(self.blocks[at] for at, _ in run)
                yield Product(tuple(matrix for _, matrix in run), operand, blocks)

    def _runs(self, terms: Iterable[tuple[int, str]]) -> list[list[tuple[int, str]]]:
        """What can be one product: sums that are neighbours, matrices that are a stack."""
        runs: list[list[tuple[int, str]]] = []
        alone = True
        for at, matrix in terms:
            if not alone and self.times[matrix] == 1 and runs[-1][-1][0] + 1 == at:
                runs[-1].append((at, matrix))
            else:
                runs.append([(at, matrix)])
            alone = self.times[matrix] > 1
        return runs

    def _loops(
        self, values: Sequence[Node], stores: Sequence[tuple[Node, str | None]]
    ) -> Iterator[Loop]:
        """One loop for every width."""
        width = self.core.width
        for name in dict.fromkeys(str(width[node]) for node, _ in stores):
            yield Loop(
                name,
                tuple(sorted((n for n in values if width[n] == name), key=self.rank.__getitem__)),
                tuple(store for store in stores if width[store[0]] == name),
            )

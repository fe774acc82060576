"""Where the values of a compiled cell lie, and in which phase they are computed.

Forward, a value is computed as late as its users allow. For the way back what is expensive to
compute again is kept, and the rest is recomputed from it. A kept value takes the column of a sum
that nobody reads any more, and the gradient of a sum takes that column in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cellgraph.adjoint import adjoint
from cellgraph.graph import CONST, INPUT, PARAM, STATE, Node
from cellgraph.kernels.plan import Place
from cellgraph.ops import OPS
from cellgraph.stages import Block, Core, is_block, is_inner


class Places:
    """The decisions, made step by step by `planner.py`."""

    def __init__(self, cell_core: Core) -> None:
        self.core = cell_core
        self.adj = adjoint(cell_core)
        self.blocks = self._ordered_blocks()
        self.column = {b.leaf: i for i, b in enumerate(self.blocks)}
        # Blocks that another matrix multiplies as they are: their columns stay.
        self.multiplied = [o for o in cell_core.operands if is_block(o)]
        self.columns = [b.width for b in self.blocks]
        self.work: list[str] = []
        self.level = self._levels()
        self.last = max(self.level.values(), default=0)
        self.states = [Node(STATE, (), s.name) for s in cell_core.cell.states]
        self.place: dict[Node, Place] = {}  # of forward values that have one
        self.home: dict[Node, int] = {}  # phase that writes it
        self.back_place: dict[Node, Place] = {}
        self.back_level: dict[Node, int] = {}

    # -- forward

    def _ordered_blocks(self) -> list[Block]:
        """Blocks that share operands as neighbours, so that one product serves them all."""
        number = {o: i for i, o in enumerate(self.core.operands)}

        def signature(block: Block) -> tuple[object, ...]:
            moving = [t.operand for t in block.terms if t.operand not in self.core.rows]
            inner = any(is_inner(o, self.core) for o in moving)
            return (inner, block.width, sorted(number[o] for o in moving))

        return sorted(self.core.blocks, key=signature)

    def _levels(self) -> dict[Node, int]:
        """How many products come before a value within a step."""
        level: dict[Node, int] = {}
        terms = {b.leaf: b.terms for b in self.blocks}
        for node in self.core.order:
            if node in terms:
                inner = [t.operand for t in terms[node] if is_inner(t.operand, self.core)]
                level[node] = max((level[o] + 1 for o in inner), default=0)
            else:
                level[node] = max((level[a] for a in node.args), default=0)
        return level

    def _closure(
        self, roots: Iterable[Node], loaded: Callable[[Node], bool]
    ) -> tuple[list[Node], list[Node]]:
        """What to load and what to compute for the roots, arguments first."""
        loads: dict[Node, None] = {}
        values: dict[Node, None] = {}
        for root in roots:
            stack = [(root, False)]
            while stack:
                node, done = stack.pop()
                if node in loads or node in values:
                    continue
                if node.op == CONST:
                    continue
                if loaded(node):
                    loads[node] = None
                elif done:
                    values[node] = None
                else:
                    stack.append((node, True))
                    stack.extend((a, False) for a in reversed(node.args))
        return list(loads), list(values)

    def _leaf_place(self, node: Node) -> Place | None:
        if node.op == STATE:
            return Place("state", self.states.index(node))
        if node in self.column:
            return Place("tape", self.column[node])
        if node.op == INPUT and node in self.core.rows:
            return Place("row", self.core.rows.index(node))
        if node.op == PARAM:
            return Place("static", self.core.statics.index(node))
        return None

    def _operands_placed(self) -> None:
        """Next states lie in their history, other inner operands in columns of their own."""
        for index, node in enumerate(self.core.nexts):
            if not node.is_leaf and node not in self.place:
                self.place[node] = Place("next", index)
                self.home[node] = self.last
        for node in self.core.operands:
            if not node.is_leaf:
                self.home[node] = self.level[node]
                if node not in self.place:
                    self.place[node] = self._new_column(self.core.width[node])

    def _new_column(self, width: str | None) -> Place:
        self.columns.append(str(width))
        return Place("tape", len(self.columns) - 1)

    def _forward_roots(self) -> list[dict[Node, list[Place]]]:
        """Per phase: what must be stored, and where."""
        roots: list[dict[Node, list[Place]]] = [{} for _ in range(self.last + 1)]
        for node, place in self.place.items():
            roots[self.home[node]].setdefault(node, []).append(place)
        for index, node in enumerate(self.core.nexts):
            if self.place.get(node) != Place("next", index):
                roots[self.last].setdefault(node, []).append(Place("next", index))
        roots[self.last].setdefault(self.core.output, []).append(Place("output"))
        return roots

    def _forward_closures(self) -> list[tuple[list[Node], list[Node]]]:
        found = []
        for phase, roots in enumerate(self._forward_roots()):

            def loaded(node: Node, phase: int = phase) -> bool:
                return node.is_leaf or (node in self.home and self.home[node] < phase)

            found.append(self._closure(roots, loaded))
        return found

    def _keep(self, wanted: list[Node]) -> None:
        """Give kept values a place, and the phase that first computes them as their home."""
        closures = self._forward_closures()
        computed = [dict.fromkeys(values) for _, values in closures]
        kept = dict.fromkeys(wanted)
        times: dict[Node, int] = {}
        for values in computed:
            for node in values:
                times[node] = times.get(node, 0) + 1
        kept |= dict.fromkeys(n for n, count in times.items() if count > 1 and not cheap(n))
        rank = {node: i for i, node in enumerate(self.core.order)}
        ordered = sorted(kept, key=rank.__getitem__)  # a gate before what is made of gates
        for node in ordered:
            self.home[node] = next(p for p, values in enumerate(computed) if node in values)
        closures = self._forward_closures()  # `home` alone decides what later phases load
        read: dict[Node, int] = {}  # block -> last phase that reads its sum
        for phase, (loads, _) in enumerate(closures):
            read |= dict.fromkeys((n for n in loads if is_block(n)), phase)
        taken = dict.fromkeys([*self.raw, *self.multiplied])
        for node in ordered:
            free = next(
                (
                    leaf
                    for leaf in self._closure([node], lambda n: n.is_leaf)[0]
                    if leaf in self.column
                    and leaf not in taken
                    and self.core.width[leaf] == self.core.width[node]
                    and read[leaf] <= self.home[node]
                ),
                None,
            )
            if free is None:
                self.place[node] = self._new_column(self.core.width[node])
            else:
                taken[free] = None
                self.place[node] = Place("tape", self.column[free])

    # -- backward

    def _back_roots(self) -> list[dict[Node, list[Place]]]:
        """Per phase: the gradients that must be stored, and where; columns are chosen later."""
        adj, width = self.adj, self.adj.width
        wanted: list[tuple[Node, Place]] = []
        for b in self.blocks:
            wanted.append((adj.blocks[b.leaf], Place("dblock", self.column[b.leaf])))
        for index, state in enumerate(self.states):
            if state in adj.states:
                wanted.append((adj.states[state], Place("dstate", index)))
        for index, row in enumerate(self.core.rows):
            if row in adj.rows:
                wanted.append((adj.rows[row], Place("drow", index)))
        self.sums: list[tuple[int, Node]] = []
        self.static_places: list[tuple[Node, str]] = []
        by_gradient = {adj.blocks[b.leaf]: self.column[b.leaf] for b in reversed(self.blocks)}
        for (leaf, w), node in adj.static.items():
            if node in by_gradient and self.core.width[leaf] is not None:
                self.sums.append((by_gradient[node], leaf))
            else:
                wanted.append((node, Place("dstatic", len(self.static_places))))
                self.static_places.append((leaf, w))
        self._find_back_levels([n for n, _ in wanted])
        phases = 1 + max((self.back_level.get(n, 0) for n, _ in wanted), default=0)
        roots: list[dict[Node, list[Place]]] = [{} for _ in range(phases)]
        for node, place in wanted:
            roots[self.back_level.get(node, 0)].setdefault(node, []).append(place)
        for node in self._crossing([n for n, _ in wanted]):
            if not any(p.kind == "dblock" for p in roots[self.back_level[node]].get(node, [])):
                place = Place("work", len(self.work))
                self.work.append(str(width[node]))
                self.back_place[node] = place
                roots[self.back_level[node]].setdefault(node, []).append(place)
        return roots

    def _find_back_levels(self, roots: list[Node]) -> None:
        """`back_level` of what depends on incoming gradients; other nodes have none."""
        adj = self.adj
        start = {adj.output: 0} | dict.fromkeys(adj.nexts, 0)
        for node in self._below(roots):
            if node in start:
                self.back_level[node] = 0
            elif node in adj.needs:
                self.back_level[node] = 1 + max(self.back_level.get(d, 0) for d in adj.needs[node])
            elif not self._is_forward(node):
                below = [self.back_level[a] for a in node.args if a in self.back_level]
                if below:
                    self.back_level[node] = max(below)

    def _is_forward(self, node: Node) -> bool:
        return node in self.core.width

    def _below(self, roots: list[Node]) -> list[Node]:
        """All nodes of the adjoint below the roots, each after what it needs."""
        order: dict[Node, None] = {}
        stack = [(root, False) for root in reversed(roots)]
        while stack:
            node, done = stack.pop()
            if node in order:
                continue
            needs = self.adj.needs.get(node, () if self._is_forward(node) else node.args)
            if done or not needs:
                order[node] = None
            else:
                stack.append((node, True))
                stack.extend((n, False) for n in reversed(needs))
        return list(order)

    def _crossing(self, roots: list[Node]) -> list[Node]:
        """Gradients that a later phase than their own reads."""
        level = self.back_level
        return list(
            dict.fromkeys(
                arg
                for node in self._below(roots)
                if node in level and node not in self.adj.needs
                for arg in node.args
                if arg in level and not arg.is_leaf and level[arg] < level[node]
            )
        )

    def _back_loaded(self, phase: int, kept: dict[Node, None]) -> Callable[[Node], bool]:
        def loaded(node: Node) -> bool:
            if node.is_leaf or node in kept or node in self.place:
                return True
            return node in self.back_level and self.back_level[node] < phase

        return loaded

    def _needed_back(self, roots: list[dict[Node, list[Place]]]) -> list[Node]:
        """Forward values too expensive to compute twice; also notes the sums that are read."""
        kept: dict[Node, None] = {}
        rank = {node: i for i, node in enumerate(self.core.order)}
        self.raw: dict[Node, None] = {}
        while True:
            missing: dict[Node, None] = {}
            self.raw = {}
            for phase, wanted in enumerate(roots):
                loads, values = self._closure(wanted, self._back_loaded(phase, kept))
                self.raw |= dict.fromkeys(n for n in loads if is_block(n))
                missing |= dict.fromkeys(n for n in values if self._is_forward(n) and not cheap(n))
            if not missing:
                return list(kept)
            # From the top: what stands above is kept, and what only it needed is not.
            kept[max(missing, key=rank.__getitem__)] = None

    def _gradient_columns(self, roots: list[dict[Node, list[Place]]]) -> list[int]:
        """The column of every block's gradient: its own, once nobody reads what lies there."""
        last: dict[int, int] = {}
        for phase, wanted in enumerate(roots):
            loads, _ = self._closure(wanted, self._back_loaded(phase, {}))
            for node in loads:
                place = self.place.get(node) or self._leaf_place(node)
                if place is not None and place.kind == "tape":
                    last[place.index] = phase
        chosen = []
        for b in self.blocks:
            own = self.column[b.leaf]
            phase = self.back_level.get(self.adj.blocks[b.leaf], 0)
            if last.get(own, -1) <= phase and b.leaf not in self.multiplied:
                chosen.append(own)
            else:
                chosen.append(self._new_column(b.width).index)
        return chosen


def cheap(node: Node) -> bool:
    """Is it better computed again than kept?"""
    return OPS[node.op].cheap

"""Makes the plan of a cell: places decided, products grouped, loops put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cellgraph.graph import STATE, CellGraph, Node
from cellgraph.kernels.places import Places
from cellgraph.kernels.plan import Loop, Phase, Place, Plan, Product
from cellgraph.stages import Block, core, is_inner


def plan(cell: CellGraph) -> Plan:
    """The plan of a cell."""
    return _Planner(core(cell)).plan()


class _Planner(Places):
    def plan(self) -> Plan:
        self._operands_placed()
        roots = self._back_roots()
        self._keep(self._needed_back(roots))
        columns = self._gradient_columns(roots)
        self.gradient_column = columns
        for node, places in [item for phase in roots for item in phase.items()]:
            for at, place in enumerate(places):
                if place.kind == "dblock":
                    places[at] = Place("tape", columns[place.index])
                    self.back_place.setdefault(node, places[at])
        for leaf in self.adj.operand.values():
            if leaf in self.back_level:
                self.back_place[leaf] = Place("work", len(self.work))
                self.work.append(str(self.adj.width[leaf]))
        self.back_place[self.adj.output] = Place("dy")
        for index, leaf in enumerate(self.adj.nexts):
            self.back_place[leaf] = Place("dnext", index)
        forward = self._forward_phases()
        return Plan(
            core=self.core,
            adjoint=self.adj,
            columns=tuple(self.columns),
            work=tuple(self.work),
            hoisted=self.hoisted,
            forward=forward,
            backward=self._backward_phases(roots),
            states_back=self._back_products(
                [(s, s) for s in self.states], lambda s: s in self.adj.states
            ),
            gradients=self._gradients(),
            rows_back=self._back_products(
                [(r, r) for r in self.core.rows], lambda r: r in self.adj.rows
            ),
            sums=tuple((columns[c], leaf) for c, leaf in self.sums),
            accumulated=tuple(self.static_places),
            place=self.place | {o: Place("tape", self.column[o]) for o in self.multiplied},
            scratch={
                leaf: self.back_place[leaf].index
                for leaf in self.adj.operand.values()
                if leaf in self.back_level
            },
            blocks=tuple(self.blocks),
        )

    def _forward_phases(self) -> tuple[Phase, ...]:
        written: dict[Node, None] = {}
        self.hoisted = tuple(self._products(list(self.core.rows), written))
        phases = []
        roots = self._forward_roots()
        for phase, (loads, values) in enumerate(self._forward_closures()):
            ready = [
                o
                for o in self.core.operands
                if (o.op == STATE and phase == 0)
                or (is_inner(o, self.core) and self.level[o] + 1 == phase)
            ]
            products = tuple(self._products(ready, written))
            loops = self._loops(loads, values, roots[phase], self.place, self.core.width)
            phases.append(Phase(products, loops))
        return tuple(phases)

    def _products(self, operands: list[Node], written: dict[Node, None]) -> Iterable[Product]:
        for operand in operands:
            terms = [
                (self.column[b.leaf], t.matrix, b)
                for b in self.blocks
                for t in b.terms
                if t.operand is operand
            ]
            seen: dict[int, int] = {}
            rounds: list[list[tuple[int, str, Block]]] = []
            for term in terms:  # a block may multiply one operand by several matrices
                turn = seen.get(term[0], 0)
                seen[term[0]] = turn + 1
                rounds += [[]] if turn == len(rounds) else []
                rounds[turn].append(term)
            for turn_terms in rounds:
                flags = [b.leaf in written for _, _, b in turn_terms]
                for run in _runs(turn_terms, flags):
                    written |= dict.fromkeys(b.leaf for _, _, b in run)
                    yield Product(
                        operand,
                        tuple(m for _, m, _ in run),
                        tuple(c for c, _, _ in run),
                        flags[turn_terms.index(run[0])],
                    )

    def _loops(
        self,
        loads: list[Node],
        values: list[Node],
        roots: dict[Node, list[Place]],
        places: dict[Node, Place],
        width: dict[Node, str | None],
    ) -> tuple[Loop, ...]:
        """One loop for every width; scalars and static values are read by all of them."""
        loops = []
        stored = [(n, p) for n, ps in roots.items() for p in ps]
        names = dict.fromkeys(self._width_of(n, p, width) for n, p in stored)
        for name in names:
            mine = [(n, p) for n, p in stored if self._width_of(n, p, width) == name]
            wanted = dict.fromkeys(n for n, _ in mine)
            seen = frozenset(loads)
            mine_loads, mine_values = self._closure(wanted, lambda n: n in seen)  # noqa: B023
            loops.append(
                Loop(
                    name,
                    tuple((n, self._found(n, places)) for n in mine_loads),
                    tuple(mine_values),
                    tuple(mine),
                )
            )
        return tuple(loops)

    def _width_of(self, node: Node, place: Place, width: dict[Node, str | None]) -> str:
        """The width that a store has; a number has that of the place."""
        if place.kind == "dstatic":
            return self.static_places[place.index][1]
        if place.kind in ("tape", "work"):
            return (self.columns if place.kind == "tape" else self.work)[place.index]
        if place.kind in ("next", "dstate"):
            return self.core.cell.states[place.index].width
        if place.kind == "drow":
            return str(self.core.width[self.core.rows[place.index]])
        return str(self.core.width[self.core.output])

    def _found(self, node: Node, places: dict[Node, Place]) -> Place:
        found = places.get(node) or self._leaf_place(node)
        if found is None:
            raise LookupError(f"{node} has no place")
        return found

    def _backward_phases(self, roots: list[dict[Node, list[Place]]]) -> tuple[Phase, ...]:
        phases = []
        places = {**self.place, **self.back_place}
        for phase, wanted in enumerate(roots):
            operands = [
                (operand, leaf)
                for operand, leaf in self.adj.operand.items()
                if self.back_level.get(leaf) == phase
            ]
            products = self._back_products(operands, lambda _: False)
            loads, values = self._closure(wanted, self._back_loaded(phase, {}))
            loops = self._loops(loads, values, wanted, places, self.adj.width)
            phases.append(Phase(products, loops))
        return tuple(phases)

    def _back_products(
        self, operands: list[tuple[Node, Node]], begun: Callable[[Node], bool]
    ) -> tuple[Product, ...]:
        """Gradients of operands: columns of gradients times matrices."""
        products = []
        for operand, target in operands:
            accumulate = begun(operand)
            for run in self._gradient_runs(operand):
                matrices, columns = tuple(m for _, m in run), tuple(c for c, _ in run)
                products.append(Product(target, matrices, columns, accumulate))
                accumulate = True
        return tuple(products)

    def _gradient_runs(self, operand: Node) -> list[list[tuple[int, str]]]:
        terms = sorted(
            (self.gradient_column[self.column[b.leaf]], t.matrix)
            for b in self.blocks
            for t in b.terms
            if t.operand is operand
        )
        return _runs(terms, [False] * len(terms))

    def _gradients(self) -> tuple[Product, ...]:
        """Per operand: every matrix with the column of its gradient; the first use of one sets."""
        products, seen = [], dict[str, None]()
        for operand in self.core.operands:
            terms = [(c, m) for run in self._gradient_runs(operand) for c, m in run]
            rounds: list[list[tuple[int, str]]] = []
            for column, matrix in terms:
                at = next((r for r in rounds if all(m != matrix for _, m in r)), None)
                if at is None:
                    rounds.append([(column, matrix)])
                else:
                    at.append((column, matrix))
            for group in rounds:
                for known in (False, True):
                    chosen = [(c, m) for c, m in group if (m in seen) == known]
                    if chosen:
                        products.append(
                            Product(
                                operand,
                                tuple(m for _, m in chosen),
                                tuple(c for c, _ in chosen),
                                known,
                            )
                        )
                seen |= dict.fromkeys(m for _, m in group)
        return tuple(products)


def _runs(terms: list[Any], flags: list[bool]) -> list[list[Any]]:
    """Split terms (column first) where columns are no neighbours, or flags change."""
    runs: list[list[Any]] = []
    for term, flag in sorted(zip(terms, flags, strict=True), key=lambda pair: pair[0][0]):
        last = runs[-1][-1] if runs else None
        if last is not None and last[0][0] + 1 == term[0] and last[1] == flag:
            runs[-1].append((term, flag))
        else:
            runs.append([(term, flag)])
    return [[term for term, _ in run] for run in runs]

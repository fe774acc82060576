"""The schedule of a compiled cell in words and numbers: `cellsearch inspect NAME --schedule`.

Prints what `emit.py` emits, stage by stage, with the cost of each. A product counts two operations
for a multiplication with its addition, a pointwise value one. Bytes are those of one row of the
batch at one time step; the matrices that a step reads are shared by all its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cellgraph.graph import CellGraph, Node
from cellgraph.kernels.labels import labels, number_long, shown
from cellgraph.kernels.plan import Loop, Place, Plan, Product
from cellgraph.kernels.planner import plan
from cellgraph.printing import render
from cellgraph.sizes import concrete_widths


@dataclass(frozen=True)
class Stage:
    """One line of work: `lines` say what, the numbers are for one row at one step."""

    title: str
    lines: list[str]
    flops: int
    bytes: int


@dataclass
class Schedule:
    """A schedule at concrete widths. `kept` names what a row of the tape holds, `skews` the
    matrices that stand for W - W^T, which torch makes of W once a sequence."""

    cell: str
    widths: dict[str, int]
    itemsize: int
    before: list[Stage] = field(default_factory=list)
    forward: list[Stage] = field(default_factory=list)
    backward: list[Stage] = field(default_factory=list)
    after: list[Stage] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    kept_bytes: int = 0
    skews: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        parts = ("before", "forward", "backward", "after")
        return {
            "cell": self.cell,
            "widths": self.widths,
            "skews": self.skews,
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            **{part: [vars(stage) for stage in getattr(self, part)] for part in parts},
            "flops": self.flops(),
        }

    def flops(self) -> dict[str, int]:
        """Of one row at one step, forward and backward; the latter includes weights and x."""
        return {
            "forward": sum(s.flops for s in (*self.before, *self.forward)),
            "backward": sum(s.flops for s in (*self.backward, *self.after)),
        }

    def text(self) -> str:
        """For a terminal."""
        sizes = ", ".join(f"{name} = {size}" for name, size in self.widths.items())
        lines = [f"{self.cell} at {sizes}; numbers are for one row at one time step"]
        lines += [
            f"{name} stands for {name} - {name}ᵀ, made once a sequence" for name in self.skews
        ]
        lines.append("")
        parts = (
            ("before the loop, for all steps at once", self.before),
            ("forward, each step", self.forward),
            ("backward, each step", self.backward),
            ("after the loop, for all steps at once", self.after),
        )
        for title, stages in parts:
            if stages:
                lines.append(title)
            for stage in stages:
                cost = f"{stage.flops:,} FLOPs, {stage.bytes:,} bytes"
                lines.append(f"  {stage.title:<52}{cost:>36}")
                lines += [f"      {line}" for line in stage.lines]
        lines += ["", f"kept for the way back ({self.kept_bytes:,} bytes)"]
        lines += [f"      {name}" for name in self.kept]
        flops = self.flops()
        total = f"{flops['forward']:,} FLOPs forward, {flops['backward']:,} backward"
        return "\n".join([*lines, "", total])


def schedule(
    cell: CellGraph,
    input_size: int,
    hidden_size: int,
    *,
    widths: Mapping[str, int] | None = None,
    itemsize: int = 4,
) -> Schedule:
    """The schedule of a cell at these sizes. Raises `CellError`."""
    sizes = concrete_widths(cell, input_size, hidden_size, widths)
    return _Describer(plan(cell), sizes, itemsize).schedule()


class _Describer:
    def __init__(self, made: Plan, sizes: dict[str, int], itemsize: int) -> None:
        self.plan, self.core, self.sizes, self.itemsize = made, made.core, sizes, itemsize
        self.label = labels(self.core)
        adj = made.adjoint
        self.label[adj.output] = "dy"
        for state, leaf in zip(self.core.cell.states, adj.nexts, strict=True):
            self.label[leaf] = f"d{state.name}'"
        for operand, leaf in adj.operand.items():
            self.label[leaf] = f"d{self.show(operand)}"
        loops = (loop for phase in made.backward for loop in phase.loops)
        number_long([node for loop in loops for node, _ in loop.stores], self.label)

    def show(self, node: Node) -> str:
        return shown(node, self.label)

    def schedule(self) -> Schedule:
        made = self.plan
        sizes = {w: n for w, n in self.sizes.items() if w in made.widths}
        result = Schedule(self.core.cell.name, sizes, self.itemsize)
        result.skews = [*self.core.cell.skews]
        result.before = [self.forward_product(p) for p in made.hoisted]
        for phase in made.forward:
            result.forward += [self.forward_product(p) for p in phase.products]
            result.forward += [self.loop(lo) for lo in phase.loops]
        for phase in made.backward:
            result.backward += [self.back_product(p) for p in phase.products]
            result.backward += [self.loop(lo) for lo in phase.loops]
        result.backward += [self.back_product(p) for p in made.states_back]
        result.after = [self.back_product(p) for p in made.rows_back]
        result.after += [self.weights(p) for p in made.gradients]
        result.after += [
            Stage(f"d{self.show(leaf)} = sum over rows", [], self.column(c), self.bytes(c))
            for c, leaf in made.sums
        ]
        homes: dict[Place, list[str]] = {}
        for node, place in made.place.items():
            homes.setdefault(place, []).append(render(node, self.label))
        for at, block in enumerate(made.blocks):
            homes.setdefault(Place("tape", at), [self.label[block.leaf]])
        result.kept = [
            f"{homes[Place('tape', c)][0] if Place('tape', c) in homes else 'a gradient'}"
            for c in range(len(made.columns))
        ]
        result.kept += [s.name for s in self.core.cell.states]
        result.kept_bytes = sum(self.bytes(c) for c in range(len(made.columns)))
        result.kept_bytes += sum(self.sizes[s.width] for s in self.core.cell.states) * self.itemsize
        return result

    def column(self, index: int) -> int:
        return self.sizes[self.plan.columns[index]]

    def bytes(self, index: int) -> int:
        return self.column(index) * self.itemsize

    def width(self, node: Node) -> int:
        return self.sizes[str(self.plan.adjoint.width[node])]

    def product(self, product: Product, title: str) -> Stage:
        columns = sum(self.column(c) for c in product.columns)
        depth = self.width(product.operand)
        moved = (columns * (1 + product.accumulate) + depth) * self.itemsize
        return Stage(title, [], 2 * columns * depth, moved)

    def forward_product(self, product: Product) -> Stage:
        sign = "+=" if product.accumulate else "="
        stack = ", ".join(product.matrices)
        return self.product(product, f"sums {sign} [{stack}] @ {self.show(product.operand)}")

    def back_product(self, product: Product) -> Stage:
        shown_ = self.show(product.operand)
        label = shown_ if product.operand in self.plan.adjoint.needs else f"d{shown_}"
        sign = "+=" if product.accumulate else "="
        stack = ", ".join(f"{m}ᵀ" for m in product.matrices)
        return self.product(product, f"{label} {sign} [{stack}] @ gradients of sums")

    def weights(self, product: Product) -> Stage:
        stack = ", ".join(f"d{m}" for m in product.matrices)
        return self.product(product, f"[{stack}] from {self.show(product.operand)}")

    def loop(self, loop: Loop) -> Stage:
        size = self.sizes[loop.width]
        lines = []
        for node, place in loop.stores:
            target = self.target(place)
            value = render(node, self.label)
            lines.append(f"{value} -> {target}" if value != target else value)
        named = [n for n in loop.values if n in self.label]
        equations = [f"{self.label[n]} = {render(n, self.label, top=True)}" for n in named]
        moved = (len(loop.loads) + len(loop.stores)) * size * self.itemsize
        title = f"pointwise over {loop.width}: {len(loop.values)} values"
        return Stage(title, [*equations, *lines], len(loop.values) * size, moved)

    def target(self, place: Place) -> str:
        states = self.core.cell.states
        return {
            "output": "output",
            "next": f"state {states[place.index].name}" if place.kind == "next" else "",
            "dstate": f"d{states[place.index].name}" if place.kind == "dstate" else "",
            "drow": "dx",
            "dstatic": "gradient of a vector",
            "tape": "tape",
            "work": "scratch",
        }[place.kind]

"""Random valid cells for hypothesis, and tensors on which they can be compared in float64.

`cells()` draws cells of several states, widths, kinds of parameters, lines and inits with sharing;
`sample()` gives the matching tensors. Every value is tracked with an interval that contains it, so
that no drawn cell divides by something near zero, takes the logarithm of something negative or
explodes: whatever would leave the safe range is squashed by a tanh first. Nothing here keys on op
names, except that the squashing and a few common shapes (affine, blend) are written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Init, Node
from cellgraph.interpret import unroll
from cellgraph.notation import parse
from cellgraph.ops import OPS
from cellgraph.widths import build

STATE_NAMES = ("h", "c", "m", "k", "q")
NUMBERS = (1.0, 0.0, 2.0, -1.0, 0.5, -0.5, 1.25, -2.5, 1e-3, 3.0)
LIMIT = 25.0  # no inner value is larger; keeps products of a dozen local derivatives within float64
STATE_LIMIT = 2.0  # no next state is larger, so that unrolling stays as bounded as one step
WIDEST = 9  # |matrix @ v| <= sqrt(WIDEST) |v| for the matrices of `sample`

#: Ops whose value or derivative jumps; where a jump meets rounding, equal cells may differ visibly.
JUMPING = frozenset(
    op.name
    for op in OPS.values()
    if any("sign(" in d or "step(" in d for d in op.derivative)
    or all(d == "0" for d in op.derivative)
)


@dataclass(frozen=True)
class _Value:
    """A node, the name of its width ("1": a scalar), and an interval that contains its elements."""

    node: Node
    width: str
    low: float
    high: float


@cache
def _restricted(name: str, index: int) -> bool:
    """Is the op undefined or infinite for a zero or negative argument (log, sqrt, the divisor)?"""
    op = OPS[name]
    args = [torch.full((2,), sum(op.domain) / 2, dtype=torch.float64) for _ in range(op.arity)]
    args[index] = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    return not bool(torch.isfinite(op.eager(torch, *args)).all())


@cache
def _reach(name: str, *intervals: tuple[float, float]) -> tuple[float, float] | None:
    """An interval that contains the op's values, by sampling; None beyond the safe range."""
    axes = [torch.linspace(low, high, 33, dtype=torch.float64) for low, high in intervals]
    value = OPS[name].eager(torch, *torch.meshgrid(*axes, indexing="ij"))
    low, high = float(value.min()), float(value.max())
    if not -LIMIT <= low <= high <= LIMIT:  # false for NaN as well
        return None
    slack = 0.05 * (high - low)  # a maximum may lie between the grid's points
    return low - slack, high + slack


def _op(name: str, *args: _Value) -> _Value:
    """The op over arguments that are first squashed into its domain where need be."""
    op = OPS[name]
    safe = [
        _squash(a, *op.domain) if _restricted(name, i) and a.low < op.domain[0] else a
        for i, a in enumerate(args)
    ]
    reach = _reach(name, *((a.low, a.high) for a in safe))
    if reach is None:
        safe = [_squash(a, *op.domain) for a in args]
        reach = _reach(name, *((a.low, a.high) for a in safe))
        assert reach is not None, f"{name} leaves the safe range within its own domain"
    width = next((a.width for a in args if a.width != "1"), "1")
    return _Value(Node(name, tuple(a.node for a in safe)), width, *reach)


def _squash(value: _Value, low: float, high: float) -> _Value:
    """middle + half * tanh(value), strictly within (low, high)."""
    middle, half = (low + high) / 2, (high - low) / 2
    node = Node("tanh", (value.node,))
    if half != 1:
        node = Node("mul", (Node(CONST, (), half), node))
    if middle != 0:
        node = Node("add", (Node(CONST, (), middle), node))
    return _Value(node, value.width, low, high)


@dataclass
class _Maker:
    draw: st.DrawFn
    ops: Sequence[str]
    states: dict[str, str]  # name -> width
    raw: bool  # x may meet hidden vectors
    pool: list[_Value] = field(default_factory=list)  # values with a name
    matrices: dict[tuple[str, str], list[Node]] = field(default_factory=dict)
    vectors: dict[str, list[Node]] = field(default_factory=dict)
    scalars: list[Node] = field(default_factory=list)
    skews: dict[str, list[Node]] = field(default_factory=dict)
    made: int = 0

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    @property
    def widths(self) -> list[str]:
        return list(dict.fromkeys(["H", *self.states.values()]))

    def parameter(self, known: list[Node], prefix: str) -> Node:
        """A parameter of this shape, an old one now and then."""
        if known and self.draw(st.integers(0, 3)) == 3:
            return self.one_of(known)
        self.made += 1
        known.append(Node(PARAM, (), f"{prefix}{self.made}"))
        return known[-1]

    def product(self, rows: str, operand: _Value) -> _Value:
        known = self.matrices.setdefault((rows, operand.width), [])
        scale = WIDEST**0.5
        if rows == operand.width and self.draw(st.integers(0, 4)) == 4:
            known = self.skews.setdefault(rows, [])
            scale *= 2  # |W - W^T| <= |W| + |W^T|
        if scale * max(abs(operand.low), abs(operand.high)) > LIMIT:
            operand = _squash(operand, -1, 1)
        node = Node(MATMUL, (self.parameter(known, "W"), operand.node))
        bound = scale * max(abs(operand.low), abs(operand.high))
        return _Value(node, rows, -bound, bound)

    def vector_parameter(self, width: str) -> _Value:
        return _Value(self.parameter(self.vectors.setdefault(width, []), "b"), width, -1, 1)

    def x(self) -> _Value:
        return _Value(Node(INPUT, (), "x"), "H" if self.raw else "X", -1, 1)

    def leaf(self, width: str) -> _Value:
        options = [
            _Value(Node(STATE, (), name), width, -STATE_LIMIT, STATE_LIMIT)
            for name, declared in self.states.items()
            if declared == width
        ]
        options += [value for value in self.pool if value.width == width]
        if self.x().width == width:
            options.append(self.x())
        if not options or self.draw(st.integers(0, 4)) == 4:
            return self.vector_parameter(width)
        return self.one_of(options)

    def scalar(self) -> _Value:
        kind = self.draw(st.integers(0, 4))
        if kind == 4:
            return _Value(self.parameter(self.scalars, "s"), "1", -1, 1)
        number = self.one_of(NUMBERS)
        value = _Value(Node(CONST, (), number), "1", number, number)
        return _op(self.one_of(self.ops_of(1)), value) if kind == 3 and self.ops_of(1) else value

    def ops_of(self, arity: int) -> list[str]:
        return [name for name in self.ops if OPS[name].arity == arity]

    def affine(self, rows: str) -> _Value:
        """W @ x + U @ state + b, the stuff of gates."""
        state = self.one_of(list(self.states))
        previous = _Value(Node(STATE, (), state), self.states[state], -STATE_LIMIT, STATE_LIMIT)
        total = _op("add", self.product(rows, self.x()), self.product(rows, previous))
        return _op("add", total, self.vector_parameter(rows))

    def blend(self, width: str, depth: int) -> _Value:
        """z * old + (1 - z) * new, convex and so no larger than its ends."""
        old, new, z = (
            self.vector(width, depth),
            self.vector(width, depth),
            _op("sigmoid", self.vector(width, depth)),
        )
        keep = Node("mul", (z.node, old.node))
        take = Node("mul", (Node("sub", (Node(CONST, (), 1.0), z.node)), new.node))
        return _Value(
            Node("add", (keep, take)), width, min(old.low, new.low), max(old.high, new.high)
        )

    def vector(self, width: str, depth: int) -> _Value:
        kinds = ["leaf"]
        if depth > 0:
            kinds += (
                ["unary"] * 3 * bool(self.ops_of(1))
                + ["binary"] * 3 * bool(self.ops_of(2))
                + ["blend"]
            )
            kinds += [] if width == "X" else ["affine"] * 4 + ["product"] * 2
        kind = self.one_of(kinds)
        if kind == "unary":
            return _op(self.one_of(self.ops_of(1)), self.vector(width, depth - 1))
        if kind == "binary":
            pair = [self.vector(width, depth - 1), self.vector(width, depth - 1)]
            side = self.draw(st.integers(0, 4))  # 0 or 1: a scalar on that side
            if side < 2:
                pair[side] = self.scalar()
            return _op(self.one_of(self.ops_of(2)), *pair)
        if kind == "blend":
            return self.blend(width, depth - 1)
        if kind == "affine":
            return self.affine(width)
        if kind == "product":
            return self.product(
                width, self.vector(self.one_of([*self.widths, self.x().width]), depth - 1)
            )
        return self.leaf(width)

    def next_state(self, width: str) -> _Value:
        """A vector no larger than a state may be. Sometimes a leaf, such as the previous value."""
        value = self.vector(width, 2)
        within = max(-value.low, value.high) <= STATE_LIMIT
        return value if within else _squash(value, -1, 1)


@st.composite
def cells(
    draw: st.DrawFn,
    max_states: int = 3,
    max_lines: int = 8,
    ops: Sequence[str] | None = None,
    smooth: bool = False,
    projected: bool = True,
    raw_x: bool = True,
) -> CellGraph:
    """Valid cells of up to `max_states` states and `max_lines` lines, those of states included.

    `ops`: which elementwise ops to draw (all); tanh, sigmoid, add, sub and mul may stand in every
    cell, to keep it bounded. `smooth`: no op of `JUMPING`. `projected`: some states have the width
    P. `raw_x`: some cells use x outside a matrix. A cell may ignore x or some of its states, and
    may have no parameter at all.
    """
    chosen = [name for name in (OPS if ops is None else ops) if not (smooth and name in JUMPING)]
    widths = ["H", "H", "P"] if projected else ["H"]
    names = STATE_NAMES[: draw(st.integers(1, max_states))]
    states = {name: draw(st.sampled_from(widths)) for name in names}
    maker = _Maker(draw, chosen, states, raw=raw_x and draw(st.integers(0, 3)) == 3)
    lines = draw(st.integers(0, max(0, max_lines - len(states))))
    nexts: dict[str, Node] = {}
    named: list[tuple[str, Node]] = []
    for item in draw(st.permutations([*range(lines), *states])):
        if isinstance(item, str):
            value = maker.next_state(states[item])
            nexts[item] = value.node
            named.append((f"{item}'", value.node))
        else:
            value = maker.vector(
                draw(st.sampled_from([*maker.widths, *maker.widths, maker.x().width])), 2
            )
            named.append((f"a{item}", value.node))
        maker.pool.append(value)

    output = nexts[names[0]]
    if draw(st.integers(0, 3)) == 3:
        output = maker.one_of([output, *(v.node for v in maker.pool if v.width != "X")])

    def frozen(inits: dict[str, Init]) -> CellGraph:
        scalars = [str(node.attr) for node in maker.scalars]
        skews = [str(node.attr) for known in maker.skews.values() for node in known]
        ordered = [(name, width, nexts[name]) for name, width in states.items()]
        declared = {"scalars": scalars, "skews": skews}
        return build("drawn", ordered, output, **declared, inits=inits, names=named)

    inits: dict[str, Init] = {}
    for param in frozen({}).params:
        if param.kind != "skew" and draw(st.integers(0, 5)) == 5:
            square = param.kind == "matrix" and param.rows == param.cols
            inits[param.name] = Init("identity" if square else "constant", maker.one_of(NUMBERS))
    return frozen(inits)


@dataclass(frozen=True)
class Sample:
    """Leaf tensors in float64 that require gradients, in the ranges that `cells` reckons with."""

    params: dict[str, Tensor]
    x: Tensor  # (T, B, X); X is the width that raw x must have, where it must
    state: tuple[Tensor, ...]  # (B, width) each
    widths: dict[str, int]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.params.values(), self.x, *self.state]


def sample(
    cell: CellGraph,
    *,
    steps: int = 3,
    rows: int = 2,
    hidden: int = 4,
    inputs: int = 3,
    projected: int = 2,
    seed: int = 0,
) -> Sample:
    """Matrices from U[-1, 1] / sqrt(columns), all else from U[-1, 1]; widths up to `WIDEST`."""
    assert max(hidden, inputs, projected) <= WIDEST
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, scale: float = 1.0) -> Tensor:
        values = (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1) * scale
        return values.requires_grad_()

    widths = {"H": hidden, "P": projected, "X": inputs}
    if cell.raw_x is not None:
        widths["X"] = widths[cell.raw_x]
    params = {}
    for param in cell.params:
        shape = param.shape(widths)
        params[param.name] = uniform(*shape, scale=shape[1] ** -0.5 if param.is_matrix else 1.0)
    state = tuple(uniform(rows, widths[s.width]) for s in cell.states)
    return Sample(params, uniform(steps, rows, widths["X"]), state, widths)


def assert_round_trip(cell: CellGraph) -> None:
    """The cell prints as text that reads back as the same cell and prints the same again."""
    text = str(cell)
    assert parse(text) == cell
    assert str(parse(text)) == text


def values_and_gradients(cell: CellGraph, at: Sample) -> list[Tensor]:
    """By the interpreter: outputs, last states, then the `gradients` of both by every leaf."""
    outputs, last = unroll(cell, at.params, at.x, at.state)
    return [outputs, *last, *gradients([outputs, *last], at.leaves)]


def gradients(results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a fixed projection of the results by every leaf; zeros where none flows."""
    rng = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for result in results:
        total = (
            total + (result * torch.randn(result.shape, generator=rng, dtype=torch.float64)).sum()
        )
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(total, list(leaves), allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]

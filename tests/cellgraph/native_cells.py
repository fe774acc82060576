"""What tests of the native backend share: random cells, numbers for them, and how results are
compared with the interpreter's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

import cellgraph as cg
from cellgraph.interpret import effective, unroll
from cellgraph.kernels import native
from cellgraph.sizes import concrete_widths
from tests.strategies import Sample, cells, gradients

Run = Callable[[Mapping[str, Tensor], Tensor, Sequence[Tensor]], tuple[Tensor, tuple[Tensor, ...]]]
LARGEST_CELL = 100  # nodes; a search stays below that


class Shape(NamedTuple):
    """Of a sequence. P is the width of states that declare one."""

    steps: int
    rows: int
    hidden: int
    inputs: int
    projected: int = 3


def evolved(count: int, seed: int) -> list[cg.CellGraph]:
    """Children, grandchildren and so on of the zoo: a quarter by crossover, others by mutation."""
    rng = random.Random(seed)
    zoo = [cg.load(name) for name in cg.zoo.names()]
    found: list[cg.CellGraph] = []
    while len(found) < count:
        # Half of the parents are the latest children, so that generations follow each other.
        parents = [rng.choice(found[-8:] if found and rng.random() < 0.5 else zoo) for _ in "ab"]
        crossed = rng.random() < 0.25
        child = cg.crossover(*parents, rng) if crossed else cg.mutate(parents[0], rng)
        if child is not None and len(child.nodes) <= LARGEST_CELL:
            found.append(child)
    return found


@cache
def drawn(count: int) -> list[cg.CellGraph]:
    """What hypothesis draws: cells of several states, widths, scalars, starts and lines."""
    found: dict[cg.CellGraph, None] = {}

    @settings(
        max_examples=2 * count + 10,  # it draws some twice
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cells())
    def draw(cell: cg.CellGraph) -> None:
        found[cell] = None

    draw()
    return list(found)[:count]


def numbers(
    cell: cg.CellGraph, shape: Shape, dtype: torch.dtype, seed: int, scale: float = 1.0
) -> Sample:
    """Normal numbers of this size that require gradients; matrices keep the size of a vector."""
    rng = torch.Generator().manual_seed(seed)
    declared = dict.fromkeys(cell.widths[1:], shape.projected)
    widths = concrete_widths(cell, shape.inputs, shape.hidden, declared)

    def normal(*size: int) -> Tensor:
        spread = scale * (size[1] ** -0.5 if len(size) == 2 else 1.0)
        values = torch.randn(size, generator=rng, dtype=torch.float64) * 0.7 * spread
        return values.to(dtype).requires_grad_()

    params = {p.name: normal(*p.shape(widths)) for p in cell.params}
    x = normal(shape.steps, shape.rows, widths["X"])
    state = tuple(normal(shape.rows, widths[s.width]) for s in cell.states)
    return Sample(params, x, state, widths)


def exact(at: Sample) -> Sample:
    """The same numbers in float64."""

    def double(value: Tensor) -> Tensor:
        return value.detach().double().requires_grad_()

    params = {name: double(value) for name, value in at.params.items()}
    return Sample(params, double(at.x), tuple(double(s) for s in at.state), at.widths)


def results(run: Run, at: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and last states, and the gradients of a projection of all of them by every leaf."""
    y, last = run(at.params, at.x, at.state)
    return [y, *last], gradients([y, *last], at.leaves)


def defined(cell: cg.CellGraph) -> Run:
    """The interpreter."""
    return lambda params, x, state: unroll(cell, params, x, state)


def compiled(cell: cg.CellGraph) -> Run:
    """The native backend, with states (B, width) as the interpreter has them."""
    runner = native.Runner(cell)

    def run(
        params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, last = runner(effective(cell, params), x, [value.unsqueeze(0) for value in state])
        return y, tuple(value.squeeze(0) for value in last)

    return run


def largest_within(run: Run, at: Sample) -> float:
    """Of all gradients on their way back through the graph of torch's operations."""
    y, last = run(at.params, at.x, at.state)
    found = [0.0]

    def note(given: Sequence[Tensor | None]) -> None:
        found.append(max((largest([g]) for g in given if g is not None), default=0.0))

    stack = [result.grad_fn for result in (y, *last)]
    seen = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            node.register_prehook(note)
            stack += [before for before, _ in node.next_functions]
    gradients([y, *last], at.leaves)
    return max(found)


def largest(tensors: Sequence[Tensor]) -> float:
    """Of all elements; NaN where there is one."""
    return float(torch.stack([t.detach().abs().amax() for t in tensors]).amax())


def error(found: Sequence[Tensor], expected: Sequence[Tensor], floor: float = 0.0) -> float:
    """The largest difference within a tensor over its largest finite element (or `floor`, if that
    is larger), the worst of all tensors; infinite where NaN or infinities stand elsewhere."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        mine, wanted = one.detach().double(), other.detach().double()
        same = (mine == wanted) | (mine.isnan() & wanted.isnan())
        gap = float(torch.where(same, 0.0, (mine - wanted).abs()).amax())
        size = float(torch.where(wanted.isfinite(), wanted.abs(), floor).amax())
        if gap:
            worst = max(worst, math.inf if math.isnan(gap) else gap / max(size, floor, 5e-324))
    return worst

"""Does an exported layer compute what its cell means? The interpreter says what that is.

Letters: T time steps, B batch rows, X input width, D directions, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cellgraph import layer as layers
from cellgraph.errors import CellError
from cellgraph.exporters import STEPS, TOLERANCE, Difference
from cellgraph.graph import CellGraph
from cellgraph.interpret import Runner
from cellgraph.layer import CellLayer

ROWS = (1, 3)  #: at every length
ROUNDING = 1e-6  #: what float32 may lose of a value near 1 in a few operations
LOST = 1e-3  #: doubt from which on many steps tell nothing: what grows so grows unevenly
LARGEST = 10.0  #: states that single steps are looked at from; those of some cells grow for ever

#: What a layer gives: the outputs (T, B, ·) and the last states.
Result = tuple[Tensor, Sequence[Tensor]]
#: An exported layer: of x (T, B, X) and a state (L·D, B, width) for each of the cell, float32.
Run = Callable[[Tensor, tuple[Tensor, ...]], Result]


@dataclass(frozen=True)
class Case:
    """One call, and what it should return: outputs and last states, in float32. `doubt`: how far
    the last digits of float32 lead there, which for a cell that is chaotic is far."""

    x: Tensor
    state: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    doubt: float

    def __str__(self) -> str:
        return f"T = {self.x.shape[0]}, B = {self.x.shape[1]}"


def concrete(
    cell: CellGraph,
    sizes: Mapping[str, Any],
    widths: Mapping[str, int],
    given: CellLayer | None,
) -> CellLayer:
    """The layer that is exported, with its weights, in float32 on the CPU and for inference: a copy
    of the given one; without one, what `compile` makes of the cell after torch.manual_seed(0), its
    widths beside H as wide as H where `widths` does not say."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = layers.compile(
            cell,
            **sizes,
            widths={name: widths.get(name, sizes["hidden_size"]) for name in cell.widths[1:]},
            backend="eager",
            dtype=torch.float32,
        )
    if given is not None:
        made.load_state_dict(given.state_dict())
    return made.eval()


def interpreted(layer: CellLayer) -> CellLayer:
    """A copy of a layer, for inference in float64, that the interpreter computes."""
    copied = deepcopy(layer).double().eval()
    copied.run = Runner(layer.cell)
    copied.batch_first = False
    return copied


class _Reference:
    """The interpreter on the weights of a layer, in float64 and in float32."""

    def __init__(self, layer: CellLayer) -> None:
        self.layer = layer
        self.exact, self.rough = interpreted(layer), interpreted(layer).float()
        self.exact.requires_grad_(False)
        self.rough.requires_grad_(False)
        self.rng = torch.Generator().manual_seed(0)

    def draw(self, count: int, batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x and states that are not zero."""
        x = torch.randn(count, batch, self.layer.input_size, generator=self.rng)
        shapes = [(len(self.layer.cells), batch, size) for size in self.layer.state_sizes]
        return x, tuple(0.5 * torch.randn(shape, generator=self.rng) for shape in shapes)

    def case(self, x: Tensor, state: tuple[Tensor, ...]) -> Case:
        found = _flat(self.rough(x, _given(state)))
        entered = [x.double(), *(value.double() for value in state)]
        wanted = _flat(self.exact(entered[0], _given(tuple(entered[1:]))))
        moved = [v + ROUNDING * torch.randn(v.shape, generator=self.rng).double() for v in entered]
        other = _flat(self.exact(moved[0], _given(tuple(moved[1:]))))
        pairs = [*zip(found, wanted, strict=True), *zip(other, wanted, strict=True)]
        return Case(x, state, found, max(_distance(a, b) for a, b in pairs))

    def met(self, x: Tensor, state: tuple[Tensor, ...]) -> Case:
        """One step from each of the states that x (T, B, X) leads through, as rows of one call, as
        long as they are no larger than `LARGEST`."""
        at, states = tuple(value.double() for value in state), []
        for moment in x.double():
            states.append(at)
            at = _flat(self.exact(moment[None], _given(at)))[1:]
        rows = tuple(torch.cat(values, 1) for values in zip(*states, strict=True))
        small = torch.stack([(value.abs() <= LARGEST).all(0).all(-1) for value in rows]).all(0)
        given = tuple(value[:, small].float() for value in rows)
        return self.case(x.reshape(1, -1, x.shape[-1])[:, small], given)


def cases(layer: CellLayer) -> Iterator[Case]:
    """Calls of every length and number of rows, from states that are not zero; the last is of one
    step, from every state that a long one passes through: no rounding has grown there."""
    reference = _Reference(layer)
    for count in STEPS:
        for batch in ROWS:
            x, state = reference.draw(count, batch)
            yield reference.case(x, state)
    yield reference.met(x, state)


def largest_difference(layer: CellLayer, run: Run) -> Difference:
    """Between an exported layer and the interpreter, over all `cases`; as `compared`."""
    return compared(layer, ((case, run(case.x, case.state)) for case in cases(layer)))


@torch.no_grad()
def compared(layer: CellLayer, answers: Iterable[tuple[Case, Result]]) -> Difference:
    """What an exported layer gives for `cases`, beside what it should. Raises `CellError` where the
    difference is more than `TOLERANCE` and than rounding explains, where one is finite and the
    other is not, unless rounding explains anything, and where shapes differ."""
    found: dict[int, float] = {}  # by steps
    for case, (y, last) in answers:
        steps = len(case.x)
        tells = steps == 1 or case.doubt < LOST
        allowed = max(TOLERANCE, 8 * case.doubt) if tells else math.inf
        names = ["the output", *(f"the last {state.name}" for state in layer.cell.states)]
        for name, value, wanted in zip(names, (y, *last), case.expected, strict=True):
            if value.shape != wanted.shape:
                raise CellError(
                    f"the exported {layer.cell.name} gives {name} the shape {tuple(value.shape)} "
                    f"at {case}, expected {tuple(wanted.shape)}"
                )
            distance = _distance(value, wanted)
            if not distance <= allowed:
                raise CellError(
                    f"the exported {layer.cell.name} is not the cell: {name} at {case} differs by "
                    f"{distance:.3g}, expected at most {TOLERANCE:g}"
                )
            if tells:
                found[steps] = max(found.get(steps, 0.0), distance)
    return Difference(max(found.values()), found[1], max(found))


@torch.no_grad()
def loss(changed: CellLayer, layer: CellLayer) -> float:
    """The largest difference that other weights make: of a changed copy from a layer, over all
    cases, measured as in `largest_difference`."""
    run, largest = interpreted(changed).float(), 0.0
    for case in cases(layer):
        pairs = zip(_flat(run(case.x, _given(case.state))), case.expected, strict=True)
        largest = max(largest, *(_distance(value, wanted) for value, wanted in pairs))
    return largest


def _distance(value: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to `wanted` where that is above 1; infinite where only one
    of them is finite."""
    value, wanted = value.double(), wanted.double()
    finite = value.isfinite()
    if not torch.equal(finite, wanted.isfinite()):
        return float("inf")
    value, wanted = value[finite], wanted[finite]
    if value.numel() == 0:
        return 0.0
    return float(((value - wanted).abs() / wanted.abs().clamp(min=1.0)).max())


def _given(state: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """As a layer takes states."""
    return state[0] if len(state) == 1 else state


def _flat(results: tuple[Tensor, Tensor | tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    y, last = results
    return (y, *last) if isinstance(last, tuple) else (y, last)

"""How a new cell behaves before any training, at several parameter scales in one pass.

Lives here: drawing parameters and inputs, a short unroll with its gradients, a long one without.
What counts as bad is decided in screen.py. A step costs a microsecond or two for each node,
whatever its size, so all scales run together, as independent cells with parameters of their own.

Letters for shapes: T time steps, S scales, B rows, X input width, K and N widths of a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cellgraph.graph import CellGraph, Param
from cellgraph.interpret import effective
from cellgraph.ops import OPS
from cellgraph.schedule import Pointwise, Product, lower
from cellgraph.sizes import concrete_widths, output_width

HIDDEN, ROWS = 16, 4  #: units of the cell, and rows of the batch

#: A row of memorisation: 10 steps, and each of 5 symbols is asked for 5 steps after it was read.
LENGTH, LAG = 10, 5


@dataclass(frozen=True)
class Start:
    """All that is drawn at random, for S scales."""

    widths: dict[str, int]
    params: dict[str, Tensor]  # stored: matrices (S, K, N), vectors (S, 1, N), scalars (S, 1, 1)
    x: Tensor  # (T, S, B, X), T at least LENGTH
    projection: Tensor  # (LENGTH - LAG, 1, 1, N)


@dataclass(frozen=True)
class Behaviour:
    """The first LENGTH steps at one scale, from the zero state. Outputs are those from step LAG on.

    finite     steps before the first in which a state or an output is not finite
    size       largest magnitude of the outputs
    variation  root mean square of their deviations from the mean over the rows
    memory     the same of their change when rows exchange their first input, which lies LAG steps
               back or more
    params     norm of the gradient of their projection by all parameters
    state      the same by the states after the first step
    """

    finite: int
    size: float
    variation: float
    memory: float
    params: float
    state: float


def draw(cell: CellGraph, scales: Sequence[float], steps: int, seed: int) -> Start:
    """Parameters as layers draw them, U[-s/√H, s/√H] and then the cell's `init`, and x from the
    same interval, as embeddings are drawn."""
    rng = torch.Generator().manual_seed(seed)
    widths = concrete_widths(cell, HIDDEN, HIDDEN, dict.fromkeys(cell.widths[1:], HIDDEN // 2))

    def uniform(*shape: int) -> Tensor:
        """(S, *shape)"""
        noise = torch.empty(len(scales), *shape, dtype=torch.float32)
        noise.uniform_(-1.0, 1.0, generator=rng)
        for part, scale in zip(noise, scales, strict=True):
            part.mul_(scale / HIDDEN**0.5)
        return noise

    params = {p.name: _started(p, uniform(*p.shape(widths))) for p in cell.params}
    x = uniform(max(steps, LENGTH), ROWS, widths["X"]).transpose(0, 1)
    shape = (LENGTH - LAG, 1, 1, widths[output_width(cell)])
    return Start(widths, params, x, torch.randn(shape, generator=rng, dtype=torch.float32))


def _started(param: Param, noise: Tensor) -> Tensor:
    """The noise (S, *shape) with the parameter's `init`, laid out for `unroll`."""
    if param.init is not None:
        value = torch.tensor(param.init.value, dtype=torch.float32)  # too large is infinite
        if param.init.kind == "constant":
            noise.copy_(value)
        else:
            noise.diagonal(dim1=1, dim2=2).add_(value)
    if param.is_matrix:
        return noise.transpose(1, 2).contiguous()
    return noise.reshape(len(noise), 1, -1)


def unroll(cell: CellGraph, start: Start, steps: int) -> list[list[Tensor]]:
    """The first `steps` steps from the zero state: the next states, then the output, of each.

    (S, B, width) each. The output must depend on a state. As the eager backend does it, with one
    more axis.
    """
    schedule, params = lower(cell), effective(cell, start.params)
    x = start.x[:steps]
    slots = [x] * schedule.size
    for value, slot in schedule.consts:
        slots[slot] = torch.tensor(value, dtype=x.dtype).reshape(1, 1, 1)
    for name, slot in schedule.params:
        slots[slot] = params[name]
    for instruction in schedule.before:
        _function(instruction, params, slots, torch.matmul)(0)
    for slot in schedule.fixed:
        slots[slot] = slots[slot].expand(*x.shape[1:3], -1)

    program = [_function(i, params, slots, torch.bmm) for i in schedule.step]
    series = [(slot, slots[slot].unbind(0)) for slot in schedule.carried]
    current = {
        s.name: x.new_zeros((*x.shape[1:3], start.widths[s.width]), requires_grad=x.requires_grad)
        for s in cell.states
    }
    history: list[list[Tensor]] = []
    for t in range(steps):
        for slot, values in series:
            slots[slot] = values[t]
        for name, slot in schedule.states:
            slots[slot] = current[name]
        for function in program:
            function(t)
        current = {name: slots[slot] for name, slot in schedule.nexts}
        history.append([*current.values(), slots[schedule.output]])
    return history


def _function(
    instruction: Pointwise | Product,
    params: Mapping[str, Tensor],
    slots: list[Tensor],
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[int], None]:
    """The instruction as a function of the time step that reads and writes `slots`."""
    if isinstance(instruction, Pointwise):
        op, out = partial(OPS[instruction.op].eager, torch), instruction.out
        first, last = instruction.args[0], instruction.args[-1]

        def unary(t: int) -> None:
            slots[out] = op(slots[first])

        def binary(t: int) -> None:
            slots[out] = op(slots[first], slots[last])

        return unary if len(instruction.args) == 1 else binary

    weight = torch.cat([params[m] for m in instruction.matrices], -1)  # (S, K, N)
    sizes = [params[m].shape[-1] for m in instruction.matrices]
    operand, outs = instruction.operand, instruction.outs
    bases: tuple[Tensor, ...] = ()
    if instruction.bases:
        bases = torch.cat([slots[b] for b in instruction.bases], -1).unbind(0)  # T × (S, B, N)

    def product(t: int) -> None:
        value = multiply(slots[operand], weight)
        if bases:
            value = value + bases[t]
        for slot, part in zip(outs, value.split_with_sizes(sizes, -1), strict=True):
            slots[slot] = part

    return product


def behaviours(cell: CellGraph, start: Start) -> list[Behaviour]:
    """The first LENGTH steps and their gradients: one `Behaviour` for each scale."""
    scales, rows = start.x.shape[1:3]
    with torch.inference_mode(False), torch.enable_grad():
        first, later = start.x[:1], start.x[1:LENGTH]
        twice = [torch.cat([first, first.roll(1, 2)], 2), torch.cat([later, later], 2)]
        # With gradients by x there are some by every state, whatever comes before it.
        x = torch.cat(twice).requires_grad_()  # (T, S, 2 B, X)
        params = {name: value.clone().requires_grad_() for name, value in start.params.items()}
        history = unroll(cell, replace(start, params=params, x=x), LENGTH)
        outputs = torch.stack([values[-1] for values in history[LAG:]])  # (T, S, 2 B, N)
        leaves = [*params.values(), *history[0][:-1]]
        gradients = _gradients((outputs * start.projection.clone()).sum(), leaves)
    with torch.no_grad():
        once, again = outputs.double().split(rows, 2)
        columns = (
            outputs.abs().amax((0, 2, 3)),
            _root_mean_square(once - once.mean(2, keepdim=True)),
            _root_mean_square(once - again),
            _norms(gradients[: len(params)], scales),
            _norms(gradients[len(params) :], scales),
        )
        measured = zip(finite_steps(history), *(c.tolist() for c in columns), strict=True)
        return [Behaviour(*values) for values in measured]


def _gradients(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of `total` by each of `leaves`; zeros where none flows."""
    found: dict[int, Tensor | None] = {}
    able = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
    if total.requires_grad and able:
        some = torch.autograd.grad(total, [leaves[i] for i in able], allow_unused=True)
        found = dict(zip(able, some, strict=True))
    pairs = [(leaf, found.get(i)) for i, leaf in enumerate(leaves)]
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in pairs]


def _root_mean_square(values: Tensor) -> Tensor:
    """Of values (T, S, B, N), for each scale."""
    return values.square().mean((0, 2, 3)).sqrt()


def _norms(parts: Sequence[Tensor], scales: int) -> Tensor:
    """One Euclidean norm for each scale over parts (S, …); in float64, where no square of a float32
    over- or underflows."""
    total = torch.zeros(scales, dtype=torch.float64)
    for part in parts:
        total += part.double().square().flatten(1).sum(1)
    return total.sqrt()


def lasting(cell: CellGraph, start: Start, steps: int) -> list[int]:
    """For each scale, how many of the first `steps` steps there are before one is not finite."""
    with torch.inference_mode():
        return finite_steps(unroll(cell, start, steps))


def finite_steps(history: Sequence[Sequence[Tensor]]) -> list[int]:
    """For each scale, the steps before the first in which a value (S, B, ·) is not finite."""
    kinds = [torch.stack(values) for values in zip(*history, strict=True)]  # (T, S, B, ·)
    good = torch.stack([v.isfinite().flatten(2).all(2) for v in kinds]).all(0)  # (T, S)
    return [int(n) for n in good.long().cumprod(0).sum(0)]

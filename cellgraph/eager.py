"""The eager backend: runs a schedule with ordinary torch operations, on any device, differentiable
as often as one likes.

Letters: T time steps, B batch rows, K width of an operand, N width of a stacked product, H hidden
width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from cellgraph.graph import CellGraph
from cellgraph.ops import OPS
from cellgraph.schedule import Pointwise, Product, lower


class Runner:
    """The eager backend for one cell."""

    def __init__(self, cell: CellGraph) -> None:
        self.schedule = lower(cell)

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All time steps of one layer in one direction.

        `x` (T, B, X), T ≥ 1; one (1, B, width) tensor per state, as a stack of one layer has them;
        `mask` (T, B, 1) bool, False where a sequence has ended and its states stand still. With
        `tokens` (T, B) whole numbers, `x` is a table (V, X) to look them up in. Returns the outputs
        (T, B, H) and the last states, as the first ones.
        """
        if tokens is not None:
            x = functional.embedding(tokens, x)
        schedule = self.schedule
        slots: list[Tensor] = [x] * schedule.size
        for value, slot in schedule.consts:
            slots[slot] = torch.tensor(value, dtype=x.dtype, device=x.device)
        for name, slot in schedule.params:
            slots[slot] = params[name]
        for instruction in schedule.before:
            run_before(instruction, params, slots)

        rows, hoisted = x.shape[1], slots[schedule.output]
        for slot in schedule.fixed:
            slots[slot] = slots[slot].expand(rows, slots[slot].shape[-1])
        series = [(slot, slots[slot].unbind(0)) for slot in schedule.carried]
        step = [_compiled(instruction, params, slots) for instruction in schedule.step]
        order = {name: i for i, (name, _) in enumerate(schedule.nexts)}
        reads = [(order[name], slot) for name, slot in schedule.states]
        outputs: list[Tensor] = []
        current = [value[0] for value in state]  # (B, width)
        # A row that has ended repeats its last real step, from the state before it: a step from the
        # state after it may be one that the sequence never takes, and where() lets its NaN into
        # gradients.
        before = current
        for t in range(x.shape[0]):
            for slot, values in series:
                slots[slot] = values[t]
            before = _while_running(mask, t, current, before)
            for index, slot in reads:
                slots[slot] = before[index]
            for instruction_at in step:
                instruction_at(slots, t)
            following = [slots[slot] for _, slot in schedule.nexts]
            current = _while_running(mask, t, following, current)
            if not schedule.output_before:
                outputs.append(slots[schedule.output])
        last = tuple(value.unsqueeze(0) for value in current)
        if schedule.output_before:
            return hoisted.expand(x.shape[0], rows, hoisted.shape[-1]), last
        return torch.stack(outputs), last


def _while_running(
    mask: Tensor | None, t: int, new: list[Tensor], old: list[Tensor]
) -> list[Tensor]:
    """`new` in the rows whose sequence has not ended at step t, `old` in the others."""
    if mask is None:
        return new
    return [torch.where(mask[t], n, o) for n, o in zip(new, old, strict=True)]


def stack(product: Product, params: Mapping[str, Tensor]) -> Tensor:
    """The matrices of a product on top of each other, (N, K)."""
    return (
        torch.cat([params[m] for m in product.matrices])
        if len(product.matrices) > 1
        else params[product.matrices[0]]
    )


def run_before(
    instruction: Pointwise | Product, params: Mapping[str, Tensor], slots: list[Tensor]
) -> None:
    """One instruction for all time steps at once."""
    if isinstance(instruction, Pointwise):
        args = (slots[a] for a in instruction.args)
        slots[instruction.out] = OPS[instruction.op].eager(torch, *args)
        return
    stacked = functional.linear(slots[instruction.operand], stack(instruction, params))
    parts = stacked.split([params[m].shape[0] for m in instruction.matrices], dim=-1)  # (T, B, H)
    for slot, part in zip(instruction.outs, parts, strict=True):
        slots[slot] = part


def _compiled(
    instruction: Pointwise | Product, params: Mapping[str, Tensor], slots: list[Tensor]
) -> Callable[[list[Tensor], int], None]:
    """The instruction as a function of (slots, t), with everything that does not change over time
    bound once."""
    if isinstance(instruction, Pointwise):
        op, out = partial(OPS[instruction.op].eager, torch), instruction.out
        if len(instruction.args) == 1:
            only = instruction.args[0]

            def unary(slots: list[Tensor], t: int) -> None:
                slots[out] = op(slots[only])

            return unary
        left, right = instruction.args

        def binary(slots: list[Tensor], t: int) -> None:
            slots[out] = op(slots[left], slots[right])

        return binary

    weight = stack(instruction, params).t()  # (K, N)
    operand, outs = instruction.operand, instruction.outs
    sizes = [params[m].shape[0] for m in instruction.matrices]
    bases: tuple[Tensor, ...] = ()
    if instruction.bases:
        bases = torch.cat([slots[b] for b in instruction.bases], dim=-1).unbind(0)  # T × (B, N)

    def product(slots: list[Tensor], t: int) -> None:
        value = (
            torch.addmm(bases[t], slots[operand], weight) if bases else slots[operand] @ weight
        )  # (B, N)
        for slot, part in zip(outs, value.split_with_sizes(sizes, dim=1), strict=True):
            slots[slot] = part

    return product

"""A backend for tracing: the loop over time is one operation of torch, `scan`, so that a traced
program takes any number of steps. A loop of Python would be written out for the steps it was traced
with.

Letters: T time steps, B batch rows, H output width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.nn import functional

from cellgraph.eager import run_before, stack
from cellgraph.errors import CellError
from cellgraph.exporters.plan import args, outs
from cellgraph.graph import CellGraph
from cellgraph.ops import OPS
from cellgraph.schedule import Pointwise, Product, lower


class Runner:
    """The schedule of a cell around one `torch.ops.higher_order.scan`."""

    def __init__(self, cell: CellGraph) -> None:
        self.schedule = schedule = lower(cell)
        # Slots behind those of the schedule: an unused series, an unused value, and of every
        # product its weight and what is added to it.
        self.no_series, self.no_value, *rest = range(
            schedule.size, schedule.size + 2 + 2 * len(schedule.step)
        )
        products = [i for i in schedule.step if isinstance(i, Product)]
        self.weights = dict(zip(products, rest, strict=False))
        self.bases = dict(
            zip((p for p in products if p.bases), rest[len(products) :], strict=False)
        )
        self.size = schedule.size + 2 + 2 * len(schedule.step)
        # The operation counts its steps by a series, so it needs one. What stands still is written
        # to a file as a list, whose type torch guesses with a warning where it is empty.
        self.series = (*schedule.carried, *self.bases.values()) or (self.no_series,)
        made = {*self.series, *(slot for _, slot in schedule.states)}
        made.update(out for i in schedule.step for out in outs(i))
        read = [a for i in schedule.step for a in args(i)]
        read += [slot for _, slot in schedule.nexts]
        read += [] if schedule.output_before else [schedule.output]
        still = [slot for slot in dict.fromkeys(read) if slot not in made]
        self.still = (*still, *self.weights.values()) or (self.no_value,)

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `eager.Runner`, for sequences of one length that are not looked up."""
        if mask is not None or tokens is not None:
            raise CellError("a traced loop takes sequences of one length, and no tokens")
        schedule = self.schedule
        slots: list[Tensor] = [x] * self.size
        slots[self.no_value] = x.new_zeros(())
        for value, slot in schedule.consts:
            slots[slot] = torch.full((), value, dtype=x.dtype, device=x.device)
        for name, slot in schedule.params:
            slots[slot] = params[name]
        for instruction in schedule.before:
            run_before(instruction, params, slots)
        for product, slot in self.weights.items():
            slots[slot] = stack(product, params)
        for product, slot in self.bases.items():
            slots[slot] = torch.cat([slots[base] for base in product.bases], dim=-1)
        sizes = {p: [params[m].shape[0] for m in p.matrices] for p in self.weights}

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            """From states, one step of every series and what stands still to the next states and
            the output."""
            old = given[: len(schedule.nexts)]
            here = dict(zip((*self.series, *self.still), given[len(old) :], strict=True))
            previous = dict(zip((name for name, _ in schedule.nexts), old, strict=True))
            here.update((slot, previous[name]) for name, slot in schedule.states)
            for instruction in schedule.step:
                if isinstance(instruction, Pointwise):
                    operands = (here[a] for a in instruction.args)
                    here[instruction.out] = OPS[instruction.op].eager(torch, *operands)
                else:
                    value = self._product(instruction, here)
                    parts = value.split(sizes[instruction], dim=-1)
                    here.update(zip(instruction.outs, parts, strict=True))
            return self._results(here, old)

        firsts = [value[0] for value in state]
        results = scan_op(
            step, firsts, [slots[s] for s in self.series], tuple(slots[s] for s in self.still)
        )
        last = tuple(value.unsqueeze(0) for value in results[: len(firsts)])
        if schedule.output_before:
            hoisted = slots[schedule.output]
            return hoisted.expand(x.shape[0], x.shape[1], hoisted.shape[-1]), last
        return results[-1], last

    def _product(self, product: Product, here: Mapping[int, Tensor]) -> Tensor:
        operand, weight = here[product.operand], here[self.weights[product]]
        if product.bases:
            return torch.addmm(here[self.bases[product]], operand, weight.t())
        return functional.linear(operand, weight)

    def _results(self, here: Mapping[int, Tensor], old: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The next states and the output, each in memory of its own, which `scan` asks for."""
        schedule = self.schedule
        fresh = {i.out for i in schedule.step if isinstance(i, Pointwise)}
        results = []
        for (_, slot), before in zip(schedule.nexts, old, strict=True):
            value = here[slot]
            results.append(value if slot in fresh else value.expand_as(before).clone())
            fresh.discard(slot)
        if not schedule.output_before:
            value = here[schedule.output]
            results.append(value if schedule.output in fresh else value.clone())
        return tuple(results)

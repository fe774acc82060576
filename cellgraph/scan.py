"""The scan backend: linear elementwise recurrences for all time steps at once.

Which cells it can run and in which order their states are solved is `recurrence.py`. Everything but
the recurrences themselves is a handful of torch operations on whole sequences, on any device.

Letters: T time steps, B batch rows, K width of a state, C chunks of L steps each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cellgraph.errors import CellError
from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Node, topological
from cellgraph.ops import OPS
from cellgraph.recurrence import Recurrence, solve

SHORT = 8  #: steps below which a loop over them is as quick as anything


@dataclass(frozen=True)
class _Stage:
    """What to compute before a state is solved (`part` is None: for the output)."""

    nodes: tuple[Node, ...]
    part: Recurrence | None


class Runner:
    """The scan backend for one cell; raises `CellError` for a cell that it cannot run."""

    def __init__(self, cell: CellGraph) -> None:
        parts = solve(cell)
        if parts is None:
            raise CellError(
                f"the scan backend cannot run {cell.name}: expected states that are linear and "
                "elementwise in themselves and pass through no matrix and no function"
            )
        self.cell = cell
        self.next = {state.name: state.next for state in cell.states}
        self.stages = _stages(cell, parts)
        products = [n for s in self.stages for n in s.nodes if n.op == MATMUL]
        self.groups = {
            operand: [n for n in products if n.args[1] is operand]
            for operand in dict.fromkeys(n.args[1] for n in products)
        }

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `eager.Runner`."""
        if tokens is not None:
            x = functional.embedding(tokens, x)
        firsts = {s.name: value[0] for s, value in zip(self.cell.states, state, strict=True)}
        value: dict[Node, Tensor] = {}
        after: dict[str, Tensor] = {}  # (T, B, K): a state's next value at every step
        lengths = None if mask is None else mask.sum(0)  # (B, 1)
        for stage in self.stages:
            for node in stage.nodes:
                if node not in value:
                    self._evaluate(node, value, params, x)
            if stage.part is not None:
                name, first = stage.part.state, firsts[stage.part.state]
                after[name] = _solved(stage.part, value, first, x.shape[0], mask)
                value[Node(STATE, (), name)] = _before(after[name], first, lengths)
                # Where another state has the same next value, both have been computed.
                value.setdefault(self.next[name], after[name])
        y = value[self.cell.outputs[0]]
        y = y.expand(*x.shape[:2], y.shape[-1])
        return y, tuple(_last(after[s.name], lengths) for s in self.cell.states)

    def _evaluate(
        self, node: Node, value: dict[Node, Tensor], params: Mapping[str, Tensor], x: Tensor
    ) -> None:
        if node.op == INPUT:
            value[node] = x
        elif node.op == PARAM:
            value[node] = params[str(node.attr)]
        elif node.op == CONST:
            value[node] = torch.tensor(node.attr, dtype=x.dtype, device=x.device)
        elif node.op == MATMUL:
            members = self.groups[node.args[1]]
            matrices = [params[str(m.args[0].attr)] for m in members]
            stacked = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
            product = functional.linear(value[node.args[1]], stacked)  # (T, B, sum of widths)
            parts = product.split([matrix.shape[0] for matrix in matrices], dim=-1)
            value.update(zip(members, parts, strict=True))
        else:
            value[node] = OPS[node.op].eager(torch, *(value[a] for a in node.args))


def _stages(cell: CellGraph, parts: Sequence[Recurrence]) -> tuple[_Stage, ...]:
    """What is computed for one recurrence after the other, and at last for the output.

    What has been solved is a leaf: nothing below the next value of a state is computed again.
    """
    stages: list[_Stage] = []
    solved: set[Node] = set()  # for membership only
    nexts = {state.name: state.next for state in cell.states}
    for part in parts:
        roots = [node for node in (part.factor, part.term) if node is not None]
        stages.append(_Stage(_needed(roots, solved), part))
        solved |= {Node(STATE, (), part.state), nexts[part.state]}
    stages.append(_Stage(_needed(list(cell.outputs), solved), None))
    return tuple(stages)


def _needed(roots: Sequence[Node], solved: set[Node]) -> tuple[Node, ...]:
    """The nodes below the roots, arguments first, without what only serves what is solved."""
    wanted = dict.fromkeys(root for root in roots if root not in solved)
    order = topological(wanted)
    for node in reversed(order):  # users come before what they use
        if node in wanted:
            # Of a product the matrix is read by its name.
            args = node.args[1:] if node.op == MATMUL else node.args
            wanted |= dict.fromkeys(arg for arg in args if arg not in solved)
    return tuple(node for node in order if node in wanted)


def _solved(
    part: Recurrence,
    value: Mapping[Node, Tensor],
    first: Tensor,
    steps: int,
    mask: Tensor | None,
) -> Tensor:
    """The next value of a state at every step, (T, B, K); rows that have ended stand still."""
    shape = (steps, *first.shape)
    term = first.new_zeros(()) if part.term is None else value[part.term]
    if part.factor is None and mask is None:
        return term.expand(shape)
    factor = first.new_zeros(()) if part.factor is None else value[part.factor]
    if mask is not None:
        factor, term = torch.where(mask, factor, 1.0), torch.where(mask, term, 0.0)
    return scan(factor.expand(shape), term.expand(shape), first)


def _before(after: Tensor, first: Tensor, lengths: Tensor | None) -> Tensor:
    """The value of a state before every step, (T, B, K); behind its end a row repeats its last
    step, from the state before it, as it does in a loop (`eager.Runner`)."""
    before = torch.cat([first.unsqueeze(0), after[:-1]])
    if lengths is None:
        return before
    steps = torch.arange(len(after), device=after.device).unsqueeze(-1).unsqueeze(-1)  # (T, 1, 1)
    return before.gather(0, torch.minimum(steps, lengths - 1).expand_as(before))


def _last(after: Tensor, lengths: Tensor | None) -> Tensor:
    """The value of a state at the end of every row, (1, B, K)."""
    if lengths is None:
        return after[-1:]
    return after.gather(0, (lengths - 1).unsqueeze(0).expand_as(after[:1]))


def scan(factor: Tensor, term: Tensor, first: Tensor) -> Tensor:
    """h with h[t] = factor[t] * h[t - 1] + term[t] and h[-1] = first; all (T, B, K), first (B, K).

    Only products and sums, in another order than a loop: errors do not grow, and nothing is divided
    by. Where the product of up to sqrt(T) factors exceeds the range of the numbers, an exact zero
    that it would multiply becomes NaN. As often differentiable as one likes.
    """
    kind = torch.promote_types(torch.promote_types(factor.dtype, term.dtype), first.dtype)
    operands = factor.to(kind), term.to(kind), first.to(kind)
    if len(factor) < SHORT or torch.compiler.is_compiling():
        return _looped(*operands)
    result: Tensor = _Scan.apply(*operands)  # type: ignore[no-untyped-call]
    return result


def _looped(factor: Tensor, term: Tensor, first: Tensor) -> Tensor:
    steps = [first]
    for f, t in zip(factor.unbind(0), term.unbind(0), strict=True):
        steps.append(torch.addcmul(t, f, steps[-1]))
    return torch.stack(steps[1:])


class _Scan(torch.autograd.Function):
    """The gradient of a scan is a scan backwards: that of term[t] is the gradient of h[t], plus
    factor[t + 1] times that of term[t + 1]."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, term: Tensor, first: Tensor) -> Tensor:
        h = _chunked(factor, term, first)
        ctx.save_for_backward(factor, first, h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (dh,) = gradients
        factor, first, h = ctx.saved_tensors
        follower = torch.cat([factor[1:], torch.zeros_like(factor[:1])])  # factor[t + 1]
        by_term = scan(follower.flip(0), dh.flip(0), torch.zeros_like(first)).flip(0)
        before = torch.cat([first.unsqueeze(0), h[:-1]])
        return by_term * before, by_term, by_term[0] * factor[0]


def _chunked(factor: Tensor, term: Tensor, first: Tensor) -> Tensor:
    """The scan in about 3 sqrt(T) operations: all chunks at once, each from zero, then the state
    from chunk to chunk, then what that adds to every step."""
    steps = len(factor)
    length = isqrt(steps - 1) + 1
    chunks = -(-steps // length)
    missing = chunks * length - steps
    if missing:
        factor = torch.cat([factor, factor.new_zeros(missing, *factor.shape[1:])])
        term = torch.cat([term, term.new_zeros(missing, *term.shape[1:])])
    factors = factor.reshape(chunks, length, -1)  # (C, L, B K)
    terms = term.reshape(chunks, length, -1)
    h, product = torch.empty_like(terms), torch.empty_like(factors)
    h[:, 0], product[:, 0] = terms[:, 0], factors[:, 0]
    for step in range(1, length):
        torch.addcmul(terms[:, step], factors[:, step], h[:, step - 1], out=h[:, step])
        torch.mul(product[:, step - 1], factors[:, step], out=product[:, step])
    entering = torch.empty_like(h[:, 0])  # (C, B K): the state before each chunk
    entering[0] = first.reshape(-1)
    for chunk in range(1, chunks):
        torch.addcmul(
            h[chunk - 1, -1], product[chunk - 1, -1], entering[chunk - 1], out=entering[chunk]
        )
    h.addcmul_(product, entering.unsqueeze(1))
    return h.reshape(chunks * length, *term.shape[1:])[:steps]

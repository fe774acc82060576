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
        nodes = [node for stage in self.stages for node in stage.nodes]
        ends = [n for p in parts for n in (p.factor, p.term) if n is not None]
        read = [*(arg for node in nodes for arg in node.args), *ends, *cell.outputs]
        self.read = {str(node.attr) for node in read if node.op == STATE}  # before a step

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
                if name in self.read:
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
            # Each by itself: what is made of a stack of matrices would have to be cut up, and its
            # gradients put together again, a copy of everything both times.
            matrix, operand = node.args
            value[node] = functional.linear(value[operand], params[str(matrix.attr)])  # (T, B, H)
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
    """The gradient of a scan is a scan backwards."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, term: Tensor, first: Tensor) -> Tensor:
        h = _forwards(factor, term, first)
        ctx.save_for_backward(factor, first, h)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (dh,) = gradients
        factor, first, h = ctx.saved_tensors
        by_term: Tensor = _Reverse.apply(factor, dh)  # type: ignore[no-untyped-call]
        by_factor = _shifted(by_term, h, first)
        return by_factor, by_term, by_term[0] * factor[0]


class _Reverse(torch.autograd.Function):
    """g with g[t] = dh[t] + factor[t + 1] * g[t + 1]; its own gradient is a scan again."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, dh: Tensor) -> Tensor:
        g = _backwards(factor, dh)
        ctx.save_for_backward(factor, g)
        return g

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (dg,) = gradients
        factor, g = ctx.saved_tensors
        zero = torch.zeros_like(g[0])
        by_dh: Tensor = _Scan.apply(factor, dg, zero)  # type: ignore[no-untyped-call]
        return _shifted(g, by_dh, zero), by_dh


def _shifted(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """a[t] * b[t - 1], where b[-1] is first."""
    if torch.is_grad_enabled():
        return a * torch.cat([first.unsqueeze(0), b[:-1]])
    made = torch.empty_like(a)
    torch.mul(a[0], first, out=made[0])
    torch.mul(a[1:], b[:-1], out=made[1:])
    return made


def _forwards(factor: Tensor, term: Tensor, first: Tensor) -> Tensor:
    """The scan in about 3 sqrt(T) operations: all chunks at once, each from zero and for their ends
    alone; then from chunk to chunk; then all chunks at once, from the states that they begin with.
    Long sequences do not fit into caches: it counts how often each value is read and written."""
    chunks, length = _split(len(factor))
    h = torch.empty(term.shape, dtype=term.dtype, device=term.device)
    f, t, out = (_chunked(value, chunks, length) for value in (factor, term, h))
    end, product = t[:, 0].clone(), f[:, 0].clone()
    for step in range(1, length):
        torch.addcmul(t[:, step], f[:, step], end, out=end)
        product.mul_(f[:, step])
    entering = torch.empty_like(end)  # (C, B K): the state before each chunk
    entering[0] = first.reshape(-1)
    for chunk in range(1, chunks):
        before = chunk - 1
        torch.addcmul(end[before], product[before], entering[before], out=entering[chunk])
    for step in range(length):
        torch.addcmul(t[:, step], f[:, step], entering, out=out[:, step])
        entering = out[:, step]
    for step in range(chunks * length, len(factor)):  # what does not fill a chunk
        torch.addcmul(term[step], factor[step], h[step - 1], out=h[step])
    return h


def _backwards(factor: Tensor, dh: Tensor) -> Tensor:
    """The same from the end, of `_Reverse`."""
    chunks, length = _split(len(factor))
    whole = chunks * length
    g = torch.empty(dh.shape, dtype=dh.dtype, device=dh.device)
    if whole < len(g):
        g[-1] = dh[-1]
        for step in range(len(g) - 2, whole - 1, -1):
            torch.addcmul(dh[step], factor[step + 1], g[step + 1], out=g[step])
    f, d, out = (_chunked(value, chunks, length) for value in (factor, dh, g))
    # Behind a chunk: the factor of the step that follows it, and what comes from there.
    follower = torch.zeros_like(f[:, 0])
    follower[:-1] = f[1:, 0]
    entering = torch.zeros_like(follower)
    if whole < len(g):
        follower[-1], entering[-1] = factor[whole].reshape(-1), g[whole].reshape(-1)
    begin, product = d[:, -1].clone(), follower.clone()
    for step in range(length - 2, -1, -1):
        torch.addcmul(d[:, step], f[:, step + 1], begin, out=begin)
        product.mul_(f[:, step + 1])
    for chunk in range(chunks - 2, -1, -1):
        after = chunk + 1
        torch.addcmul(begin[after], product[after], entering[after], out=entering[chunk])
    torch.addcmul(d[:, -1], follower, entering, out=out[:, -1])
    for step in range(length - 2, -1, -1):
        torch.addcmul(d[:, step], f[:, step + 1], out[:, step + 1], out=out[:, step])
    return g


def _split(steps: int) -> tuple[int, int]:
    """Chunks and their length, about equal; less than a chunk may be left."""
    length = isqrt(steps)
    return steps // length, length


def _chunked(value: Tensor, chunks: int, length: int) -> Tensor:
    """(T, B, K) as (C, L, B K), without the steps that fill no chunk."""
    return value[: chunks * length].reshape(chunks, length, -1)

"""The interpreter: what a cell means. Node by node, step by step, no cleverness; every backend is
tested against it.

Letters: T time steps, B batch rows, X input width, H hidden width (or the width that a state
declares).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cellgraph.errors import CellError
from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Node
from cellgraph.ops import OPS, skew


def effective(cell: CellGraph, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What the cell computes with, by name, from the parameters as they are stored and learned: W -
    W^T for a matrix W that it declares skew, all else itself.

    Once for each parameter: the public functions here take stored parameters, layers apply this for
    the backends (`layer.Cell.tensors`), which take effective ones.
    """
    if not cell.skews:
        return stored
    return {**stored, **{name: skew(stored[name]) for name in cell.skews}}


def step(
    cell: CellGraph, params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One time step. `x` (B, X), one (B, width) tensor per state; returns the output and the next
    states. `params` as they are stored.

    When the cell uses raw x (`cell.raw_x`), x must already have that width.
    """
    return _step(cell, effective(cell, params), x, state)


def _step(
    cell: CellGraph, params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    previous = {s.name: value for s, value in zip(cell.states, state, strict=True)}
    value = values(cell.nodes, params, x, previous)
    rows = x.shape[0]
    output, *nexts = (
        value[n].expand(rows, value[n].shape[-1])
        for n in (*cell.outputs, *(s.next for s in cell.states))
    )
    return output, tuple(nexts)


def values(
    nodes: Iterable[Node], params: Mapping[str, Tensor], x: Tensor, previous: Mapping[str, Tensor]
) -> dict[Node, Tensor]:
    """The value of every node; arguments come first in `nodes`, as `topological` orders them.

    `params` are effective; `previous` holds the states by name.
    """
    value: dict[Node, Tensor] = {}
    for node in nodes:
        if node.op == INPUT:
            value[node] = x  # (B, X)
        elif node.op == STATE:
            value[node] = previous[str(node.attr)]  # (B, H)
        elif node.op == PARAM:
            value[node] = params[str(node.attr)]
        elif node.op == CONST:
            value[node] = torch.tensor(node.attr, dtype=x.dtype, device=x.device)
        elif node.op == MATMUL:
            matrix, operand = (
                value[a] for a in node.args
            )  # (H, X), (B, X) or (X,) when it is a parameter
            value[node] = operand @ matrix.T  # (B, H)
        else:
            value[node] = OPS[node.op].eager(torch, *(value[a] for a in node.args))
    return value


def unroll(
    cell: CellGraph, params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All time steps. `x` (T, B, X); returns the outputs (T, B, H) and the last states. `params` as
    they are stored."""
    return _unroll(cell, effective(cell, params), x, state)


def _unroll(
    cell: CellGraph, params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs = []
    current = tuple(state)
    for x_t in x:
        output, current = _step(cell, params, x_t, current)
        outputs.append(output)
    return torch.stack(outputs), current


class Runner:
    """The interpreter as a backend, for one cell."""

    def __init__(self, cell: CellGraph) -> None:
        self.cell = cell

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
            raise CellError("the interpreter takes sequences of one length, and no tokens")
        y, last = _unroll(self.cell, params, x, [value[0] for value in state])
        return y, tuple(value.unsqueeze(0) for value in last)

"""What the second implementations of the named cells share: the loop over time, the affine map."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear

Params = Mapping[str, Tensor]
Step = Callable[..., tuple[Tensor, ...]]


def unroll(
    step: Step, params: Params, x: Tensor, state: tuple[Tensor, ...], *, emits: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All time steps of x (T, B, X): the outputs (T, B, H) and the last states.

    A step that `emits` returns its output before the next states; else the output is the first
    state.
    """
    outputs = []
    for t in range(x.shape[0]):
        results = step(params, x[t], *state)
        outputs.append(results[0])
        state = results[1:] if emits else results
    return torch.stack(outputs), state


def both(p: Params, gate: str, x: Tensor, h: Tensor) -> Tensor:
    """W_gate x + U_gate h + b_gate, as two torch Linear layers compute it."""
    return linear(x, p[f"W_{gate}"], p[f"b_{gate}"]) + linear(h, p[f"U_{gate}"])


def of_x(p: Params, gate: str, x: Tensor) -> Tensor:
    """W_gate x + b_gate."""
    return linear(x, p[f"W_{gate}"], p[f"b_{gate}"])

"""The model a cell is trained in: embedding, recurrent layers, head, sized to a parameter budget.

Everything about shapes and initial values; nothing about losses or training (training.py).

Letters for shapes, as in training.py: T time steps, B batch, V vocabulary, F frame width, H units.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

import cellgraph as cg
from cellgraph import CellGraph
from evaluators.settings import Settings
from evaluators.task import Batch, Task


class Ends(Protocol):
    """What a model needs to know of its task: what goes in and how wide, how wide what comes out
    is."""

    @property
    def input_kind(self) -> Literal["tokens", "frames"]: ...
    @property
    def input_width(self) -> int: ...
    @property
    def output_width(self) -> int: ...


class Model(nn.Module):
    """tokens: Embedding(V, H), layers, Linear(H, V);  frames: layers on F inputs, Linear(H, F)."""

    def __init__(
        self,
        cell: CellGraph,
        task: Ends,
        settings: Settings,
        hidden_size: int,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        tokens = task.input_kind == "tokens"
        self.embedding = nn.Embedding(task.input_width, hidden_size) if tokens else None
        self.layers = cg.compile(
            cell,
            hidden_size if tokens else task.input_width,
            hidden_size,
            settings.layers,
            dropout=settings.dropout if settings.layers > 1 else 0.0,  # it acts between layers
            backend=backend,
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(hidden_size, task.output_width)
        self.hidden_size = hidden_size

    def scored(self, batch: Batch, state: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Logits (N, V or F) and targets (N,) or (N, F) of the N scored steps, and the next
        state."""
        y, state = self.outputs(batch.inputs, state)  # (T, B, H)
        y, targets, _ = scored_steps(y, batch)
        return self.head(y), targets, state

    def outputs(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What the head reads, (T, B, H), and the layers' new state."""
        if self.embedding is None:
            y, state = self.layers(inputs, state)
        else:
            y, state = self.layers.lookup(self.embedding.weight, inputs, state)
        return self.dropout(y), state

    def reset_parameters(self, scale: float, generator: torch.Generator) -> None:
        """Uniform in [-scale/sqrt(H), scale/sqrt(H)] (Jozefowicz 2015), then the `init` rules."""
        bound = scale / math.sqrt(self.hidden_size)
        with torch.no_grad():
            if self.embedding is not None:
                self.embedding.weight.uniform_(-bound, bound, generator=generator)  # (V, H)
            self.layers.reset_parameters(scale=scale, generator=generator)
            self.head.weight.uniform_(-bound, bound, generator=generator)  # (V, H)
            self.head.bias.uniform_(-bound, bound, generator=generator)  # (V,)


def scored_steps(y: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of (T, B, H) what the head reads, (N, H), with the targets, and where the N scored steps
    stand among the T·B; None for all of them.

    Steps outside the mask are cut out before the head: whatever stands there, it adds nothing.
    """
    y, targets = y.flatten(0, 1), batch.targets.flatten(0, 1)
    if batch.mask is None:
        return y, targets, None
    chosen = batch.mask.flatten().nonzero().squeeze(1)  # (N,)
    return y.index_select(0, chosen), targets.index_select(0, chosen), chosen


def build(
    cell: CellGraph, task: Task, settings: Settings, seed: int, backend: str = "auto"
) -> Model:
    """The largest model within `settings.params`, its initial values drawn from `seed` alone.

    Raises `CellError` when even one unit is too many, or when the cell does not compile.
    """
    hidden_size = hidden_size_for(cell, task, settings)
    with torch.random.fork_rng(
        devices=[]
    ):  # modules draw default values on construction; leave no trace of that
        model = Model(cell, task, settings, hidden_size, backend)
    model.reset_parameters(settings.scale, torch.Generator().manual_seed(seed))
    return model


def hidden_size_for(cell: CellGraph, task: Task, settings: Settings) -> int:
    """The H for which the parameter count is the largest within `settings.params`, by bisection."""

    def count(hidden_size: int) -> int:
        return count_parameters(cell, task, hidden_size, settings.layers)

    hidden_size = cg.hidden_size_for(count, settings.params)
    # The count grows with H, except at H == F, where a cell that reads raw x needs no projection.
    if task.input_kind == "frames" and count(task.input_width) <= settings.params:
        return max(hidden_size, task.input_width)
    return hidden_size


def count_parameters(cell: CellGraph, task: Task, hidden_size: int, layers: int) -> int:
    """Parameters of the whole model, without building it."""
    head = (hidden_size + 1) * task.output_width
    if task.input_kind == "tokens":
        embedding = task.input_width * hidden_size
        return embedding + cg.count_parameters(cell, hidden_size, hidden_size, layers) + head
    return cg.count_parameters(cell, task.input_width, hidden_size, layers) + head


def flops_per_step(cell: CellGraph, task: Task, hidden_size: int, layers: int) -> int:
    """Forward, one time step of one batch row, a multiply-add counted as 2; embeddings are free."""
    input_size = hidden_size if task.input_kind == "tokens" else task.input_width
    head = 2 * hidden_size * task.output_width
    return cg.flops_per_step(cell, input_size, hidden_size, layers) + head

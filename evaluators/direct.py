"""A training step of a model of one compiled layer, without autograd.

Of a small model, recording a graph and walking it back costs more than all arithmetic of the cell.
The chain here is short and always the same: what the cell reads, the compiled cell, the head, the
loss. So the gradient of head and loss is written out, and every gradient is written where it stays.
Only where a cell wants its inputs prepared (a projection, `tanh(x)`, a function of a parameter, a
skew matrix) has that part a graph.

Letters for shapes, as in training.py: T time steps, B batch, V vocabulary, F frame width, H units,
N scored steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from cellgraph.backends import compiled
from cellgraph.kernels import native
from cellgraph.kernels.bound import Bound
from cellgraph.kernels.tensors import check_tokens
from cellgraph.parameters import Cell
from evaluators.model import Model, scored_steps
from evaluators.task import Batch, Task


@dataclass
class _Shape:
    """Everything that stays for batches of one shape."""

    inputs: Tensor  # (T, B) tokens, or (T, B, F) frames: the batch is copied into it
    read: Tensor  # the table of the embedding, or the frames
    first: list[Tensor]  # states, (1, B, ·) each
    tensors: list[Tensor]  # what the kernel reads
    prepared: list[int]  # which of them are computed anew for each batch
    gradients: list[Tensor | None]  # of the tensors
    untouched: list[Tensor]  # gradients of parameters that neither kernel nor head write
    bound: Bound


@dataclass
class _Pass:
    """What `backward` needs of the last `forward`."""

    shape: _Shape
    prepared: Sequence[Tensor]  # the kernel's tensors with their graphs; none where nothing has one
    y: Tensor  # (N, H)
    chosen: Tensor | None  # (N,), where they stand among the T·B
    scores: Tensor  # log-probabilities (N, V), or logits (N, F)
    targets: Tensor


class Direct:
    """`forward` and `backward` of one model; see `of` for which."""

    def __init__(self, model: Model, task: Task, kernel: native.Kernel) -> None:
        self.model, self.task, self.kernel = model, task, kernel
        self.cell = cast("Cell", model.layers.cells[0])
        self.parameters = list(model.parameters())
        self.gradients = [torch.zeros_like(p) for p in self.parameters]
        self._gradient_of = dict(zip(map(id, self.parameters), self.gradients, strict=True))
        self._shape: _Shape | None = None
        self._pass: _Pass | None = None

    @classmethod
    def of(cls, model: Model, task: Task) -> Direct | None:
        """For a model of one layer without dropout whose cell is compiled; None for others."""
        layers = model.layers
        if layers.num_layers > 1 or layers.bidirectional or model.dropout.p:
            return None
        kernel = compiled(layers.run, model.head.weight.dtype)
        return None if kernel is None else cls(model, task, kernel)

    def suits(self, batch: Batch) -> bool:
        """Would the layer look the tokens up behind the first products? The rest is left to it."""
        table = self.model.embedding
        return table is None or native.looks_up(batch.inputs, len(table.weight))

    @torch.no_grad()
    def forward(
        self, batch: Batch, state: Tensor | tuple[Tensor, ...] | None
    ) -> tuple[float, int, Tensor | tuple[Tensor, ...]]:
        """Nats summed over the scored steps, their number N, and the last state, as the layer takes
        and returns it; the next call overwrites it."""
        shape = self._bind(batch)
        shape.inputs.copy_(batch.inputs)
        if self.model.embedding is not None:
            check_tokens(shape.inputs, len(shape.read))
        states = (state,) if isinstance(state, Tensor) else state
        for at, first in enumerate(shape.first):
            first.zero_() if states is None else first.copy_(states[at])
        prepared = self._prepare(shape.read, shape.first) if shape.prepared else ()
        for at in shape.prepared:
            shape.tensors[at].copy_(prepared[at])
        shape.bound.forward()
        y, targets, chosen = scored_steps(shape.bound.output, batch)
        scores = self.model.head(y)
        if self.task.loss == "bernoulli":
            nats = functional.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
        else:
            scores = functional.log_softmax(scores, 1)
            nats = functional.nll_loss(scores, targets, reduction="sum")
        self._pass = _Pass(shape, prepared, y, chosen, scores, targets)
        last = shape.bound.last
        return nats.item(), len(targets), last[0] if len(last) == 1 else last

    @torch.no_grad()
    def backward(self, share: float) -> None:
        """Leave the gradient of what `forward` returned, times `share`, in the parameters; once
        after each `forward`."""
        made, self._pass = cast("_Pass", self._pass), None
        bound, weight = made.shape.bound, self.model.head.weight
        if self.task.loss == "bernoulli":
            slope = made.scores.sigmoid_().sub_(made.targets)
        else:
            slope = made.scores.exp_()
            hit = made.targets.unsqueeze(1)
            slope.scatter_add_(1, hit, slope.new_full((), -1.0).expand(hit.shape))
        slope.mul_(share)  # of the logits
        torch.mm(slope.t(), made.y, out=self._gradient_of[id(weight)])
        torch.sum(slope, 0, out=self._gradient_of[id(self.model.head.bias)])
        if made.chosen is None:
            torch.mm(slope, weight, out=bound.gradient.flatten(0, 1))
        else:
            bound.gradient.zero_()
            bound.gradient.flatten(0, 1).index_copy_(0, made.chosen, slope @ weight)
        for untouched in made.shape.untouched:
            untouched.zero_()
        bound.backward()
        for parameter, whole in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = whole
        pairs = [
            (made.prepared[at], gradient)
            for at in made.shape.prepared
            if (gradient := made.shape.gradients[at]) is not None
        ]
        if pairs:  # added to what is there
            values, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(values, gradients)

    def _bind(self, batch: Batch) -> _Shape:
        """The memory for batches of this shape: the last one's where it fits."""
        if self._shape is not None and self._shape.inputs.shape == batch.inputs.shape:
            return self._shape
        table, layers = self.model.embedding, self.model.layers
        inputs = torch.empty_like(batch.inputs, memory_format=torch.contiguous_format)
        inputs.copy_(batch.inputs)  # so that what is prepared for the first time is of real rows
        read = inputs if table is None else table.weight
        steps, rows = batch.inputs.shape[:2]
        first = [read.new_zeros(1, rows, size) for size in layers.state_sizes]
        call = native.Batch(steps, rows)
        if table is not None:
            call = native.Batch(steps, rows, None, inputs, len(table.weight))
        known = {id(t) for t in (read, *first, *self.parameters)}
        tensors: list[Tensor] = []
        prepared: list[int] = []
        gradients: list[Tensor | None] = []
        for at, tensor in enumerate(self._prepare(read, first)):
            if id(tensor) in known:
                tensors.append(tensor.detach())
                gradients.append(self._gradient_of.get(id(tensor)))
            else:
                prepared.append(at)
                tensors.append(tensor.detach().clone())
                gradients.append(torch.empty_like(tensors[at]) if tensor.requires_grad else None)
        written = {id(g) for g in gradients}
        written |= {id(self._gradient_of[id(p)]) for p in self.model.head.parameters()}
        untouched = [g for g in self.gradients if id(g) not in written]
        bound = Bound(self.kernel, call, tensors, gradients)
        self._shape = _Shape(inputs, read, first, tensors, prepared, gradients, untouched, bound)
        return self._shape

    @torch.enable_grad()
    def _prepare(self, read: Tensor, first: Sequence[Tensor]) -> list[Tensor]:
        """What the kernel reads, as the layer would give it."""
        return self.kernel.tensors(self.cell.tensors(), self.cell.enter(read), first)

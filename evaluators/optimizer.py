"""SGD and Adam over one flat vector, with clipping by the global norm.

The models here are small: with a vector for all parameters an update is a handful of calls, where
torch.optim makes several for each tensor and first imports torch's compiler (1.3 s a process).
Schedules are in schedule.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evaluators.settings import OptimizerName

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  #: Adam's defaults, Kingma and Ba 2015, algorithm 1
ALIGNMENT = 16  #: floats; every parameter starts at 64 bytes, where the allocator would have put it


class FlatOptimizer:
    """Moves `parameters` (float32), which become views of one vector, as do their gradients."""

    def __init__(self, parameters: Sequence[nn.Parameter], name: OptimizerName) -> None:
        room = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
        self.values, self.gradient = torch.zeros(sum(room)), torch.zeros(sum(room))
        vectors = zip(self.values.split(room), self.gradient.split(room), strict=True)
        for p, (values, gradient) in zip(parameters, vectors, strict=True):
            values[: p.numel()] = p.detach().flatten()
            p.data = values[: p.numel()].view_as(p)
            p.grad = gradient[: p.numel()].view_as(p)  # backward adds to what is there
        self.adam = name == "adam"
        self.steps = 0
        if self.adam:
            self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)

    def zero_grad(self) -> None:
        """Before every backward pass, which adds."""
        self.gradient.zero_()

    def clip(self, largest: float) -> float:
        """Scale the gradient down to the norm `largest`; returns the norm it had."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        if norm > largest:
            self.gradient.mul_(largest / norm)
        return norm

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update."""
        self.steps += 1
        if not self.adam:
            self.values.sub_(self.gradient, alpha=lr)
            return
        self.mean.lerp_(self.gradient, 1 - BETA1)
        self.square.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        root = self.square.sqrt().div_(math.sqrt(1 - BETA2**self.steps)).add_(EPSILON)
        self.values.addcdiv_(self.mean, root, value=-lr / (1 - BETA1**self.steps))

    def copy(self) -> Tensor:
        """The parameters as they are; for `restore`."""
        return self.values.clone()

    def restore(self, values: Tensor) -> None:
        """Put back what `copy` returned."""
        self.values.copy_(values)

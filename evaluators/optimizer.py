"""SGD and Adam over one flat vector, with clipping by the global norm.

The models here are small, and torch.optim makes several calls for each tensor (and first imports
torch's compiler, 1.3 s a process). Here one pass of compiled code does all of it; without a C
compiler, a handful of torch's operations on flat vectors. Schedules are in schedule.py.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellgraph.kernels import compiler
from evaluators.settings import OptimizerName

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  #: Adam's defaults, Kingma and Ba 2015, algorithm 1
ALIGNMENT = 16  #: elements; whole vectors of the C code, and 64 bytes as the allocator would align


class FlatOptimizer:
    """Moves `parameters`, of one real type and on the CPU, which become views of one vector.

    Each update is `zero_grad`, a backward pass, `clip` and `step`. A parameter without a gradient
    counts as one whose gradient is zero.

    compiled: False keeps to torch and starts no compiler.
    fallback: why torch does the updates, where they should have been compiled; otherwise None.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], name: OptimizerName, compiled: bool = True
    ) -> None:
        self.parameters = list(parameters)
        room = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
        self.values = torch.zeros(sum(room), dtype=self.parameters[0].dtype)
        for p, values in zip(parameters, self.values.split(room), strict=True):
            values[: p.numel()] = p.detach().flatten()
            p.data = values[: p.numel()].view_as(p)
            p.grad = None
        self.adam = name == "adam"
        self.steps = 0
        self.scale = 1.0
        if self.adam:
            self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        count = len(self.parameters)
        self._room = room
        self._sizes = (ctypes.c_long * count)(*(p.numel() for p in parameters))
        self._at = (ctypes.c_long * count)(*accumulate(room[:-1], initial=0))
        double = self.values.dtype == torch.float64
        self._library, self.fallback = _library(double) if compiled else (None, None)
        self._gradients: list[Tensor | None] | None = None  # as `clip` saw them, for `step`

    def zero_grad(self) -> None:
        """Before every backward pass, whose gradients then stay as they are."""
        for p in self.parameters:
            p.grad = None

    def clip(self, largest: float) -> float:
        """The norm of the gradient; `step` scales it down to `largest` where it is larger."""
        # Kept, because what `step` reads are the addresses of these tensors.
        gradients = [None if p.grad is None else p.grad.contiguous() for p in self.parameters]
        self._gradients = gradients
        if self._library is None:
            norm = float(torch.linalg.vector_norm(self._flat(gradients)))
        else:
            addresses = [None if g is None else g.data_ptr() for g in gradients]
            self._addresses = (ctypes.c_void_p * len(addresses))(*addresses)
            squared = self._library.squared_norm(len(addresses), self._sizes, self._addresses)
            norm = math.sqrt(squared)
        self.scale = largest / norm if norm > largest else 1.0
        return norm

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update along the gradient that `clip` has seen. Raises `RuntimeError` without one."""
        if self._gradients is None:
            raise RuntimeError("an update without a gradient, expected a call of clip before")
        gradients, self._gradients = self._gradients, None  # alive until the C code has returned
        self.steps += 1
        if self._library is None:
            self._step_in_torch(self._flat(gradients).mul_(self.scale), lr)
        elif not self.adam:
            self._library.sgd(*self._model(), self.scale, lr, self.values.data_ptr())
        else:
            self._library.adam(
                *self._model(),
                *(self.scale, lr, BETA1, BETA2, EPSILON),
                *(1 - BETA1**self.steps, 1 - BETA2**self.steps),
                *(self.values.data_ptr(), self.mean.data_ptr(), self.square.data_ptr()),
            )

    def _model(self) -> tuple[Any, ...]:
        return len(self._sizes), self._sizes, self._at, self._addresses

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """All gradients in one vector laid out as the values."""
        flat = torch.zeros_like(self.values)
        for vector, gradient in zip(flat.split(self._room), gradients, strict=True):
            if gradient is not None:
                vector[: gradient.numel()] = gradient.flatten()
        return flat

    def _step_in_torch(self, gradient: Tensor, lr: float) -> None:
        if not self.adam:
            self.values.sub_(gradient, alpha=lr)
            return
        self.mean.lerp_(gradient, 1 - BETA1)
        self.square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = self.square.sqrt().div_(math.sqrt(1 - BETA2**self.steps)).add_(EPSILON)
        self.values.addcdiv_(self.mean, root, value=-lr / (1 - BETA1**self.steps))

    def copy(self) -> Tensor:
        """The parameters as they are; for `restore`."""
        return self.values.clone()

    def restore(self, values: Tensor) -> None:
        """Put back what `copy` returned."""
        self.values.copy_(values)


@cache
def _library(double: bool) -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled updates, or why there are none; a process tries once, it can take 30 s."""
    text = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")
    try:
        (library,) = compiler.load([compiler.Source("optimizer", text)], double=double)
    except compiler.CompilerError as error:
        return None, f"the optimiser could not be compiled: {error}"
    whole, vector, number = ctypes.c_long, ctypes.c_void_p, ctypes.c_double
    library.squared_norm.argtypes = [whole, vector, vector]
    library.squared_norm.restype = number
    library.sgd.argtypes = [whole, *[vector] * 3, *[number] * 2, vector]
    library.adam.argtypes = [whole, *[vector] * 3, *[number] * 7, *[vector] * 3]
    library.sgd.restype = library.adam.restype = None
    return library, None

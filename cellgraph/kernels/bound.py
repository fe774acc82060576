"""A compiled cell on memory that stays where it is: one shape of call, made thousands of times.

`native.py` serves any call and autograd; of a small cell that costs several times what is computed.
Here addresses are found once, nothing is allocated in a call, and no graph is recorded: whoever
calls `forward` has filled the inputs, and fills the gradient of the output before `backward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cellgraph.kernels.native import Batch, Kernel, Memory


class Bound:
    """One kernel for one shape of sequence, with its way back.

    batch: the shape, and the tokens; it is read again in every call.
    tensors: what `Kernel.tensors` lists, contiguous; read again in every call.
    gradients: for each of them where its gradient is to be written, of the same shape and
        contiguous, or None where nobody wants it.

    Raises `CellError` for tensors that are not of the kernel's type or do not fit each other.
    """

    def __init__(
        self,
        kernel: Kernel,
        batch: Batch,
        tensors: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
    ) -> None:
        sizes = kernel.sizes(batch, kernel.widths(tensors), recording=True)
        given = kernel.addresses(tensors, sizes)
        like = tensors[0]
        self.output = like.new_empty(sizes.output)  # (T, B, ·), what `forward` computes
        self.last = tuple(like.new_empty(shape) for shape in sizes.last)  # (1, B, ·) each
        self.gradient = torch.zeros_like(self.output)  # of the output, for `backward`
        # The kernel reads and writes through the addresses of all these.
        kept = like.new_empty(sizes.tape + sum(sizes.histories))
        room = like.new_empty(max(sizes.room, sizes.room_back))
        self._memory = memory = Memory(batch, given, kept, sizes, room)
        self._tensors = tensors, gradients
        self._added_to = [
            g
            for g, whole in zip(gradients, kernel.written(batch), strict=True)
            if g is not None and not whole
        ]
        no_gradients = [None] * len(self.last)
        self._code, self._code_back = kernel.forward_code, kernel.backward_code
        self._call = kernel.call(memory, self.output, self.last)
        self._call_back = kernel.call_back(memory, self.gradient, gradients, no_gradients)

    def forward(self) -> None:
        """From the tensors to `output` and `last`."""
        self._code(*self._call)

    def backward(self) -> None:
        """From `gradient` to the gradients of the tensors; once after each `forward`."""
        for gradient in self._added_to:
            gradient.zero_()
        self._code_back(*self._call_back)

"""What of a tensor compiled code relies on, since it sees an address and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from cellgraph.errors import CellError


def checked(tokens: Tensor, entries: int) -> Tensor:
    """Tokens as the kernels read them, now and on the way back: a copy, whatever becomes of the
    caller's. Raises `CellError` for one that is no entry of the table."""
    if not (tokens.is_cpu and plain(tokens)):
        raise CellError(f"tokens are on {tokens.device}, expected plain memory on cpu")
    copied = torch.empty(tokens.shape, dtype=torch.int64).copy_(tokens)
    check_tokens(copied, entries)
    return copied


def check_tokens(tokens: Tensor, entries: int) -> None:
    """Raises `CellError` where one is no entry of the table."""
    low, high = (int(v) for v in tokens.aminmax())
    if low < 0 or high >= entries:
        raise CellError(
            f"token {low if low < 0 else high}, expected a number from 0 to {entries - 1}"
        )


def plain(*tensors: Tensor) -> bool:
    """Is what lies at the addresses of these tensors what they mean?"""
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.layout is torch.strided
        and not t.is_neg()
        and not t._is_zerotensor()
        and torch._C._has_storage(t)  # those of torch.func and of batched gradients have none
        for t in tensors
    )


def fits(tensor: Tensor, dtype: torch.dtype, length: int) -> bool:
    """Does code find so many numbers of this type at its address?"""
    memory = tensor.is_cpu and plain(tensor) and tensor.is_contiguous()
    return memory and tensor.dtype == dtype and tensor.shape == (length,)


def transformed() -> bool:
    """Is a transformation of torch.func, or a batch of gradients, on its way?"""
    return torch._C._functorch.peek_interpreter_stack() is not None

"""What computes a sequence: the backends by name, and the choice between them.

A backend is made for one cell and called as `eager.Runner` documents. Parameters, shapes and state
are the layer's business (`layer.py`); so a layer may change its backend between two calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cellgraph import eager, scan
from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.kernels import compiler, native, tensors
from cellgraph.recurrence import solve


class Runner(Protocol):
    """All time steps of one layer in one direction. `params` are effective (`interpret.py`)."""

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...


class Native:
    """Compiled C, or an error that says why not."""

    def __init__(self, cell: CellGraph) -> None:
        self.runner = native.Runner(cell)

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if (why := unsuited(params, x, state, tokens)) is not None:
            raise CellError(f'the native backend cannot run {why}, expected backend="eager"')
        self.kernel(x.dtype)
        return self.runner(params, x, state, mask, tokens)

    def kernel(self, dtype: torch.dtype) -> native.Kernel:
        """The compiled cell. Raises `CellError`."""
        try:
            return self.runner.kernel(dtype)
        except compiler.CompilerError as error:
            raise CellError(f"the native backend cannot be built: {error}") from error


class Auto:
    """Native where it can run; elsewhere without a loop, where the cell allows that, and eager
    where it does not. `fallback` says why not native, where that is the compiler's fault.

    Where there is compiled code it goes first, for cells that a scan could compute as well: its
    loop over time reads and writes every value once, a scan several times (`cellsearch bench
    kernels` measures both).
    """

    def __init__(self, cell: CellGraph) -> None:
        self.cell = cell
        self.native, self.eager = native.Runner(cell), eager.Runner(cell)
        self.fallback: str | None = None

    @cached_property
    def _scan(self) -> scan.Runner | None:
        # Made where native code cannot run, which for most layers is never.
        return scan.Runner(self.cell) if solve(self.cell) is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Auto, (self.cell,)  # what failed here may work where it is loaded

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        suits = self.fallback is None and unsuited(params, x, state, tokens) is None
        if suits and self.kernel(x.dtype) is not None:
            return self.native(params, x, state, mask, tokens)
        if self._scan is not None and _scannable(params, x, state, tokens):
            return self._scan(params, x, state, mask, tokens)
        return self.eager(params, x, state, mask, tokens)

    def kernel(self, dtype: torch.dtype) -> native.Kernel | None:
        """The compiled cell; None where it cannot be built, from then on."""
        if self.fallback is None:
            try:
                return self.native.kernel(dtype)
            except compiler.CompilerError as error:
                self.fallback = str(error)
                _say_once(self.fallback)
        return None


#: "auto" comes first: it is the default.
BACKENDS: dict[str, Callable[[CellGraph], Runner]] = {
    "auto": Auto,
    "native": Native,
    "scan": scan.Runner,
    "eager": eager.Runner,
}


def check_backend(name: str) -> str:
    """The name, if there is such a backend. Raises `CellError`."""
    if name not in BACKENDS:
        raise CellError(f"no backend named {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


def compiled(runner: Runner, dtype: torch.dtype) -> native.Kernel | None:
    """The kernel that a backend would call for plain tensors on the CPU, and None where it has
    none. Raises `CellError` where it must have one that cannot be built."""
    if dtype in native.DTYPES and isinstance(runner, (Native, Auto)):
        return runner.kernel(dtype)
    return None


def unsuited(
    params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor], tokens: Tensor | None
) -> str | None:
    """What about a call keeps it from native code; None when nothing does."""
    if _empty(x, tokens):
        return "without rows"
    if not x.is_cpu:
        return f"on {x.device}"
    if x.dtype not in native.DTYPES:
        return f"with {x.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if _watched():
        return "while its caller is traced or transformed"
    if not tensors.plain(x, *params.values(), *state):
        return "with tensors that are not plain memory"
    return None


def _scannable(
    params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor], tokens: Tensor | None
) -> bool:
    """Can a call go through the scan, whose steps write into memory of their own?"""
    plain = tensors.plain(x, *params.values(), *state)
    return plain and not _empty(x, tokens) and not _watched()


def _empty(x: Tensor, tokens: Tensor | None) -> bool:
    return x.numel() == 0 or (tokens is not None and tokens.numel() == 0)


def _watched() -> bool:
    """Does something want to see each operation (tracers, torch.func, forward-mode derivatives)?

    Native code is no operation of torch: whoever looks on would see nothing, and take it for that.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._len_torch_dispatch_stack() > 0
        or tensors.transformed()
        or forward_ad._current_level >= 0
    )


_said: set[str] = set()


def _say_once(reason: str) -> None:
    """Warn about slow cells, once a process and reason."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(
            f"cells run as torch operations, several times slower: {reason}",
            RuntimeWarning,
            stacklevel=5,
        )

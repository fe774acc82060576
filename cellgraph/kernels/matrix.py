"""The matrix kernels, built once per machine and real type, as generated code receives them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from cellgraph.kernels import compiler

_LONG = ctypes.c_long


@cache
def _library(double: bool) -> ctypes.CDLL:
    text = Path(__file__).with_name("matrix.c").read_text(encoding="utf-8")
    (library,) = compiler.load([compiler.Source("matrix", text)], double=double)
    library.matrix_functions.restype = ctypes.c_void_p
    library.lanes.restype = _LONG
    return library


class _Table(ctypes.Structure):
    """`Matrix` of matrix.h."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("pack", "product", "gradients_work", "gradients", "column_sums")
    )


class Matrices:
    """The function table for one real type, and what Python has to know of it."""

    def __init__(self, *, double: bool) -> None:
        """Raises `CompilerError`."""
        library = _library(double)
        self.pointer = ctypes.c_void_p(library.matrix_functions())
        self.lanes = int(library.lanes())
        table = ctypes.cast(self.pointer, ctypes.POINTER(_Table)).contents
        prototype = ctypes.CFUNCTYPE(_LONG, _LONG, ctypes.c_void_p, _LONG, _LONG)
        self._work = prototype(table.gradients_work)

    def gradients_work(self, m: Sequence[int], n: int, rows: int) -> int:
        """Elements of scratch that `gradients` needs."""
        return int(self._work(len(m), (_LONG * len(m))(*m), n, rows))

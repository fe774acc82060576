"""How many operations a second this processor reaches in matrix products, on one thread: what a
cell can be measured against.

Four libraries, as many as there are: oneDNN and the BLAS of torch, numpy's, and the kernels that
compiled cells call. Letters: a product of m × k and k × n numbers has 2 m n k operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cellgraph.errors import CellError
from cellgraph.kernels.compiler import CompilerError
from cellgraph.kernels.matrix import Matrices
from search.bench import blas
from search.bench.timing import Effort, interleaved
from search.errors import SearchError

#: (m, n, k): a large one, and two as the input products of layers have them.
SHAPES = ((1024, 1024, 1024), (1600, 1024, 256), (700, 2600, 650))
EFFORT = Effort(seconds=2.0)
ONE_THREAD = dict.fromkeys(
    (
        "BLIS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)

_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p


@dataclass(frozen=True)
class Rate:
    """The median rate of one library at one shape."""

    library: str
    shape: tuple[int, int, int]
    gflops: float


@dataclass(frozen=True)
class Yardstick:
    """The fastest product that was found, to be run again beside what is compared with it: a
    processor that others use too, or that changes its frequency, has another rate every minute."""

    rate: Rate
    run: Callable[[], object]
    flops: int


@contextlib.contextmanager
def measure(
    dtype: str, say: Callable[[str, int, int], None]
) -> Iterator[tuple[list[Rate], Yardstick]]:
    """All rates, and the best of them as long as the context lasts. Raises `CellError` and
    `SearchError`."""
    rates: list[Rate] = []
    best: Yardstick | None = None
    with _numpy(dtype) as numpy:
        for done, shape in enumerate(SHAPES):
            say("matrix rates", done, len(SHAPES))
            m, n, k = shape
            products = _products(getattr(torch, dtype), m, n, k)
            products["numpy"] = numpy(m, n, k)
            times = interleaved(products, EFFORT)
            for library, run in products.items():
                rate = Rate(library, shape, 2 * m * n * k / times[library].median / 1e9)
                rates.append(rate)
                if best is None or rate.gflops > best.rate.gflops:
                    best = Yardstick(rate, run, 2 * m * n * k)
        assert best is not None  # noqa: S101  # there are shapes
        yield rates, best


def _products(dtype: torch.dtype, m: int, n: int, k: int) -> dict[str, Callable[[], object]]:
    """One call of every library but numpy's."""
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    c = torch.empty(m, n, dtype=dtype)
    found: dict[str, Callable[[], object]] = {"torch.mm": lambda: torch.mm(a, b, out=c)}
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # not in every build of torch
    if linear is not None and dtype == torch.float32:  # all that oneDNN has
        transposed = b.t().contiguous()
        found["oneDNN"] = lambda: linear(a, transposed, None, "none", [], "")
    found["cellgraph"] = Product(a, b, c)
    return found


class Product:
    """c = a @ b by `product` of cellgraph/kernels/matrix.c; b is packed beforehand, as there."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
        """a (m, k), b (k, n), c (m, n), contiguous. Raises `CellError`."""
        try:
            matrices = Matrices(double=a.dtype == torch.float64)
        except CompilerError as error:
            raise CellError(f"the matrix kernels cannot be built: {error}") from error
        table: Any = ctypes.cast(matrices.pointer, ctypes.POINTER(_POINTER))
        packs = (_POINTER, _LONG, _POINTER, _LONG, _POINTER, ctypes.c_int)
        pack = ctypes.CFUNCTYPE(None, *packs)(table[0])
        types = (*[_LONG] * 3, _POINTER, _LONG, _POINTER, _POINTER, _LONG, ctypes.c_int)
        self.product = ctypes.CFUNCTYPE(None, *types)(table[1])
        (m, k), n = a.shape, b.shape[1]
        panels = a.new_zeros(k * -(-n // matrices.lanes) * matrices.lanes)
        pack(panels.data_ptr(), 1, (_LONG * 1)(k), n, (_POINTER * 1)(b.data_ptr()), 0)
        pointers = a.data_ptr(), k, panels.data_ptr(), c.data_ptr(), n
        self.arguments = (m, n, k, *pointers, 0)
        self.held = a, panels, c  # as long as their addresses are in use

    def __call__(self) -> None:
        self.product(*self.arguments)


@contextlib.contextmanager
def _numpy(dtype: str) -> Iterator[Callable[[int, int, int], Callable[[], float]]]:
    """From a shape to a function that returns the seconds of one product."""
    process = subprocess.Popen(  # noqa: S603  # our own file
        [sys.executable, "-P", blas.__file__, dtype],
        env={**os.environ, **ONE_THREAD},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us alone
    )
    with process:  # which closes its input and waits for it
        questions, answers = process.stdin, process.stdout
        assert questions is not None and answers is not None  # noqa: S101, PT018  # pipes

        def asker(m: int, n: int, k: int) -> Callable[[], float]:
            def ask() -> float:
                answer = ""
                with contextlib.suppress(BrokenPipeError):
                    questions.write(f"{m} {n} {k}\n")
                    questions.flush()
                    answer = answers.readline()
                if not answer:
                    raise SearchError("the process that multiplies with numpy has ended")
                return float(answer)

            return ask

        yield asker

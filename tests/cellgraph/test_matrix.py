"""The matrix kernels against numpy in double precision: every function, every vector width.

Around every operand lie guards: behind an output a number that must stay, behind an input NaN that
must not get into a result. Reads that change no result are left to a run with sanitizers.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cellgraph

Array = np.ndarray[Any, Any]

KERNELS = Path(cellgraph.__file__).parent / "kernels"
FLAGS = "-std=gnu11 -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall -Wextra -Werror"
#: On x86 narrower vectors too, and the 16 registers that come with them.
MACHINES = {"native": "-march=native"}
if platform.machine() == "x86_64":
    MACHINES |= {"avx2": "-march=x86-64 -mavx2 -mfma", "sse2": "-march=x86-64"}
REALS: dict[str, type[np.floating[Any]]] = {"float": np.float32, "double": np.float64}
VARIANTS = tuple(itertools.product(MACHINES, REALS))
GUARD = 12345.0
SIZES = (1, 2, 7, 15, 16, 17, 63, 64, 65, 100, 208)
ROWS = (*range(1, 14), 20, 32, 33)


def command(machine: str, real: str, *more: str) -> list[str]:
    found = (
        os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    )
    if found is None:
        pytest.skip("no C compiler found (CC, cc, gcc, clang): the matrix kernels are not tested")
    words = [*found.split(), *FLAGS.split(), *MACHINES[machine].split(), f"-I{KERNELS}", *more]
    return [*words, "-DREAL_DOUBLE"] if real == "double" else words


def skip_unless_it_runs(machine: str) -> None:
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8").split() if info.exists() else []
    if machine == "avx2" and not {"avx2", "fma"} <= set(flags):
        pytest.skip("this processor is not known to have AVX2")


class Table(ctypes.Structure):
    """`Matrix` of matrix.h."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("pack", "product", "gradients_work", "gradients", "column_sums")
    )


@dataclass
class Kernels:
    """One build. An array as an argument stands for the address of its first element."""

    table: Table
    lanes: int
    real: type[np.floating[Any]]
    panel: int  # columns

    def __call__(self, name: str, *args: Array | int | ctypes.Array[Any]) -> int:
        types = [ctypes.c_long if isinstance(a, int) else ctypes.c_void_p for a in args]
        values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in args]
        prototype = ctypes.CFUNCTYPE(ctypes.c_long, *types)
        return int(prototype(getattr(self.table, name))(*values))

    def matrix(self, draw: np.random.Generator, rows: int, columns: int, width: int = 0) -> Array:
        """Random numbers, and NaN to the right of them and below."""
        whole = np.full((rows + 1, width or columns + int(draw.integers(0, 20))), np.nan, self.real)
        whole[:rows, :columns] = draw.standard_normal((rows, columns))
        return whole

    def output(self, draw: np.random.Generator, rows: int, columns: int, filled: bool) -> Array:
        """As `matrix`, but what lies around is GUARD; NaN inside unless filled."""
        whole = self.matrix(draw, rows, columns)
        whole[np.isnan(whole)] = GUARD
        if not filled:
            whole[:rows, :columns] = np.nan
        return whole

    def panels(self, b: Array, padding: float = 0.0) -> Array:
        """The packed operand as matrix.h describes it."""
        depth, columns = b.shape
        padded = np.full((depth, round_up(columns, self.lanes)), padding, b.dtype)
        padded[:, :columns] = b
        vectors = padded.shape[1] // self.lanes
        panels = np.array_split(np.arange(vectors), -(-vectors * self.lanes // self.panel))
        starts = [self.lanes * int(panel[0]) for panel in panels[1:]]
        return np.concatenate([panel.ravel() for panel in np.split(padded, starts, axis=1)])

    def check(self, after: Array, before: Array, terms: Sequence[tuple[Array, Array]]) -> None:
        """The inner part of `after` is the sum of products a @ b of the terms (after what stood
        there `before`, unless that was NaN), the rest as before."""
        inner = slice(0, terms[0][0].shape[0]), slice(0, terms[0][1].shape[1])
        first = np.nan_to_num(before[inner].astype(np.float64))
        wanted = sum((a.astype(np.float64) @ b.astype(np.float64) for a, b in terms), first)
        sizes = sum(
            (abs(a.astype(np.float64)) @ abs(b.astype(np.float64)) for a, b in terms), abs(first)
        )
        # Rounding errors are random: of 10,000 sums none is off by 2 units of its absolute sum.
        wrong = ~(abs(after[inner] - wanted) <= 8 * np.finfo(self.real).eps * sizes)
        assert not wrong.any(), (np.argwhere(wrong)[:4], after[inner][wrong][:4], wanted[wrong][:4])
        around = np.ones(after.shape, bool)
        around[inner] = False
        np.testing.assert_array_equal(after[around], before[around])


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def longs(values: Sequence[int]) -> ctypes.Array[Any]:
    return (ctypes.c_long * len(values))(*values)


def addresses(arrays: Sequence[Array | None]) -> ctypes.Array[Any]:
    return (ctypes.c_void_p * len(arrays))(*(None if a is None else a.ctypes.data for a in arrays))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """All builds, made at the same time."""
    folder = tmp_path_factory.mktemp("matrix")
    built = {(machine, real): folder / f"{machine}-{real}.so" for machine, real in VARIANTS}
    source = str(KERNELS / "matrix.c")
    running = [
        subprocess.Popen(
            command(*variant, "-O2", "-fPIC", "-shared", "-o", str(library), source, "-lm"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for variant, library in built.items()
    ]
    for process in running:
        _, message = process.communicate(timeout=120)
        assert process.returncode == 0, message
    return built


@pytest.fixture(params=VARIANTS, ids="-".join)
def kernels(request: pytest.FixtureRequest, libraries: dict[tuple[str, str], Path]) -> Kernels:
    machine, real = request.param
    skip_unless_it_runs(machine)
    library = ctypes.CDLL(str(libraries[request.param]))
    library.matrix_functions.restype = ctypes.POINTER(Table)
    library.lanes.restype = ctypes.c_long
    made = Kernels(library.matrix_functions().contents, library.lanes(), REALS[real], 0)
    # A panel is as wide as the first row of a wide operand goes on before the second row begins.
    columns = 8 * made.lanes
    source = np.arange(2 * columns).astype(made.real)
    packed = np.empty_like(source)
    made("pack", packed, 1, longs([2]), columns, addresses([source]), 0)
    made.panel = int(np.flatnonzero(packed == columns)[0])
    return made


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(len(request.node.name))


def test_widths(kernels: Kernels) -> None:
    assert kernels.lanes * kernels.real().itemsize in (16, 32, 64)
    assert kernels.panel in (2 * kernels.lanes, 4 * kernels.lanes)


# -- pack


def check_pack(
    kernels: Kernels, draw: np.random.Generator, heights: Sequence[int], n: int, transposed: bool
) -> None:
    matrices = [draw.standard_normal((m, n)).astype(kernels.real) for m in heights]
    for matrix in matrices:
        matrix[draw.integers(len(matrix)), draw.integers(n)] = draw.choice([np.nan, np.inf, -0.0])
    stack = np.concatenate(matrices)
    wanted = kernels.panels(stack.T if transposed else stack)
    packed = np.full(wanted.size + 1, GUARD, kernels.real)
    kernels(
        *("pack", packed, len(heights), longs(heights), n, addresses(matrices), int(transposed))
    )
    wanted = np.append(wanted, kernels.real(GUARD))
    np.testing.assert_array_equal(packed, wanted)
    np.testing.assert_array_equal(np.signbit(packed), np.signbit(wanted))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_pack(kernels: Kernels, draw: np.random.Generator, transposed: bool) -> None:
    for depth, columns in itertools.product(SIZES, SIZES):
        m, n = (columns, depth) if transposed else (depth, columns)
        check_pack(kernels, draw, [m], n, transposed)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_pack_several(kernels: Kernels, draw: np.random.Generator, transposed: bool) -> None:
    """On top of each other or side by side; of narrow ones many share a vector."""
    for _ in range(40):
        most = int(draw.choice([3, 40, 150]))
        heights = [int(m) for m in draw.integers(1, most, size=draw.integers(1, 9))]
        check_pack(kernels, draw, heights, int(draw.choice(SIZES)), transposed)


# -- product


def check_product(kernels: Kernels, draw: np.random.Generator, sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    a = kernels.matrix(draw, m, k)
    b = draw.standard_normal((k, n)).astype(kernels.real)
    accumulate = int(draw.integers(2))
    c = kernels.output(draw, m, n, filled=bool(accumulate))
    before = c.copy()
    panels = kernels.panels(b, np.nan)
    kernels("product", m, n, k, a, a.shape[1], panels, c, c.shape[1], accumulate)
    kernels.check(c, before, [(a[:m, :k], b)])


def test_product(kernels: Kernels, draw: np.random.Generator) -> None:
    for n, k in itertools.product(SIZES, SIZES):
        check_product(kernels, draw, (int(draw.choice(ROWS)), n, k))
    for m, n in itertools.product(ROWS, (1, 16, 17, 48, 100)):
        check_product(kernels, draw, (m, n, int(draw.choice(SIZES))))


def test_product_in_blocks(kernels: Kernels, draw: np.random.Generator) -> None:
    """More rows, and more depth, than are taken at a time."""
    for sizes in ((3, 70, 1025), (20, 33, 2100), (150, 17, 1500), (800, 10, 100)):
        check_product(kernels, draw, sizes)


# -- gradients and sums


def check_gradients(
    kernels: Kernels, draw: np.random.Generator, rows: int, heights: Sequence[int], n: int
) -> None:
    count, width = len(heights), max(heights) + int(draw.integers(20))
    a = [kernels.matrix(draw, rows, m, width) for m in heights]
    b = kernels.matrix(draw, rows, n)
    add = draw.integers(0, 2, count).tolist()
    wanted = draw.integers(0, 4, count) > 0
    # Below a dense m × n matrix lies a row of guards, at its right nothing.
    c = [
        np.ascontiguousarray(kernels.output(draw, m, n, filled=bool(accumulate))[:, :n])
        for m, accumulate in zip(heights, add, strict=True)
    ]
    before = [x.copy() for x in c]
    room = kernels("gradients_work", count, longs(heights), n, rows)
    work = np.full(room + 1, GUARD, kernels.real)
    kernels(
        *("gradients", count, rows, addresses(a), longs(heights), width, b, n, b.shape[1]),
        addresses([x if yes else None for x, yes in zip(c, wanted, strict=True)]),
        *((ctypes.c_int * count)(*add), work),
    )
    assert work[-1] == GUARD
    for i, m in enumerate(heights):
        if wanted[i]:
            kernels.check(c[i], before[i], [(a[i][:rows, :m].T, b[:rows, :n])])
        else:
            np.testing.assert_array_equal(c[i], before[i])


def test_gradients(kernels: Kernels, draw: np.random.Generator) -> None:
    for n, rows in itertools.product(SIZES, (1, 2, 35, 100)):
        heights = [int(m) for m in draw.choice(SIZES, size=draw.integers(1, 5))]
        check_gradients(kernels, draw, rows, heights, n)


def test_gradients_in_blocks(kernels: Kernels, draw: np.random.Generator) -> None:
    for n in (8, 33, 64, 144, 208, 250, 300):
        check_gradients(kernels, draw, int(draw.integers(1025, 1300)), [17, 100, 13], n)


def test_column_sums(kernels: Kernels, draw: np.random.Generator) -> None:
    for n, rows in itertools.product(SIZES, (1, 2, 3, 4, 7, 100)):
        a = kernels.matrix(draw, rows, n)
        accumulate = int(draw.integers(2))
        out = kernels.output(draw, 1, n, filled=bool(accumulate))[:1]
        before = out.copy()
        kernels("column_sums", rows, n, a, a.shape[1], out, accumulate)
        kernels.check(out, before, [(np.ones((1, rows)), a[:rows, :n])])


# -- what is not a number


def spoil(draw: np.random.Generator, part: Array) -> None:
    for value in (np.nan, np.inf, -np.inf, 0.0):
        part[draw.integers(part.shape[0]), draw.integers(part.shape[1])] = value


def sums(a: Array, b: Array) -> Array:
    """a @ b, one by one: a library for products may treat zeros and infinities as it likes."""
    with np.errstate(invalid="ignore"):
        return np.asarray((a.astype(np.float64)[:, :, None] * b.astype(np.float64)).sum(1))


def same_kind(got: Array, wanted: Array) -> None:
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))
    np.testing.assert_array_equal(got[np.isinf(got)] > 0, wanted[np.isinf(got)] > 0)


def test_nan_and_infinity(kernels: Kernels, draw: np.random.Generator) -> None:
    """They go where they belong and nowhere else, whatever padding they meet."""
    for m, n, k in itertools.product((1, 6, 20), (1, 7, 17, 65, 150), (1, 7, 30)):
        a, b = kernels.matrix(draw, m, k), kernels.matrix(draw, k, n)
        c = kernels.output(draw, m, n, filled=True)
        for part in (a[:m, :k], b[:k, :n], c[:m, :n]):
            spoil(draw, part)
        left, right = a[:m, :k], np.ascontiguousarray(b[:k, :n])
        packed = np.empty(k * round_up(n, kernels.lanes), kernels.real)
        kernels("pack", packed, 1, longs([k]), n, addresses([right]), 0)
        with np.errstate(invalid="ignore"):
            wanted = c[:m, :n] + sums(left, right)
        kernels("product", m, n, k, a, a.shape[1], packed, c, c.shape[1], 1)
        same_kind(c[:m, :n], wanted)

        turned = np.ascontiguousarray(a.T)
        dense = np.empty((m, n), kernels.real)
        work = np.empty(kernels("gradients_work", 1, longs([m]), n, k), kernels.real)
        kernels(
            *("gradients", 1, k, addresses([turned]), longs([m]), turned.shape[1]),
            *(b, n, b.shape[1], addresses([dense]), (ctypes.c_int * 1)(0), work),
        )
        same_kind(dense, sums(left, right))

        out = np.empty((1, n), kernels.real)
        kernels("column_sums", k, n, b, b.shape[1], out, 0)
        same_kind(out, sums(np.ones((1, k)), right))


# -- memory

DRIVER = r"""
#include <stdlib.h>
#include "vector.h"
#include "matrix.h"
const Matrix *matrix_functions(void);

static unsigned long seed = 1;
static long to(long most) /* 1 .. most */
{
    seed = seed * 6364136223846793005ul + 1442695040888963407ul;
    return 1 + (seed >> 33) % most;
}
static real *fresh(long n)
{
    real *const p = malloc(n * sizeof(real));
    for (long i = 0; i < n; i++)
        p[i] = to(9);
    return p;
}
static long area(long rows, long columns, long stride) { return (rows - 1) * stride + columns; }

int main(void)
{
    const Matrix *const x = matrix_functions();
    for (int round = 0; round < 150; round++) {
        const long large = to(6) == 1 ? 600 : 30;
        const long m = to(40), heights[] = {to(large), to(large), to(large)};
        const int transposed = to(2) == 1, accumulate = to(2) == 1;
        const long sum = heights[0] + heights[1] + heights[2], width = to(200);
        const long k = transposed ? width : sum, n = transposed ? sum : width;
        const long padded = (n + LANES - 1) / LANES * LANES, lda = k + to(9), ldc = n + to(9);
        real *const stack[] = {fresh(heights[0] * width), fresh(heights[1] * width),
                               fresh(heights[2] * width)};
        real *const a = fresh(area(m, k, lda)), *const c = fresh(area(m, n, ldc));
        real *const panels = fresh(k * padded);
        x->pack(panels, 3, heights, width, (const real *const *)stack, transposed);
        x->product(m, n, k, a, lda, panels, c, ldc, accumulate);
        x->column_sums(m, n, c, ldc, panels, accumulate);

        const long high[] = {to(100), to(100)};
        const long ld = (high[0] > high[1] ? high[0] : high[1]) + to(9), ldr = n + to(9);
        real *const left[] = {fresh(area(k, high[0], ld)), fresh(area(k, high[1], ld))};
        real *const right = fresh(area(k, n, ldr));
        real *const work = fresh(x->gradients_work(2, high, n, k));
        real *const out[] = {fresh(high[0] * n), to(4) == 1 ? NULL : fresh(high[1] * n)};
        const int add[] = {to(2) == 1, to(2) == 1};
        x->gradients(2, k, (const real *const *)left, high, ld, right, n, ldr, out, add, work);
        real *const all[] = {a, c, panels, stack[0], stack[1], stack[2],
                             left[0], left[1], right, work, out[0], out[1]};
        for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i]);
    }
}
"""


@pytest.mark.parametrize(("machine", "real"), [("native", "float"), ([*MACHINES][-1], "double")])
def test_memory(tmp_path: Path, machine: str, real: str) -> None:
    """No access outside operands that are exactly as large as they must be, nothing undefined."""
    (tmp_path / "driver.c").write_text(DRIVER, encoding="utf-8")
    program = tmp_path / "driver"
    sanitized = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    files = ("-o", str(program), str(tmp_path / "driver.c"), str(KERNELS / "matrix.c"), "-lm")
    built = subprocess.run(
        command(machine, real, *sanitized, *files), capture_output=True, text=True, check=False
    )
    if "san" in built.stderr and "cannot find" in built.stderr:
        pytest.skip("the compiler comes without the libraries of its sanitizers")
    assert built.returncode == 0, built.stderr
    # What is leaked cannot be found out under a debugger or in some containers, and is not asked.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [program], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr

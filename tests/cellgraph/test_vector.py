"""kernels/vector.h, compiled by the system's compiler for several sets of instructions: accuracy of
the functions against the table in its header comment, special values, partial loads and stores."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import cellgraph

Array = NDArray[Any]

KERNELS = Path(cellgraph.__file__).parent / "kernels"
FUNCTIONS = ("exp", "log", "log1p", "sqrt", "tanh", "sigmoid", "sin", "cos", "erf", "fabs")
FLAGS = ["-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
WARNINGS = ("-Wall", "-Wextra", "-Werror")
#: What the header is written for; a machine that runs the first runs all. `base` is SSE2 on x86-64
#: and has no fused multiply-add, which gcc makes from -O2 on.
INSTRUCTIONS = {"native": ["-O2", "-march=native"], "base": ["-O1"]}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTIONS["avx2"] = ["-O2", "-march=native", "-mno-avx512f"]
REALS: dict[str, np.dtype[Any]] = {"float": np.dtype(np.float32), "double": np.dtype(np.float64)}

HARNESS = """
#include "vector.h"

#if LANES != 2 && LANES != 4 && LANES != 8 && LANES != 16
#error LANES cannot be compared
#endif
_Static_assert(sizeof(V) == LANES * sizeof(real) && sizeof(I) == sizeof(V), "lanes");
_Static_assert(_Alignof(V) == _Alignof(real), "alignment");

long lanes(void) { return LANES; }
void copy(long n, const real *x, real *y) { store_part(y, load_part(x, n), n); }
void whole(const real *x, real *y) { store(y, load(x)); }
void padding(long n, const real *x, real *y) { store(y, load_part(x, n)); }
void constant(real x, real *y) { store(y, splat(x)); }
void minus_zero(real *y) { store(y, R(-0.0)); }
void lesser(const real *a, const real *b, real *y)
{
    store(y, select(load(a) < load(b), load(a), load(b)));
}
void either(const I *condition, const real *a, const real *b, real *y)
{
    store(y, select(*condition, load(a), load(b)));
}
#define EACH(name)                                               \\
    void each_##name(long n, const real *x, real *y)             \\
    {                                                            \\
        for (long i = 0; i < n; i += LANES)                      \\
            store_part(y + i, name(load_part(x + i, n - i)), n - i); \\
    }
""" + "\n".join(f"EACH({name})" for name in FUNCTIONS)

#: Arrays that end where readable memory ends (a page without rights; blocks of the sanitizer).
EDGES = """
#define _DEFAULT_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "harness.c"

static int moves(real *from, real *to, long n)
{
    for (long i = 0; i < n; i++)
        from[i] = i + 1;
    copy(n, from, to);
    for (long i = 0; i < n; i++)
        if (to[i] != i + 1)
            return 0;
    return 1;
}

static char *page(size_t size)
{
    char *p = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED || mprotect(p + size, size, PROT_NONE) ? NULL : p + size;
}

int main(void)
{
    const size_t size = sysconf(_SC_PAGESIZE);
    char *const from = page(size), *const to = page(size);
    if (!from || !to)
        return 2;
    for (long n = 1; n <= LANES; n++) {
        if (!moves((real *)from - n, (real *)to - n, n))
            return 3;
        real *const a = malloc(n * sizeof(real)), *const b = malloc(n * sizeof(real));
        if (!a || !b || !moves(a, b, n))
            return 4;
        const real extremes[] = {0, 1, -1, 1e30, -1e30, 1e-30, INFINITY, -INFINITY, NAN};
        for (unsigned e = 0; e < sizeof extremes / sizeof *extremes; e++) {
            for (long i = 0; i < n; i++)
                a[i] = i % 2 ? extremes[e] : 0.5;
            CALLS
        }
        free(a);
        free(b);
    }
    return 0;
}
""".replace("CALLS", " ".join(f"each_{name}(n, a, b);" for name in FUNCTIONS))


def compiler() -> list[str]:
    found = (
        os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    )
    if found is None:
        pytest.skip("no C compiler found (CC, cc, gcc, clang): vector.h is not compiled")
    return found.split()


def build(target: Path, source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*compiler(), *FLAGS, *flags, f"-I{KERNELS}", "-o", str(target), str(source), "-lm"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Build:
    """The harness for one set of instructions and one type."""

    library: ctypes.CDLL
    dtype: np.dtype[Any]

    @property
    def lanes(self) -> int:
        return int(self.library.lanes())

    def call(self, name: str, *args: object) -> None:
        pointers = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in args
        ]
        getattr(self.library, name)(*pointers)

    def each(self, function: str, x: Array) -> Array:
        x = np.ascontiguousarray(x, self.dtype)
        y = np.full_like(x, 777)
        self.call(f"each_{function}", ctypes.c_long(x.size), x, y)
        return y


@pytest.fixture(scope="module", params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=REALS)
def vectors(
    request: pytest.FixtureRequest, instructions: str, tmp_path_factory: pytest.TempPathFactory
) -> Build:
    folder = tmp_path_factory.mktemp("vector")
    source = folder / "harness.c"
    source.write_text(HARNESS, encoding="utf-8")
    flags = [*INSTRUCTIONS[instructions], *["-DREAL_DOUBLE"] * (request.param == "double")]
    done = build(folder / "harness.so", source, "-shared", *WARNINGS, *flags)
    assert done.returncode == 0, done.stderr
    return Build(ctypes.CDLL(str(folder / "harness.so")), REALS[request.param])


# -- accuracy


def stated(function: str, dtype: np.dtype[Any]) -> float:
    """The largest error that the header comment admits, in units in the last place."""
    text = (KERNELS / "vector.h").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^ +{function} +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    return float(row[dtype == np.float64])


@functools.cache
def samples(function: str, dtype: np.dtype[Any]) -> Array:
    """Arguments over the whole range, every exponent included, and more where functions turn."""
    rng = np.random.default_rng(len(function))
    if dtype == np.float32:
        everywhere = np.arange(0, 2**32, 4999, dtype=np.uint64).astype(np.uint32).view(np.float32)
        turns, near, zeros = 100_000, 50_000, 30_000
    else:
        bits = rng.integers(0, 2**64, 500, dtype=np.uint64, endpoint=False)
        everywhere = bits.view(np.float64)
        turns, near, zeros = 700, 400, 200
    parts: list[Array] = [
        everywhere,
        rng.uniform(-3, 3, turns),
        rng.uniform(-100, 100, turns),
        rng.uniform(-720, 720, near),
        rng.uniform(-1e5, 1e5, near),
        1 + rng.uniform(-1e-3, 1e-3, near),
        np.arange(-zeros, zeros) * (np.pi / 2),
    ]
    x: Array = np.concatenate([part.astype(dtype) for part in parts])
    return x[np.isfinite(x)]


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    y: Array = np.where(x < 0, small, 1) / (1 + small)
    return y


@functools.cache
def exact(function: str, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """The exact values at the samples, as sums of two doubles; for float one is exact enough."""
    x = samples(function, dtype)
    if dtype == np.float32:
        with np.errstate(all="ignore"):
            y = reference(function, x.astype(np.float64))
        return y, np.zeros_like(y)
    high, low = [], []
    with mpmath.workdps(60):
        called = getattr(mpmath, function, lambda v: 1 / (1 + mpmath.exp(-v)))
        for v in x.tolist():
            if v > {"log": 0, "sqrt": 0, "log1p": -1}.get(function, -math.inf):
                value = called(mpmath.mpf(v))
                high.append(float(value))
                low.append(float(value - high[-1]) if math.isfinite(high[-1]) else 0.0)
            else:
                with np.errstate(all="ignore"):
                    high.append(float(reference(function, np.array([v]))[0]))
                low.append(0.0)
    return np.array(high), np.array(low)


def reference(function: str, x: Array) -> Array:
    """The function in numpy's double (erf in torch's)."""
    if function == "erf":
        y: Array = torch.erf(torch.from_numpy(x)).numpy()
        return y
    found: Callable[[Array], Array] = sigmoid if function == "sigmoid" else getattr(np, function)
    return found(x)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_accuracy(function: str, vectors: Build) -> None:
    x, dtype = samples(function, vectors.dtype), vectors.dtype
    y = vectors.each(function, x).astype(np.float64)
    high, low = exact(function, dtype)
    limits = np.finfo(dtype)
    with np.errstate(all="ignore"):
        rounded = high.astype(dtype)
        normal = (np.abs(high) >= limits.tiny) & np.isfinite(rounded)
        error = np.abs((y - high) - low) / np.exp2(np.frexp(high)[1] - 1.0 - limits.nmant)
    assert int(normal.sum()) > 0.3 * x.size
    worst = np.argmax(np.where(normal, error, 0))
    assert error[normal].max() <= stated(function, dtype), (x[worst], y[worst], high[worst])
    assert stated(function, dtype) <= 4
    tiny = np.abs(high) < limits.tiny  # may be flushed to zero
    assert np.abs(y[tiny] - high[tiny]).max(initial=0) <= limits.tiny
    np.testing.assert_array_equal(y[~normal & ~tiny], rounded[~normal & ~tiny])


def test_saturation(vectors: Build) -> None:
    """Derivatives like 1 - y * y have the right sign; gates lie within [0, 1]."""
    x = samples("tanh", vectors.dtype)
    for function in ("tanh", "erf"):
        y = vectors.each(function, x)
        assert np.abs(y).max() == 1
        np.testing.assert_array_equal(vectors.each(function, -x), -y)
    y = vectors.each("sigmoid", x)
    assert (y.min(), y.max()) == (0, 1)


EXACT: dict[str, list[tuple[float, float]]] = {
    "exp": [(0, 1), (-1e4, 0), (1e4, np.inf)],
    "sigmoid": [(-1e4, 0), (1e4, 1), (0, 0.5)],
    "tanh": [(-1e4, -1), (1e4, 1)],
    "log": [(1, 0)],
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(function: str, vectors: Build) -> None:
    limits = np.finfo(vectors.dtype)
    some = [0.0, 1.0, 20.0, 1e4, 1e6, float(limits.max), float(limits.tiny), np.inf, np.nan]
    x = np.array([*some, *(-v for v in some)], vectors.dtype)
    with np.errstate(all="ignore"):
        wanted = reference(function, x.astype(np.float64)).astype(vectors.dtype)
    y = vectors.each(function, x)
    np.testing.assert_allclose(y, wanted, rtol=4 * float(limits.eps), atol=float(limits.tiny))
    zero = (wanted == 0) & (x == 0)
    np.testing.assert_array_equal(np.signbit(y[zero]), np.signbit(wanted[zero]))
    for at, value in EXACT.get(function, []):
        assert vectors.each(function, np.array([at]))[0] == value


@pytest.mark.parametrize("function", ["log", "log1p", "sqrt", "exp", "tanh", "erf", "sin"])
def test_denormals(function: str, vectors: Build) -> None:
    """In and out: as exact as their coarse steps allow, for those that do not flush."""
    limits = np.finfo(vectors.dtype)
    x = float(limits.smallest_subnormal) * np.array([1, 2, 3, 1000, 12345, 2**20])
    if function == "exp":
        x = np.log(x)
    x = x.astype(vectors.dtype)
    y = vectors.each(function, x)
    if vectors.dtype == np.float32:
        wanted = reference(function, x.astype(np.float64)).astype(vectors.dtype)
    else:
        wanted = np.array([float(getattr(mpmath, function)(mpmath.mpf(float(v)))) for v in x])
    step = float(limits.smallest_subnormal)
    np.testing.assert_allclose(y, wanted, rtol=4 * float(limits.eps), atol=2 * step)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_lanes_are_alike(function: str, vectors: Build) -> None:
    """Neither the lane nor the neighbours change a result, huge neighbours included."""
    some = [0.1, -0.7, 3.0, 25.0, -80.0, 1e3, 1e9, -1e30, 1e-30, 0.0, math.inf, 0.9, 2.5, -5.0]
    x = np.array([*some, 1.7, 11.0, 49.0], vectors.dtype)  # 17: every value meets every lane
    alone = np.array([vectors.each(function, x[i : i + 1])[0] for i in range(x.size)])
    for shift in range(x.size):
        y = vectors.each(function, np.roll(x, shift))
        np.testing.assert_array_equal(y, np.roll(alone, shift))


# -- loads, stores, selection


def test_parts(vectors: Build) -> None:
    """The first n elements and nothing else, wherever they lie."""
    lanes = vectors.lanes
    for n in range(1, 2 * lanes + 2):
        count = min(n, lanes)
        for offset in range(3):
            x = np.arange(1, 4 * lanes + 1).astype(vectors.dtype)
            y = np.full_like(x, -1)
            wanted = y.copy()
            wanted[offset : offset + count] = x[offset : offset + count]
            vectors.call("copy", ctypes.c_long(n), x[offset:], y[offset:])
            np.testing.assert_array_equal(y, wanted)
            y = np.full_like(x, -1)
            vectors.call("padding", ctypes.c_long(n), x[offset:], y)
            np.testing.assert_array_equal(y[:count], x[offset : offset + count])
            np.testing.assert_array_equal(y[count:lanes], 0)
            np.testing.assert_array_equal(y[lanes:], -1)


def test_whole_vectors_need_no_alignment(vectors: Build) -> None:
    lanes = vectors.lanes
    x = np.arange(3 * lanes).astype(vectors.dtype)
    for offset in range(lanes):
        y = np.full_like(x, -1)
        vectors.call("whole", x[offset:], y[offset:])
        np.testing.assert_array_equal(y[offset : offset + lanes], x[offset : offset + lanes])
        assert int((y == -1).sum()) == 2 * lanes


def test_splat(vectors: Build) -> None:
    scalar = ctypes.c_float if vectors.dtype == np.float32 else ctypes.c_double
    for value in (0.0, -0.0, 1.5, -math.inf, math.nan):
        y = np.full(vectors.lanes, 777, vectors.dtype)
        vectors.call("constant", scalar(value), y)
        np.testing.assert_array_equal(y, value)
        if not math.isnan(value):
            assert (np.signbit(y) == np.signbit(value)).all()
    vectors.call("minus_zero", y)
    assert (y == 0).all()
    assert np.signbit(y).all()


def test_select_is_bitwise(vectors: Build) -> None:
    """Signs of zeros and what NaNs carry survive; comparisons with NaN are false."""
    lanes, dtype = vectors.lanes, vectors.dtype
    bits = np.dtype(f"u{dtype.itemsize}")
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.choice(np.array([0.0, -0.0, 1, -1, np.inf, np.nan], dtype), (2, lanes))
        a.view(bits)[np.isnan(a)] |= 5
        condition = rng.integers(-1, 1, lanes).astype(f"i{dtype.itemsize}")
        y = np.empty_like(a)
        vectors.call("either", condition, a, b, y)
        wanted = np.where(condition != 0, a.view(bits), b.view(bits))
        np.testing.assert_array_equal(y.view(bits), wanted)
        vectors.call("lesser", a, b, y)
        np.testing.assert_array_equal(y.view(bits), np.where(a < b, a.view(bits), b.view(bits)))


@pytest.mark.parametrize("real", REALS)
def test_nothing_beyond_an_array_is_touched(real: str, instructions: str, tmp_path: Path) -> None:
    flags = [*INSTRUCTIONS[instructions], *["-DREAL_DOUBLE"] * (real == "double")]
    (tmp_path / "harness.c").write_text(HARNESS, encoding="utf-8")
    (tmp_path / "edges.c").write_text(EDGES, encoding="utf-8")
    done = build(tmp_path / "edges", tmp_path / "edges.c", *flags)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "edges"], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("real", REALS)
def test_under_sanitizers(real: str, tmp_path: Path) -> None:
    sanitize = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }", encoding="utf-8")
    if build(tmp_path / "empty", tmp_path / "empty.c", *sanitize).returncode:
        pytest.skip("the compiler has no sanitizer libraries: only guarded pages are tested")
    (tmp_path / "harness.c").write_text(HARNESS, encoding="utf-8")
    (tmp_path / "edges.c").write_text(EDGES, encoding="utf-8")
    flags = [*INSTRUCTIONS["base"], *["-DREAL_DOUBLE"] * (real == "double")]
    done = build(tmp_path / "edges", tmp_path / "edges.c", *sanitize, *flags)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run(
        [tmp_path / "edges"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr

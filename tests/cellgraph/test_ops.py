"""The op table drives its own tests: each column against `eager`. A new row needs no line here."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cellgraph import ops, parse
from cellgraph.interpret import step
from cellgraph.ops import OPS, Op

EXTREMES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    3.0,
    -3.0,
    20.0,
    30.0,
    -30.0,
    1e4,
    -1e4,
    1e-300,
    math.inf,
    -math.inf,
    math.nan,
]
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def samples(op: Op, count: int = 200) -> list[Tensor]:
    """Random arguments within the op's domain, each (1, count)."""
    rng = torch.Generator().manual_seed(len(op.name))
    low, high = op.domain
    return [
        low + (high - low) * torch.rand(1, count, generator=rng, dtype=torch.float64)
        for _ in range(op.arity)
    ]


def extremes(op: Op) -> list[Tensor]:
    """Every combination of extreme arguments, each (1, n)."""
    one = torch.tensor(EXTREMES, dtype=torch.float64)
    grid = torch.meshgrid(*[one] * op.arity, indexing="ij")
    return [axis.reshape(1, -1) for axis in grid]


def derivative(op: Op, index: int, args: list[Tensor]) -> Tensor:
    """The derivative column, read as notation and computed by the interpreter."""
    names = ["a", "b"][: op.arity]
    call = f"{op.name}({', '.join(names)})"
    if op.infix is not None:
        call = f" {op.infix} ".join(names) if op.arity == 2 else f"{op.infix}a"
    # `+ 0 * a` turns a constant derivative into a vector.
    lines = [
        f"y = {call}",
        f"d = ({op.derivative[index]}) + 0 * a",
        *(f"{name}' = {name}" for name in names),
    ]
    cell = parse(f"cell derivative(x, {', '.join(names)}) -> d\n" + "\n".join(lines))
    assert cell.params == (), "a derivative reads a, b and y alone"
    return step(cell, {}, args[0], args)[0]


@every_op
def test_derivative_is_autograd(op: Op) -> None:
    args = [a.requires_grad_() for a in samples(op)]
    value = op.eager(torch, *args)
    if value.requires_grad:
        wanted = torch.autograd.grad(value.sum(), args)
    else:  # a comparison has no graph in torch; it is constant almost everywhere
        wanted = tuple(torch.zeros_like(a) for a in args)
    for index, gradient in enumerate(wanted):
        torch.testing.assert_close(derivative(op, index, args), gradient, rtol=1e-12, atol=1e-12)


@every_op
def test_derivative_is_the_limit_of_differences(op: Op) -> None:
    """The same against the definition, away from kinks, should torch and the table err alike."""
    args = samples(op)
    away = torch.ones_like(args[0], dtype=torch.bool)
    for kink in (-3.0, 0.0, 3.0):  # hard_sigmoid, relu and the like, hard_sigmoid
        away &= (args[0] - kink).abs() > 1e-3
    away &= (args[0] - args[-1]).abs() > 1e-3 if op.arity == 2 else True
    assert int(away.sum()) > 150
    for index in range(op.arity):
        above, below = (
            [a + sign * 1e-5 * (i == index) for i, a in enumerate(args)] for sign in (1, -1)
        )
        slope = (op.eager(torch, *above) - op.eager(torch, *below)) / 2e-5
        torch.testing.assert_close(
            derivative(op, index, args)[away], slope[away], rtol=1e-6, atol=1e-6
        )


@every_op
def test_derivative_at_ties_and_zero(op: Op) -> None:
    """Where the derivative jumps, the column follows torch's convention."""
    tie = (
        torch.zeros(1, 1, dtype=torch.float64)
        if op.domain[0] < 0
        else torch.ones(1, 1, dtype=torch.float64)
    )
    args = [tie.clone().requires_grad_() for _ in range(op.arity)]
    value = op.eager(torch, *args)
    if value.requires_grad:
        for index, gradient in enumerate(torch.autograd.grad(value.sum(), args)):
            torch.testing.assert_close(
                derivative(op, index, args), gradient, rtol=1e-12, atol=1e-12
            )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tensor]:
    """The C column of all rows as one shared library, in float and double: call(op, *args)."""
    compiler = (
        os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    )
    if compiler is None:
        pytest.skip(
            "no C compiler found (CC, cc, gcc, clang): the C column of the op table is not compared"
        )
    folder = tmp_path_factory.mktemp("ops")
    source = [
        "#include <tgmath.h>",
        "#define sigmoid(x) (1 / (1 + exp(-(x))))",
        "#define select(condition, yes, no) ((condition) ? (yes) : (no))",
    ]
    for op, real in itertools.product(OPS.values(), ("float", "double")):
        args = [f"a{i}" for i in range(op.arity)]
        arrays = ", ".join(f"const {real} *in_{a}" for a in args)
        source.append(f"void {op.name}_{real}(long n, {real} *out, {arrays}) {{")
        source.append("    for (long i = 0; i < n; i++) {")
        source += [f"        const {real} {a} = in_{a}[i];" for a in args]
        source.append(f"        out[i] = {op.c.format(*args)};\n    }}\n}}")
    (folder / "ops.c").write_text("\n".join(source), encoding="utf-8")
    command = [*compiler.split(), "-std=c99", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, "-o", str(folder / "ops.so"), str(folder / "ops.c"), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "ops.so"))

    def call(op: Op, *args: Tensor) -> Tensor:
        args = tuple(a.contiguous() for a in args)
        out = torch.empty_like(args[0])
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (out, *args)]
        real = "float" if out.dtype == torch.float32 else "double"
        getattr(library, f"{op.name}_{real}")(ctypes.c_long(out.numel()), *pointers)
        return out

    return call


@every_op
def test_c_is_eager(op: Op, compiled: Callable[..., Tensor]) -> None:
    args = samples(op)
    torch.testing.assert_close(compiled(op, *args), op.eager(torch, *args), rtol=1e-13, atol=1e-14)


@every_op
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=["double", "float"]
)
def test_c_is_eager_on_extremes(
    op: Op, dtype: torch.dtype, close: float, compiled: Callable[..., Tensor]
) -> None:
    """Zero, large, infinite and NaN arguments: the same infinities and NaNs."""
    args = [a.to(dtype) for a in extremes(op)]
    if dtype == torch.float32:  # torch's oneDNN gelu(inf) is NaN in float, infinite in double
        finite = torch.stack([~a.isinf() for a in args]).all(dim=0)
        args = [a[finite][None] for a in args]
    torch.testing.assert_close(
        compiled(op, *args), op.eager(torch, *args), rtol=close, atol=close, equal_nan=True
    )


@every_op
def test_latex_brackets_balance(op: Op) -> None:
    text = op.latex.format("u", "v")
    for opened, closed in (("{", "}"), ("(", ")"), (r"\left", r"\right"), (r"\begin", r"\end")):
        depth = 0
        for token in re.findall(re.escape(opened) + "|" + re.escape(closed), text):
            depth += 1 if token == opened else -1
            assert depth >= 0, text
        assert depth == 0, text
    assert text.count("|") % 2 == 0
    assert all(arg in text for arg in ("u", "v")[: op.arity])


@every_op
def test_commutes(op: Op) -> None:
    if op.arity == 1:
        assert not op.commutes
        return
    a, b = samples(op)
    assert torch.equal(op.eager(torch, a, b), op.eager(torch, b, a)) == op.commutes


@every_op
def test_domain_is_safe(op: Op) -> None:
    args = samples(op)
    assert bool(torch.isfinite(op.eager(torch, *args)).all())


@every_op
def test_eager_keeps_dtype_and_shape(op: Op) -> None:
    for dtype in (torch.float32, torch.float64):
        args = [a.to(dtype) for a in samples(op)]
        value = op.eager(torch, *args)
        assert (value.dtype, value.shape) == (dtype, args[0].shape)


def _row(**changes: object) -> Op:
    whole = {
        "name": "twice",
        "eager": lambda t, a: a + a,
        "derivative": ("2",),
        "c": "(2 * {0})",
        "latex": "2 {0}",
    }
    return Op(**{k: v for k, v in (whole | changes).items() if v is not None})  # type: ignore[arg-type]


def test_whole_row() -> None:
    assert _row().arity == 1


@pytest.mark.parametrize("column", ["name", "eager", "derivative", "c", "latex"])
def test_row_without_a_column(column: str) -> None:
    with pytest.raises(TypeError, match=column):
        _row(**{column: None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": "(2 * a)"}, r"op twice: no \{0\} in its C or LaTeX column"),
        ({"latex": "2"}, r"op twice: no \{0\} in its C or LaTeX column"),
        ({"derivative": ("1", "1")}, r"op twice: no \{1\} in its C or LaTeX column"),
        ({"derivative": ()}, "op twice: one derivative per argument expected, one or two"),
        (
            {"derivative": ("1", "1", "1"), "c": "{0}{1}{2}", "latex": "{0}{1}{2}"},
            "op twice: one derivative per argument expected, one or two",
        ),
    ],
)
def test_incomplete_row(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _row(**changes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tanh({0})"', '"tanh"', "op tanh: no {0}"),
        ('Op("sub"', 'Op("add"', "two rows of the op table share a name"),
    ],
)
def test_table_with_a_faulty_row_does_not_import(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(ops.__file__).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "faulty_ops.py").write_text(text.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("faulty_ops", tmp_path / "faulty_ops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "faulty_ops", module)  # dataclasses look the module up
    with pytest.raises(TypeError, match=re.escape(message)):
        spec.loader.exec_module(module)


def test_the_contract_names_these_functions() -> None:
    promised = (
        "sigmoid tanh relu leaky_relu softplus exp log abs sqrt square sin silu gelu hard_sigmoid "
        "max min"
    )
    assert set(promised.split()) <= set(ops.FUNCTIONS)
    assert {sign for sign, _ in ops.INFIX} == {"+", "-", "*", "/"}


def test_table_needs_no_torch() -> None:
    """Reading, printing and mutating cells work without loading torch."""
    code = "import sys, cellgraph.ops, cellgraph.notation; sys.exit('torch' in sys.modules)"
    root = Path(ops.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)

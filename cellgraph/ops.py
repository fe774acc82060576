"""The op table: one row defines an elementwise op completely; nothing else in the project keys on
op names.

What is not elementwise (inputs, states, parameters, numbers, the matrix product) is structure and
lives in
`graph.py`. This module imports no torch: `eager` takes the torch module as its first argument, so
that the same column computes values and, run on symbols, writes source code (see
`exporters/source.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Binding strength of what the notation can print; functions and leaves bind tightest.
SUM, PRODUCT, UNARY, MATRIX, ATOM = 1, 2, 3, 4, 5


def skew(stored: Any) -> Any:
    """W - W^T of the last two axes: what a cell multiplies with in the place of a matrix that it
    declares `skew`. Of tensors and of arrays; transposing before or after is the same."""
    return stored - stored.swapaxes(-1, -2)


@dataclass(frozen=True, slots=True)
class Op:
    """One elementwise op.

    `derivative` gives, per argument, the partial derivative as notation over the arguments `a`, `b`
    and the result
    `y`. `c` is a C expression over side-effect-free operands `{0}` and `{1}`, scalars or vectors:
    what <tgmath.h> has, `sigmoid`, and `select(condition, yes, no)`; comparisons are joined by |,
    which vectors have too. `domain` is an interval in which random arguments are safe and the
    derivative is smooth almost everywhere (for tests).

    What the rules of `rules.py` may use, of real arguments: `symmetry` s says f(-a) = s - f(a) (0: an
    odd function); `even` says f(-a) = f(a); `slopes` (p, q) says f(a) = p * a above zero and q * a below;
    `idempotent` says f(f(a)) = f(a), of two arguments f(a, a) = a; `nonnegative` says f(a) >= 0.
    """

    name: str
    eager: Callable[..., Any]
    derivative: tuple[str, ...]
    c: str
    latex: str
    infix: str | None = None
    binds: int = ATOM
    commutes: bool = False
    domain: tuple[float, float] = (-3.0, 3.0)
    symmetry: float | None = None
    even: bool = False
    slopes: tuple[float, float] | None = None
    idempotent: bool = False
    nonnegative: bool = False

    def __post_init__(self) -> None:
        for index in range(self.arity):
            hole = f"{{{index}}}"
            if hole not in self.c or hole not in self.latex:
                raise TypeError(f"op {self.name}: no {hole} in its C or LaTeX column")
        if self.arity not in (1, 2):
            raise TypeError(f"op {self.name}: one derivative per argument expected, one or two")

    @property
    def arity(self) -> int:
        return len(self.derivative)

    @property
    def cheap(self) -> bool:
        """No division and no function of the C library: a few cycles, less than a load and a
        store."""
        return not re.search(r"/|(?!select|fabs)\b[a-z]\w*\(", self.c)

    @property
    def signs(self) -> tuple[int, ...] | None:
        """The coefficients of a signed sum (add, sub, neg), read off the derivatives; None for any
        other op."""
        if all(d in ("1", "-1") for d in self.derivative):
            return tuple(int(d) for d in self.derivative)
        return None

    @property
    def powers(self) -> tuple[int, ...] | None:
        """The exponents of a product (mul, div), read off the derivatives; None for any other op."""
        if self.derivative == ("b", "a"):
            return 1, 1
        return (1, -1) if self.derivative == ("1 / b", "-y / b") else None


def _function(latex: str) -> str:
    return latex + r"\left({0}\right)"


# fmt: off
_ROWS = (
    Op("add", lambda t, a, b: a + b, ("1", "1"), "({0} + {1})", "{0} + {1}", "+", SUM, True),
    Op("sub", lambda t, a, b: a - b, ("1", "-1"), "({0} - {1})", "{0} - {1}", "-", SUM),
    Op("mul", lambda t, a, b: a * b, ("b", "a"), "({0} * {1})", r"{0} \odot {1}", "*", PRODUCT, True),
    Op("div", lambda t, a, b: a / b, ("1 / b", "-y / b"), "({0} / {1})", r"\frac{{{0}}}{{{1}}}", "/", PRODUCT,
       domain=(0.5, 3.0)),
    Op("max", lambda t, a, b: t.maximum(a, b), ("0.5 + 0.5 * sign(a - b)", "0.5 + 0.5 * sign(b - a)"),
       "select(({0} > {1}) | ({0} != {0}), {0}, {1})", r"\max\left({0}, {1}\right)", commutes=True,
       idempotent=True),
    Op("min", lambda t, a, b: t.minimum(a, b), ("0.5 + 0.5 * sign(b - a)", "0.5 + 0.5 * sign(a - b)"),
       "select(({0} < {1}) | ({0} != {0}), {0}, {1})", r"\min\left({0}, {1}\right)", commutes=True,
       idempotent=True),
    Op("neg", lambda t, a: -a, ("-1",), "(-{0})", "-{0}", "-", UNARY),
    Op("sigmoid", lambda t, a: t.sigmoid(a), ("y * (1 - y)",), "sigmoid({0})", _function(r"\sigma"),
       symmetry=1, nonnegative=True),
    Op("tanh", lambda t, a: t.tanh(a), ("1 - y * y",), "tanh({0})", _function(r"\tanh"), symmetry=0),
    Op("relu", lambda t, a: t.relu(a), ("step(a)",), "select({0} < 0, 0, {0})",
       _function(r"\operatorname{{ReLU}}"), slopes=(1, 0), idempotent=True, nonnegative=True),
    Op("leaky_relu", lambda t, a: t.nn.functional.leaky_relu(a, 0.01), ("0.01 + 0.99 * step(a)",),
       "select({0} > 0, {0}, {0} * 0.01)", _function(r"\operatorname{{LeakyReLU}}"),
       slopes=(1, 0.01)),
    # torch's softplus is linear above 20, where log1p(exp(x)) - x < 3e-9.
    Op("softplus", lambda t, a: t.nn.functional.softplus(a), ("sigmoid(a)",),
       "select({0} > 20, {0}, log1p(exp({0})))", _function(r"\operatorname{{softplus}}"), nonnegative=True),
    Op("exp", lambda t, a: t.exp(a), ("y",), "exp({0})", _function(r"\exp"), nonnegative=True),
    Op("log", lambda t, a: t.log(a), ("1 / a",), "log({0})", _function(r"\log"), domain=(0.2, 5.0)),
    Op("abs", lambda t, a: t.abs(a), ("sign(a)",), "fabs({0})", r"\left|{0}\right|",
       even=True, slopes=(1, -1), idempotent=True, nonnegative=True),
    Op("sqrt", lambda t, a: t.sqrt(a), ("0.5 / y",), "sqrt({0})", r"\sqrt{{{0}}}", domain=(0.2, 5.0),
       nonnegative=True),
    Op("square", lambda t, a: a * a, ("2 * a",), "({0} * {0})", r"\left({0}\right)^2",
       even=True, nonnegative=True),
    Op("sin", lambda t, a: t.sin(a), ("cos(a)",), "sin({0})", _function(r"\sin"), symmetry=0),
    Op("cos", lambda t, a: t.cos(a), ("-sin(a)",), "cos({0})", _function(r"\cos"), even=True),
    Op("erf", lambda t, a: t.erf(a), ("1.1283791670955126 * exp(-(a * a))",), "erf({0})",
       _function(r"\operatorname{{erf}}"), symmetry=0),
    Op("silu", lambda t, a: t.nn.functional.silu(a), ("sigmoid(a) * (1 + a * (1 - sigmoid(a)))",),
       "({0} / (1 + exp(-{0})))", _function(r"\operatorname{{SiLU}}")),
    # The exact (erf) form, torch's default; 0.7071… = 1/sqrt(2), 0.3989… = 1/sqrt(2 pi).
    Op("gelu", lambda t, a: t.nn.functional.gelu(a),
       ("0.5 + 0.5 * erf(a * 0.7071067811865476) + 0.3989422804014327 * a * exp(a * a / -2)",),
       "({0} * (0.5 + 0.5 * erf({0} * 0.70710678118654752)))", _function(r"\operatorname{{GELU}}")),
    # torch's hardsigmoid, whose own backward multiplies by a sixth rounded to float32.
    Op("hard_sigmoid", lambda t, a: t.nn.functional.relu6(a + 3) / 6, ("step(a + 3) * step(3 - a) / 6",),
       "select({0} <= -3, 0, select({0} >= 3, 1, {0} / 6 + 0.5))", _function(r"\operatorname{{hs}}"),
       symmetry=1, nonnegative=True),
    Op("sign", lambda t, a: t.sign(a), ("0",), "select({0} > 0, 1, select({0} < 0, -1, 0))",
       _function(r"\operatorname{{sign}}"), symmetry=0, idempotent=True),
    # The derivative of relu: 1 above zero, else 0 (torch's convention at zero itself).
    Op("step", lambda t, a: t.sign(t.relu(a)), ("0",), "select({0} > 0, 1, 0)", _function(r"\mathbf{{1}}_{{>0}}"),
       idempotent=True, nonnegative=True),
)
# fmt: on

OPS: dict[str, Op] = {row.name: row for row in _ROWS}
INFIX: dict[tuple[str, int], Op] = {(row.infix, row.arity): row for row in _ROWS if row.infix}
FUNCTIONS: dict[str, Op] = {row.name: row for row in _ROWS if row.infix is None}

if len(OPS) != len(_ROWS):
    raise TypeError("two rows of the op table share a name")

"""The rules of the normal form, as a table: name, equations in notation, function.

Equality is that of real numbers, where both sides are finite: `0 * a = 0` holds although an
infinite a makes NaN of it, and numbers are folded in float64. Parameters are nominal: no rule
merges two of them or lets one absorb a factor, because their starts matter.

Rules work on the terms of `normal.py`. There a value is a pair (k, term), a number times a term
without one, and sums and products have any number of arguments, each with a weight: its coefficient
or exponent. The rules of sums, and those of products, run once in the order of the table, those of
functions until one applies; `rewrites.py` has what they do.

What needs no rule: arguments of commutative ops have no order, equal terms are one term (common
subexpressions), and -(-a) is the pair of a. Dead code and dead states are gone because only what
the output reaches is read; the order of states is settled by `canonical.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cellgraph import rewrites
from cellgraph.ops import Op


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. `equations` hold for vectors a, b, c and a matrix W, in notation.

    `rewrites`: the right side is the better cell, and `simplify` writes it. The other rules only
    decide that both sides are one value, and the cell keeps the side that it has.
    """

    name: str
    equations: tuple[str, ...]
    apply: Callable[..., Any]
    rewrites: bool = True
    fits: Callable[[Op], bool] = lambda op: False  # the rows of the op table that it is for


SUMS = (
    Rule(
        "nested sums",
        ("a + (b + c) = (c + a) + b", "a - (b - c) = a + c - b"),
        rewrites.nested_sums,
        False,
    ),
    Rule("like terms", ("a + a = 2 * a", "a + b - 3 * a = b - 2 * a"), rewrites.like_terms),
    Rule(
        "zero terms", ("a + 0 = a", "a - a = 0", "(a + b) - (b + c) = a - c"), rewrites.zero_terms
    ),
    Rule(
        "common factor",
        ("2 * a - 2 * c = 2 * (a - c)", "-(a - 3 * b) = 3 * b - a"),
        rewrites.common_factor,
        False,
    ),
)

PRODUCTS = (
    Rule(
        "nested products",
        ("a * (b * c) = (c * a) * b", "a / b / c = a / (b * c)"),
        rewrites.nested_products,
        False,
    ),
    Rule(
        "numbers of a product",
        ("2 * (3 * a) = 6 * a", "-a * -b = a * b", "6 * a / 2 = 3 * a"),
        rewrites.numbers,
    ),
    Rule(
        "number out of a product",
        ("1 * a = a", "a / 1 = a", "a / 4 = 0.25 * a", "a * -b = -(a * b)"),
        rewrites.pulled_number,
        False,
    ),
    Rule("zero factor", ("0 * a = 0", "0 / a = 0"), rewrites.zero_factor),
    Rule(
        "like factors",
        ("a * b * a = a * a * b", "a / b / b = a / (b * b)"),
        rewrites.like_factors,
        False,
    ),
    Rule("even powers", ("abs(a) * abs(a) = a * a",), rewrites.even_powers),
)

FUNCTIONS = (
    Rule(
        "constant folding",
        ("exp(0) * a = a", "sigmoid(0) * a = a / 2", "max(2, 3) + a = a + 3"),
        rewrites.folded,
        fits=lambda op: op.signs is None and op.powers is None,
    ),
    Rule(
        "square is a product",
        ("square(a) = a * a", "square(2 * a) = 4 * a * a"),
        rewrites.square,
        False,
        fits=lambda op: op.name == rewrites.SQUARE,
    ),
    Rule(
        "even functions",
        ("cos(-a) = cos(a)", "abs(sin(a) - b) = abs(b - sin(a))"),
        rewrites.even,
        fits=lambda op: op.even,
    ),
    Rule(
        "even functions of abs",
        ("cos(abs(a)) = cos(a)", "abs(abs(a)) = abs(a)"),
        rewrites.even_of_abs,
        fits=lambda op: op.even,
    ),
    Rule(
        "point symmetry",
        (
            "tanh(-a) = -tanh(a)",
            "sin(exp(b) - a) = -sin(a - exp(b))",
            "sigmoid(-a) = 1 - sigmoid(a)",
            "hard_sigmoid(-a) = 1 - hard_sigmoid(a)",
        ),
        rewrites.point_symmetric,
        False,
        fits=lambda op: op.symmetry is not None,
    ),
    Rule(
        "one sign only",
        (
            "relu(sigmoid(a)) = sigmoid(a)",
            "abs(exp(a)) = exp(a)",
            "relu(a * a) = a * a",
            "relu(-abs(a)) = 0",
            "leaky_relu(relu(a)) = relu(a)",
        ),
        rewrites.one_sided,
        fits=lambda op: op.slopes is not None,
    ),
    Rule(
        "factor out of a kinked line",
        ("relu(2 * a) = 2 * relu(a)", "abs(-3 * a) = 3 * abs(a)"),
        rewrites.homogeneous,
        False,
        fits=lambda op: op.slopes is not None,
    ),
    Rule(
        "idempotence",
        ("sign(sign(a)) = sign(a)", "step(step(a)) = step(a)", "max(a, a) = a", "min(a, a) = a"),
        rewrites.idempotent,
        fits=lambda op: op.idempotent,
    ),
    Rule(
        "maximum with zero",
        ("max(a, 0) = relu(a)",),
        rewrites.rectifier,
        fits=lambda op: op.name == rewrites.MAX,
    ),
    Rule(
        "root of a square",
        ("sqrt(a * a) = abs(a)", "sqrt(square(a * b)) = abs(b * a)"),
        rewrites.root_of_square,
        fits=lambda op: op.name == rewrites.SQRT,
    ),
    Rule(
        "logarithm of exp",
        ("log(exp(a)) = a", "log(exp(2 * a)) = a + a"),
        rewrites.log_of_exp,
        fits=lambda op: op.name == rewrites.LOG,
    ),
)

MATRICES = (
    Rule(
        "number out of a matrix product",
        ("W @ -a = -(W @ a)", "W @ (2 * a) = 2 * (W @ a)", "W @ (0 * a) + b = b"),
        rewrites.number_out_of_matrix,
        False,
    ),
)

RULES: tuple[Rule, ...] = (*SUMS, *PRODUCTS, *FUNCTIONS, *MATRICES)

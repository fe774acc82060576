"""What the rules of `rules.py` do: one function a row.

A rule for sums or products gets a *view*, (k, [(weight, term), …]), and returns another; a rule for
functions gets the op and its values and returns a value; all return None where they do not apply.
The names of ops that a rule knows stand here and nowhere else outside the op table; what many ops
have in common is a column of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cellgraph.graph import CONST
from cellgraph.ops import OPS

if TYPE_CHECKING:
    from cellgraph.normal import Form

Value = tuple[float, int]
View = tuple[float, list[tuple[float, int]]]
ONE = 0  # the term of the number 1, in every form
SUM, PRODUCT, FILL = "sum", "product", "fill"
ABS, RELU, MAX, EXP, LOG, SQRT, SQUARE = "abs", "relu", "max", "exp", "log", "sqrt", "square"
LONGEST = (
    64  # arguments of a sum or product; longer ones are kept in pieces, lest time be quadratic
)


def scaled(a: float, b: float) -> float | None:
    """a * b; None where the product of two numbers leaves the range of float64."""
    product = a * b
    if math.isfinite(product) and (product != 0 or a == 0 or b == 0):
        return product + 0.0
    return None


# -- sums: (k, [(coefficient, term), …]) -----------------------------------------------------------


def nested_sums(form: Form, view: View) -> View | None:
    k, terms = view
    if SUM not in [form.op[t] for _, t in terms]:
        return None
    out: list[tuple[float, int]] = []
    for coefficient, t in terms:
        inner = [(coefficient, t)]
        if form.op[t] == SUM:
            products = [scaled(coefficient, w) for w in form.weights[t]]
            if None not in products:
                inner = list(zip(products, form.args[t], strict=True))  # type: ignore[arg-type]
        out += inner
    return (k, out) if len(out) <= LONGEST and len(out) > len(terms) else None


def like_terms(form: Form, view: View) -> View | None:
    k, terms = view
    if len({t for _, t in terms}) == len(terms):
        return None
    merged: dict[int, float] = {}
    for coefficient, t in terms:
        merged[t] = merged.get(t, 0.0) + coefficient
    if not all(map(math.isfinite, merged.values())):
        return None
    return k, [(coefficient + 0.0, t) for t, coefficient in merged.items()]


def zero_terms(form: Form, view: View) -> View | None:
    k, terms = view
    kept = [(coefficient, t) for coefficient, t in terms if coefficient]
    return (k, kept) if len(kept) < len(terms) else None


def common_factor(form: Form, view: View) -> View | None:
    """Coefficients of one size make it the factor, and of a mixed sum the first group of terms that
    is not its own negative is positive. Groups are ordered by what the terms look like without
    names; where all are their own negatives (`U @ h - V @ h`), the sum stays as it is written."""
    k, terms = view
    if len(terms) < 2:
        return None
    sizes = {abs(coefficient) for coefficient, _ in terms}
    size = sizes.pop() if len(sizes) == 1 else 1.0
    sign = 1.0
    if min(terms)[0] < 0:
        groups: dict[int, list[float]] = {}
        for coefficient, t in terms:
            groups.setdefault(form.shape[t], []).append(coefficient)
        for look in sorted(groups):
            ours, theirs = sorted(groups[look]), sorted(-c for c in groups[look])
            if ours != theirs:
                sign = 1.0 if ours > theirs else -1.0
                break
    factor = scaled(k, size * sign)
    if size * sign == 1 or factor is None:
        return None
    return factor, [(coefficient / size * sign, t) for coefficient, t in terms]


# -- products: (k, [(exponent, term), …]) ----------------------------------------------------------


def nested_products(form: Form, view: View) -> View | None:
    """A quotient in a denominator stays: where its own denominator is zero, it is not finite."""
    k, factors = view
    if PRODUCT not in [form.op[t] for _, t in factors]:
        return None
    out: list[tuple[float, int]] = []
    for exponent, t in factors:
        if form.op[t] == PRODUCT and (exponent > 0 or min(form.weights[t]) > 0):
            out += [(exponent * w, a) for w, a in zip(form.weights[t], form.args[t], strict=True)]
        else:
            out.append((exponent, t))
    return (k, out) if out != factors and len(out) <= LONGEST else None


def numbers(form: Form, view: View) -> View | None:
    """All numbers of a product as one, those below the line where their reciprocal is exact."""
    k, factors = view
    found = [(e, t) for e, t in factors if form.op[t] == CONST]
    if len(found) < 2:
        return None
    product: float | None = 1.0
    kept = [(e, t) for e, t in factors if form.op[t] != CONST]
    for exponent, t in found:
        number = form.number(t)
        if exponent > 0 and product is not None:
            product = scaled(product, number)
        elif product is not None and (reciprocal := _reciprocal(number)) is not None:
            product = scaled(product, reciprocal)
        else:
            kept.append((exponent, t))
    if product is None or len(kept) == len(factors) - 1:
        return None
    return k, [*kept, (1.0, form.constant(product))]


def _reciprocal(number: float) -> float | None:
    """1 / number, if float64 has it."""
    if number == 0 or abs(math.frexp(number)[0]) != 0.5 or not math.isfinite(1 / number):
        return None
    return 1 / number


def pulled_number(form: Form, view: View) -> View | None:
    k, factors = view
    kept: list[tuple[float, int]] = []
    product: float | None = k
    for exponent, t in factors:
        number = form.number(t) if form.op[t] == CONST else None
        if number is not None and exponent < 0:
            number = _reciprocal(number)
        changed = None if number is None or product is None else scaled(product, number)
        if changed is None:
            kept.append((exponent, t))
        else:
            product = changed
    return None if len(kept) == len(factors) or product is None else (product, kept)


def zero_factor(form: Form, view: View) -> View | None:
    k, factors = view
    return (0.0, []) if k == 0 and factors else None


def like_factors(form: Form, view: View) -> View | None:
    """Nothing is cancelled: a / a is no number where a is zero."""
    k, factors = view
    merged: dict[tuple[int, bool], float] = {}
    for exponent, t in factors:
        merged[t, exponent > 0] = merged.get((t, exponent > 0), 0.0) + exponent
    if len(merged) == len(factors):
        return None
    return k, [(exponent, t) for (t, _), exponent in merged.items()]


def even_powers(form: Form, view: View) -> View | None:
    k, factors = view
    out = [
        (e, form.args[t][0]) if form.op[t] == ABS and e % 2 == 0 and _plain(form, t) else (e, t)
        for e, t in factors
    ]
    return (k, out) if out != factors else None


# -- functions: op and values -> value -------------------------------------------------------------


def _plain(form: Form, t: int) -> bool:
    """Is the function's argument a term without a number?"""
    return abs(form.weights[t][0]) == 1


def folded(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    for _, t in args:
        if t != ONE:
            return None
    from cellgraph.numeric import number  # numpy takes longer to load than all of this package

    result = number(op, *(k for k, _ in args))
    return (result + 0.0, ONE) if math.isfinite(result) else None


def point_symmetric(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    if k >= 0:
        return None
    inner, term = form.call(op, ((-k, t),))
    total = OPS[op].symmetry
    return form.sum(((total, ONE), (-inner, term))) if total else (-inner, term)


def even(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    return form.call(op, ((-k, t),)) if k < 0 else None


def even_of_abs(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    if form.op[t] != ABS or not _plain(form, t):
        return None
    return form.call(op, ((k, form.args[t][0]),))


def one_sided(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    above, below = OPS[op].slopes or (0.0, 0.0)
    slope = scaled(above if k > 0 else below, k)
    if not form.nonnegative[t] or slope is None:
        return None
    return (slope, t) if slope else (0.0, ONE)


def homogeneous(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    if abs(k) in (0.0, 1.0):
        return None
    inner, term = form.call(op, ((math.copysign(1.0, k), t),))
    factor = scaled(inner, abs(k))
    return None if factor is None else (factor, term)


def idempotent(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    k, t = args[0]
    if len(args) == 2:
        return args[0] if args[0] == args[1] else None
    return args[0] if k == 1 and form.op[t] == op else None


def rectifier(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    (k, t), (other, zero) = args if args[1] == (0.0, ONE) else args[::-1]
    return form.call(RELU, ((k, t),)) if (other, zero) == (0.0, ONE) else None


def root_of_square(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    if form.op[t] != PRODUCT or k != 1 or any(e % 2 for e in form.weights[t]):
        return None
    halves = [(e / 2, a) for e, a in zip(form.weights[t], form.args[t], strict=True)]
    return form.call(ABS, (form.product(halves),))


def log_of_exp(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    return (form.weights[t][0], form.args[t][0]) if k == 1 and form.op[t] == EXP else None


def square(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    ((k, t),) = args
    factor = scaled(k, k)
    if factor is None:
        return None
    inner, term = form.product([(2.0, t)])
    factor = scaled(factor, inner)
    return None if factor is None else (factor, term)


# -- matrix products


def number_out_of_matrix(form: Form, op: str, args: tuple[Value, ...]) -> Value | None:
    matrix, (k, t) = args
    if k == 1:
        return None
    if k == 0:
        return 0.0, ONE
    return k, form.call(op, (matrix, (1.0, t)))[1]

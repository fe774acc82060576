"""Gates that share one whole: `z * a + (1 - z) * b`, however it is written (`b + z * (a - b)`), and
`f / (f + i) * a + i / (f + i) * b`.

Every sum of a cell is read as a polynomial in its values, products multiplied out. A gate `z`
blends where the terms without it come back with the opposite sign in what `z` is multiplied by, and
something else is left there. Sums with a line of their own stay in one piece, unless they are an
affine form of one value, so that a polynomial is about as long as the equation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cellgraph.gates import COEFFICIENTS, Reading
from cellgraph.graph import CONST, Node
from cellgraph.ops import INFIX
from cellgraph.printing import render
from cellgraph.rewrites import ONE, PRODUCT, SUM, Value

_MOST = 64  # monomials of a polynomial; a product that would exceed it stays in one piece
_ADD, _SUBTRACT, _MULTIPLY = (INFIX[s, 2].name for s in "+-*")

_Monomial = tuple[tuple[int, float], ...]  # (term, exponent), sorted
_Polynomial = dict[_Monomial, float]


@dataclass(frozen=True, slots=True)
class Coupling:
    """Shares of one whole: `value` = shares[0] * parts[0] + shares[1] * parts[1] + …, and maybe
    something else. `gates`: their names. `value`: the line of the cell, "" for a part of one."""

    value: str
    gates: tuple[str, ...]
    shares: tuple[str, ...]
    parts: tuple[str, ...]
    equation: str


def couplings(reading: Reading) -> tuple[Coupling, ...]:
    """All couplings of a cell, in the order of its values."""
    signs = {t: k for k, t in reversed(reading.written)}
    inside: dict[int, set[tuple[str, ...]]] = {}  # what a sum shares out, others in it included
    found: dict[tuple[str, ...], Coupling] = {}
    # A sum of three terms is written as two: the first of them is nothing by itself.
    used = {a for t in reading.live for a in reading.form.args[t]}
    for t in reading.live:
        if reading.form.op[t] == SUM and (t in used or reading.line(t)):
            opened: set[int] = set()
            polynomial = {m: signs[t] * c for m, c in _expanded(reading, t, opened).items()}
            known = set[tuple[str, ...]]().union(*(inside.get(a, ()) for a in opened))
            inside[t] = known.copy()
            for coupling in [*_blends(reading, t, polynomial), *_ratios(reading, t, polynomial)]:
                inside[t].add(coupling.shares)
                if coupling.shares not in known:
                    found.setdefault((*coupling.shares, *coupling.parts), coupling)
    return tuple(found.values())


# -- polynomials -----------------------------------------------------------------------------------


def _expanded(reading: Reading, t: int, opened: set[int]) -> _Polynomial:
    """A sum or product, multiplied out. `opened` gets the sums in it that have been."""
    form = reading.form
    if form.op[t] == SUM:
        made: _Polynomial = {}
        for weight, a in zip(form.weights[t], form.args[t], strict=True):
            inner = _expanded(reading, a, opened) if form.op[a] == PRODUCT else _alone(a)
            for monomial, c in inner.items():
                made[monomial] = made.get(monomial, 0.0) + weight * c
        made = {monomial: c for monomial, c in made.items() if c}
    else:
        made = {(): 1.0}
        for exponent, a in zip(form.weights[t], form.args[t], strict=True):
            inner = _alone(a, exponent)
            if exponent == 1 and form.op[a] == SUM and _opens(reading, a) and len(opened) < _MOST:
                opened.add(a)
                inner = _expanded(reading, a, opened)
            product: _Polynomial = {}
            for m, c in made.items():
                for n, d in inner.items():
                    monomial = _times(m, n)
                    product[monomial] = product.get(monomial, 0.0) + c * d
            made = {monomial: c for monomial, c in product.items() if c}
            if len(made) > _MOST:
                made = {tuple(sorted(zip(form.args[t], form.weights[t], strict=True))): 1.0}
                break
    return made if len(made) <= _MOST else _alone(t)


def _alone(t: int, exponent: float = 1.0) -> _Polynomial:
    return {() if t == ONE else ((t, exponent),): 1.0}


def _opens(reading: Reading, t: int) -> bool:
    """Is a factor multiplied out: has it no line, or is it but a form of a gate (`1 - z`)?"""
    return reading.core[t] in reading.gates or not reading.line(t)


def _times(a: _Monomial, b: _Monomial) -> _Monomial:
    """Nothing is cancelled: powers above and below the line stay apart."""
    powers: dict[tuple[int, bool], float] = {}
    for t, exponent in (*a, *b):
        powers[t, exponent > 0] = powers.get((t, exponent > 0), 0.0) + exponent
    return tuple(sorted((t, exponent) for (t, _), exponent in powers.items()))


def _without(monomial: _Monomial, factors: _Monomial) -> _Monomial | None:
    """The rest of a monomial; None if it has not all the factors, or `a / a` in it."""
    powers = dict(monomial)
    if len(powers) < len(monomial):
        return None
    for t, exponent in factors:
        rest = powers.get(t, 0.0) - exponent
        if (powers.pop(t, 0.0) > 0) != (exponent > 0) or rest * exponent < 0:
            return None
        if rest:
            powers[t] = rest
    return tuple(sorted(powers.items()))


def _value(reading: Reading, polynomial: _Polynomial) -> Value:
    """What a polynomial comes to, in normal form."""
    form, terms = reading.form, list[Value]()
    for monomial, c in polynomial.items():
        k, t = form.product([(exponent, t) for t, exponent in monomial])
        terms.append((c * k, t))
    return form.sum(terms)


# -- couplings -------------------------------------------------------------------------------------


def _blends(reading: Reading, t: int, polynomial: _Polynomial) -> Iterator[Coupling]:
    """`z * a + (1 - z) * b` for every gate that the polynomial has to the first power."""
    for gate in reading.gates:
        if any(t == gate and exponent != 1 for m in polynomial for t, exponent in m):
            continue
        inside, outside = _Polynomial(), _Polynomial()
        for monomial, c in polynomial.items():
            rest = _without(monomial, ((gate, 1.0),))
            if rest is None:
                outside[monomial] = c
            else:
                inside[rest] = c
        # By what stands before the gate (`dt` in `dt * z`): the monomials that it shares out.
        shared: dict[tuple[_Monomial, float], dict[_Monomial, _Monomial]] = {}
        for a, c in inside.items():
            for b, d in outside.items():
                scale = _without(a, b)
                if scale is not None and c / d < 0 and _fixed(reading, scale):
                    shared.setdefault((scale, -c / d), {})[a] = b
        for (scale, size), pairs in shared.items():
            kept = {a: c for a, c in inside.items() if a not in pairs}
            rests = ((_without(a, scale), c / size) for a, c in kept.items())
            parts = {rest: c for rest, c in rests if rest is not None}
            if not parts or len(parts) < len(kept):
                continue
            share = _value(reading, {_times(scale, ((gate, 1.0),)): size})
            other = reading.form.sum([(1.0, ONE), (-share[0], share[1])])
            taken = {b: outside[b] for b in pairs.values()}
            whole = [(share, _value(reading, parts)), (other, _value(reading, taken))]
            if other in reading.written and share not in reading.written:
                whole.reverse()
            yield _coupling(reading, t, whole, [gate])
            break


def _fixed(reading: Reading, monomial: _Monomial) -> bool:
    """Does it depend on nothing?"""
    return all(reading.form.op[t] in COEFFICIENTS for t, _ in monomial)


def _ratios(reading: Reading, t: int, polynomial: _Polynomial) -> Iterator[Coupling]:
    """`f / (f + i) * a + i / (f + i) * b` for every sum of gates that is a divisor."""
    form = reading.form
    divisors = dict.fromkeys(s for m in polynomial for s, e in m if e == -1 and form.op[s] == SUM)
    for divisor in divisors:
        whole: list[tuple[Value, Value]] = []
        gates = form.args[divisor]
        for weight, gate in zip(form.weights[divisor], gates, strict=True):
            share = ((gate, 1.0), (divisor, -1.0))
            rests = ((_without(m, share), c / weight) for m, c in polynomial.items())
            part = {rest: c for rest, c in rests if rest}
            if gate in reading.gates and weight > 0 and part:
                whole.append((_value(reading, {_times(share, ()): weight}), _value(reading, part)))
        if len(whole) == len(gates):
            yield _coupling(reading, t, whole, gates)


def _coupling(
    reading: Reading, t: int, whole: list[tuple[Value, Value]], gates: Iterable[int]
) -> Coupling:
    nodes = [(_share(reading, share), reading.node(part)) for share, part in whole]
    total, *others = (Node(_MULTIPLY, pair) for pair in nodes)
    for other in others:
        total = Node(_ADD, (total, other))
    names: dict[str, None] = {}
    for gate in gates:
        names[reading.gates[gate]] = None
    for share, _ in nodes:  # `f = 1 - i` has a name too
        names |= {reading.lines[share]: None} if share in reading.lines else {}
    return Coupling(
        value=reading.line(t),
        gates=tuple(names),
        shares=tuple(render(share, reading.lines) for share, _ in nodes),
        parts=tuple(render(part, reading.lines) for _, part in nodes),
        equation=render(total, reading.lines, top=True),
    )


def _share(reading: Reading, share: Value) -> Node:
    """A share as a node; `1 - z` where that is not written anywhere."""
    k, t = share
    form = reading.form
    if share in reading.written or form.op[t] != SUM:
        return reading.node(share)
    whole = form.sum([(1.0, ONE), (-k, t)])
    return Node(_SUBTRACT, (Node(CONST, (), 1.0), reading.node(whole)))

"""Blends in a sum of products: which parts of it are `a * b + (1 - a) * c`.

Products are numbers here: each factor is some node's place in its cell. Nothing else of a cell is
known, but for a way to multiply out. `recipes.py` makes nodes of what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Factors = tuple[int, ...]  # ascending
Product = tuple[float, Factors]  # a number times some factors
Products = dict[Factors, float]  # a sum: how often each product is in it


@dataclass(frozen=True, slots=True)
class Blend:
    """`gate * kept + (1 - gate) * new`."""

    gate: Product
    kept: Products = field(default_factory=dict)
    new: Products = field(default_factory=dict)


class NoBlend(Exception):  # noqa: N818 - an answer, not a fault
    """A product that finds no place: `gate` has nothing to keep, or there is none and it is
    subtracted."""

    def __init__(self, factors: Factors, gate: Product | None = None) -> None:
        super().__init__(factors, gate)
        self.factors, self.gate = factors, gate


def joined(a: Factors, b: Factors) -> Factors:
    """The factors of a product of products."""
    return tuple(sorted((*a, *b)))


def without(factors: Factors, part: Factors) -> Factors | None:
    """What remains of a product when a part of it is taken out; None where that is nothing, or
    where the part is not in it."""
    if len(part) >= len(factors):
        return None
    rest = list(factors)
    for factor in part:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def found(
    products: Products,
    gated: Mapping[Product, Products],
    expand: Callable[[Factors], Iterable[Product] | None],
    most: int,
) -> tuple[list[Blend], Products]:
    """The blends in a sum of `products` and, by gate, of products `(1 - gate) * c`; and what is
    left of it, nothing of which is negative.

    `expand` gives the products that another one is the sum of, or None. Raises `NoBlend`, also when
    the sum grows beyond `most` products.
    """
    blends = {gate: Blend(gate, new=dict(new)) for gate, new in gated.items()}
    rest = {factors: times for factors, times in products.items() if times}
    while (factors := next((f for f, times in rest.items() if times < 0), None)) is not None:
        times = rest.pop(factors)
        # -a * c beside c is (1 - a) * c.
        if (split := _split(rest, factors, -times)) is not None:
            gate, new = split
            blend = blends.setdefault((1.0, gate), Blend((1.0, gate)))
            _add(blend.new, new, -times)
            _add(rest, new, times)
        elif len(rest) < most and (parts := expand(factors)) is not None:
            for number, part in parts:
                _add(rest, part, times * number)
        else:
            raise NoBlend(factors)
    # Each gate needs something to keep; those with the least choice come first.
    choice = {gate: _keepable(rest, gate) for gate in blends}
    while choice:
        least = min(choice, key=lambda g: len(choice[g]))
        if not choice[least]:
            raise NoBlend(next(iter(blends[least].new)), least)
        taken = choice.pop(least)[0]
        _keep(blends[least], rest, taken)
        for others in choice.values():
            if taken in others:
                others.remove(taken)
    for blend in blends.values():
        for product in _keepable(rest, blend.gate):
            _keep(blend, rest, product)
    return list(blends.values()), rest


def _split(rest: Products, factors: Factors, times: float) -> tuple[Factors, Factors] | None:
    """A negative product as gate and c, where c is there and something that the gate can keep."""
    for new, often in rest.items():
        gate = without(factors, new) if often >= times and new else None
        if gate is not None and any(k != new for k in _keepable(rest, (1.0, gate))):
            return gate, new
    return None


def _keepable(rest: Products, gate: Product) -> list[Factors]:
    """The products that are the gate times something."""
    number, factors = gate
    return [
        product
        for product, times in rest.items()
        if times > 0 and times % number == 0 and without(product, factors) is not None
    ]


def _keep(blend: Blend, rest: Products, product: Factors) -> None:
    number, factors = blend.gate
    kept = without(product, factors)
    if kept is not None:
        blend.kept[kept] = rest.pop(product) / number


def _add(products: Products, factors: Factors, times: float) -> None:
    total = products.get(factors, 0.0) + times
    if total:
        products[factors] = total
    else:
        products.pop(factors, None)

"""Random recipes: the generator of NAS-Bench-NLP (Klyuchnikov et al. 2020, arXiv 2006.07116), from
the released code."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cellgraph.errors import CellError
from cellgraph.nasbench import ACTIVATIONS, ARITY, BLEND, LINEAR, PRODUCT, SUM, Recipe, shown

_MAIN = ((LINEAR, BLEND, PRODUCT, SUM), (3, 1, 1, 1))  # ops and their weights
_INPUTS_OF_LINEAR = ((2, 3), (4, 1))


def sample_recipe(rng: random.Random, states: int = 1, intermediates: int = 14) -> Recipe | None:
    """One draw of the generator that NAS-Bench-NLP was made with; None where that is not valid.

    The generator wires `states + intermediates` random nodes (one more where the last is a linear,
    which an activation always follows), makes `states` of them `h_new_i`, and leaves out what those
    do not need. A recipe is valid if x and every `h_prev_i` are left in it and no `h_new_i` reads
    an `h_prev_i` directly. Of 100 draws with 1, 2, 3 states about 70, 27, 7 are valid.

    All that is drawn comes from `rng` and from lists, so that the same state of it gives the same
    recipe everywhere. (The released code draws from a `set`, whose order PYTHONHASHSEED decides.)
    Raises `CellError` for sizes out of range.
    """
    for what, value, least in (("states", states, 1), ("intermediates", intermediates, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 100:
            given = value if isinstance(value, int) and abs(value) < 10**9 else shown(value)
            raise CellError(f"{what} is {given}, expected a whole number from {least} to 100")
    before = [f"h_prev_{i}" for i in range(states)]
    recipe = _wired(rng, before, states + intermediates)
    new = {name: f"h_new_{i}" for i, name in enumerate(rng.sample(list(recipe), states))}
    renamed: Recipe = {}
    for name in [*(name for name in recipe if name not in new), *new]:
        inputs = [new.get(argument, argument) for argument in recipe[name]["input"]]
        renamed[new.get(name, name)] = {"op": recipe[name]["op"], "input": inputs}
    needed = dict.fromkeys(new.values())
    pending = list(needed)
    while pending:
        for argument in renamed.get(pending.pop(), {"input": ()})["input"]:
            if argument not in needed:
                needed[argument] = None
                pending.append(argument)
    if any(name not in needed for name in ["x", *before]):
        return None
    if any(name in before for end in new.values() for name in renamed[end]["input"]):
        return None
    return {name: node for name, node in renamed.items() if name in needed}


def _wired(rng: random.Random, before: Sequence[str], size: int) -> Recipe:
    """Nodes over x and the states. A linear reads x, states and activations that followed a linear;
    a blend, product or sum reads states and any node, but not x."""
    recipe: Recipe = {}
    activations: list[str] = []

    def add(op: str, inputs: list[str]) -> str:
        name = f"node_{len(recipe)}"
        recipe[name] = {"op": op, "input": inputs}
        return name

    while len(recipe) < size:
        (op,) = rng.choices(*_MAIN)
        if op == LINEAR:
            (number,) = rng.choices(*_INPUTS_OF_LINEAR)
            known = ["x", *before, *activations]
            linear = add(op, rng.sample(known, min(number, len(known))))
            activations.append(add(rng.choice(list(ACTIVATIONS)), [linear]))
        else:
            known, number = [*before, *recipe], ARITY[op] or 1
            if number <= len(known):
                add(op, rng.sample(known, number))
    return recipe

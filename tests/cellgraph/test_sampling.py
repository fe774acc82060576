"""The generator of NAS-Bench-NLP: what the released one draws, and the same for the same state."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cellgraph as cg
from tests.cellgraph.recipe_examples import drawn

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("states", [1, 2, 3])
def test_what_is_drawn(states: int) -> None:
    for recipe in drawn(20 + states, 40, states):
        before = {f"h_prev_{i}" for i in range(states)}
        read = [argument for n in recipe.values() for argument in n["input"]]
        assert before | {"x"} <= {*read}
        assert {*read} - before - {"x"} <= recipe.keys()
        for i in range(states):
            assert before.isdisjoint(recipe[f"h_new_{i}"]["input"])
        for n in recipe.values():
            assert len({*n["input"]}) == len(n["input"])
            assert "x" not in n["input"] or n["op"] == "linear"
            if n["op"] == "linear":
                assert len(n["input"]) in (2, 3)
                for made in [recipe[a] for a in n["input"] if a in recipe]:
                    assert made["op"].startswith("activation_")
                    assert recipe[made["input"][0]]["op"] == "linear"
        assert len(recipe) <= states + 14 + 1


# Of the released generator, 1,500 draws each.
VALID = {(1, 7): 0.59, (1, 14): 0.70, (1, 21): 0.75, (2, 7): 0.17, (2, 14): 0.27, (2, 21): 0.32,
         (3, 7): 0.04, (3, 14): 0.07, (3, 21): 0.14}  # fmt: skip


@pytest.mark.parametrize(("states", "intermediates"), VALID)
def test_as_many_draws_are_valid_as_of_the_released_generator(
    states: int, intermediates: int
) -> None:
    rng, n = random.Random(5), 1500
    valid = sum(cg.sample_recipe(rng, states, intermediates) is not None for _ in range(n))
    p = VALID[states, intermediates]
    assert abs(valid / n - p) < 3.5 * (2 * p * (1 - p) / n) ** 0.5 + 0.005


@pytest.mark.parametrize(("intermediates", "unique"), [(7, 0.66), (14, 0.83), (21, 0.90)])
def test_as_many_are_unique(intermediates: int, unique: float) -> None:
    rng = random.Random(6)
    draws = [cg.sample_recipe(rng, 1, intermediates) for _ in range(1500)]
    texts = [json.dumps(recipe) for recipe in draws if recipe is not None]
    assert abs(len({*texts}) / len(texts) - unique) < 0.04


def test_draws_depend_on_the_generator_alone() -> None:
    assert drawn(1, 5, 2) == drawn(1, 5, 2)
    assert drawn(1, 5, 2) != drawn(2, 5, 2)
    code = (
        "import json, random, cellgraph as cg\n"
        "rng = random.Random(3)\n"
        "draws = [cg.sample_recipe(rng, 2, 10) for _ in range(60)]\n"
        "cells = [cg.from_recipe(r) for r in draws if r]\n"
        "print(json.dumps([draws, [str(c) for c in cells], [cg.recipe(c) for c in cells]]))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    draws, cells, _ = json.loads(printed.pop())
    assert len(cells) > 3
    rng = random.Random(3)
    assert draws == [cg.sample_recipe(rng, 2, 10) for _ in range(60)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"states": 0}, "states is 0, expected a whole number from 1 to 100"),
        ({"states": 101}, "states is 101, expected a whole number from 1 to 100"),
        ({"intermediates": -1}, "intermediates is -1, expected a whole number from 0 to 100"),
        ({"intermediates": 10**5000}, "intermediates is a value of type int, expected a whole"),
        ({"intermediates": 2.0}, "intermediates is a value of type float, expected a whole"),
        ({"states": True}, "states is True, expected a whole number"),
    ],
)
def test_sizes_out_of_range(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.sample_recipe(random.Random(0), **sizes)
    assert str(caught.value).startswith(message)


def test_the_smallest_and_the_largest_draws() -> None:
    rng = random.Random(0)
    smallest = [r for _ in range(200) if (r := cg.sample_recipe(rng, 1, 0)) is not None]
    assert {len(r) for r in smallest} == {2}
    assert all(r is None or len(r) < 202 for r in (cg.sample_recipe(rng, 1, 100) for _ in range(9)))

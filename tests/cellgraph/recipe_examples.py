"""Recipes of NAS-Bench-NLP for the tests: those of three well-known cells, and drawn ones."""

from __future__ import annotations

import json
import random
from typing import Any

import cellgraph as cg

Recipe = dict[str, dict[str, Any]]


def node(op: str, *inputs: str) -> dict[str, Any]:
    return {"op": op, "input": list(inputs)}


def gate(op: str, name: str, *inputs: str) -> Recipe:
    return {name: node("linear", *inputs), f"{name}_a": node(f"activation_{op}", name)}


# The three cells that the benchmark is compared with.
RNN: Recipe = {"f": node("linear", "x", "h_prev_0"), "h_new_0": node("activation_tanh", "f")}
GRU: Recipe = {
    **gate("sigm", "r", "x", "h_prev_0"),
    **gate("sigm", "z", "x", "h_prev_0"),
    "rh": node("elementwise_prod", "r_a", "h_prev_0"),
    **gate("tanh", "g", "x", "rh"),
    "h_new_0": node("blend", "z_a", "h_prev_0", "g_a"),
}
LSTM: Recipe = {
    **gate("tanh", "i", "x", "h_prev_0"),
    **gate("sigm", "j", "x", "h_prev_0"),
    **gate("sigm", "f", "x", "h_prev_0"),
    **gate("tanh", "o", "x", "h_prev_0"),
    "h_new_1_part1": node("elementwise_prod", "f_a", "h_prev_1"),
    "h_new_1_part2": node("elementwise_prod", "i_a", "j_a"),
    "h_new_1": node("elementwise_sum", "h_new_1_part1", "h_new_1_part2"),
    "h_new_1_act": node("activation_tanh", "h_new_1"),
    "h_new_0": node("elementwise_prod", "h_new_1_act", "o_a"),
}
REFERENCE = {"tanh_rnn": RNN, "gru": GRU, "lstm_jozefowicz": LSTM}


def drawn(seed: int, number: int, states: int, intermediates: int = 14) -> list[Recipe]:
    rng = random.Random(seed)
    found: list[Recipe] = []
    while len(found) < number:
        recipe = cg.sample_recipe(rng, states, intermediates)
        if recipe is not None:
            found.append(recipe)
    return found


def assert_round_trip(cell: cg.CellGraph) -> Recipe:
    """Out and in again: the same function, and what comes in again has the same key."""
    recipe = cg.recipe(cell)
    back = cg.from_recipe(recipe, cell.name)
    assert cg.same_function(back, cell)
    again = cg.from_recipe(cg.recipe(back), cell.name)
    assert again.key() == back.key()
    assert json.loads(json.dumps(recipe)) == recipe
    return recipe

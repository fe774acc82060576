"""Recipes of NAS-Bench-NLP: in, out and drawn. Values are compared with a plain evaluation of
recipes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from cellgraph.interpret import unroll
from search.cli import main

Recipe = dict[str, dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]


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


# -- the meaning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCE)
def test_the_cells_of_the_benchmark_are_ours(name: str) -> None:
    cell = cg.from_recipe(REFERENCE[name], name)
    assert cg.same_function(cell, cg.load(name))
    assert cell.key() == cg.load(name).key()
    assert cell.name == name


def test_names_of_states_values_and_parameters() -> None:
    cell = cg.from_recipe(LSTM, "lstm")
    lines = str(cell).splitlines()
    assert lines[0] == "cell lstm(x, h_0, h_1)"
    assert "i = W_i @ x + U_i @ h_0 + b_i" in " ".join(str(cell).split())
    assert cg.parse(str(cell)) == cell
    awkward = {
        "scalar": node("linear", "h_prev_0", "x", "x", "h_prev_0", "h_prev_0"),
        "h_0": node("activation_tanh", "scalar"),
        "W_b": node("linear", "h_0"),
        "b": node("linear", "W_b", "x"),
        "tanh": node("activation_sigm", "b"),
        "h_new_0": node("elementwise_sum", "tanh", "h_prev_0"),
    }
    cell = cg.from_recipe(awkward)
    assert cg.parse(str(cell)) == cell
    columns = {p.name: p.cols for p in cell.params}
    assert columns == {
        "U_scalar_1": "H",
        "W_scalar_1": "X",
        "V_scalar_1": "X",
        "V2_scalar_1": "H",
        "V3_scalar_1": "H",
        "b_scalar_1": None,
        "W_W_b": "H",
        "b_W_b": None,
        "U_b": "H",
        "W_b_1": "X",
        "b_b": None,
    }
    assert_round_trip(cell)


def evaluated(
    recipe: Recipe, params: dict[str, Tensor], x: Tensor, states: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """One step of a recipe of `sample_recipe` by recursion: x (B, X), states (B, H)."""
    value = {"x": x} | {f"h_prev_{i}": state for i, state in enumerate(states)}

    def of(name: str) -> Tensor:
        if name not in value:
            op, inputs = recipe[name]["op"], recipe[name]["input"]
            args = [of(argument) for argument in inputs]
            if op == "linear":
                letters = ["W", "U", "V"]
                if "x" in inputs:
                    letters = ["U", "V"]
                    letters.insert(inputs.index("x"), "W")
                label = name.replace("h_new", "h")
                value[name] = params[f"b_{label}"].expand(x.shape[0], -1)
                for letter, argument in zip(letters, args, strict=False):
                    value[name] = value[name] + argument @ params[f"{letter}_{label}"].T
            elif op == "blend":
                value[name] = args[0] * args[1] + (1 - args[0]) * args[2]
            elif op == "elementwise_prod":
                value[name] = args[0] * args[1]
            elif op == "elementwise_sum":
                value[name] = args[0] + args[1]
            elif op == "activation_leaky_relu":
                value[name] = torch.where(args[0] > 0, args[0], 0.01 * args[0])
            else:
                value[name] = {"activation_tanh": torch.tanh, "activation_sigm": torch.sigmoid}[op](
                    args[0]
                )
        return value[name]

    return tuple(of(f"h_new_{i}") for i in range(len(states)))


@pytest.mark.parametrize("states", [1, 2, 3])
def test_values_and_gradients_of_drawn_recipes(states: int) -> None:
    T, B, X, H = 4, 3, 2, 5
    generator = torch.Generator().manual_seed(states)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / max(shape) ** 0.5

    for recipe in drawn(states, 12, states, 21):
        cell = cg.from_recipe(recipe)
        params = {p.name: draw(*p.shape({"H": H, "X": X})) for p in cell.params}
        leaves = [tensor.requires_grad_() for tensor in params.values()]
        x, start = draw(T, B, X), tuple(draw(B, H) for _ in range(states))
        output, last = unroll(cell, params, x, start)
        expected, current = [], start
        for x_t in x:
            current = evaluated(recipe, params, x_t, current)
            expected.append(current[0])
        torch.testing.assert_close(output, torch.stack(expected), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(last, current, rtol=1e-9, atol=1e-12)
        ours, theirs = (
            torch.autograd.grad(y.sum() + torch.stack(s).square().sum(), leaves)
            for y, s in ((output, last), (torch.stack(expected), current))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_x_outside_a_linear_is_as_wide_as_the_cell() -> None:
    recipe = {
        "a": node("linear", "x", "h_prev_0"),
        "h_new_0": node("blend", "a", "x", "h_prev_0"),
    }
    cell = cg.from_recipe(recipe)
    assert cell.raw_x == "H"
    assert cg.from_recipe(RNN).raw_x is None
    assert_round_trip(cell)


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [1, 2, 3])
def test_drawn_recipes_there_and_back(states: int) -> None:
    for intermediates in (7, 21):
        for recipe in drawn(10 + states, 25, states, intermediates):
            cell = cg.from_recipe(recipe)
            back = cg.from_recipe(cg.recipe(cell))
            assert back.key() == cell.key()
            assert len(cg.recipe(cell)) <= len(recipe)
    assert_round_trip(cell)


def test_cells_that_a_search_has_simplified() -> None:
    for recipe in drawn(4, 40, 1, 14):
        cell = cg.simplify(cg.from_recipe(recipe))
        assert cg.from_recipe(cg.recipe(cell)).key() == cell.key()


SAYABLE = ["tanh_rnn", "gru", "gru_reset_after", "lstm", "lstm_jozefowicz", "np", "mut1", "mut2",
           "mut3", "lstm_f", "lstm_i", "lstm_o"]  # fmt: skip


@pytest.mark.parametrize("name", SAYABLE)
def test_named_cells(name: str) -> None:
    recipe = assert_round_trip(cg.load(name))
    assert cg.from_recipe(recipe).key() == cg.load(name).key()
    assert sum(n["op"] == "linear" for n in recipe.values()) == sum(
        p.kind == "vector" for p in cg.load(name).params
    )


def test_a_recipe_keeps_the_names_of_the_cell() -> None:
    assert list(cg.recipe(cg.load("gru"))) == [
        *("node_0", "z", "node_1", "r", "node_2", "node_3", "g", "h_new_0")
    ]
    assert cg.recipe(cg.from_recipe(LSTM)).keys() == LSTM.keys()
    cell = cg.parse("cell a(x, h)\n h_new_1 = W @ x + U @ h + b\n node_0 = tanh(h_new_1)\n"
                    " h' = node_0 * h")  # fmt: skip
    assert list(cg.recipe(cell)) == ["node_1", "node_0", "h_new_0"]


def test_the_emitted_state_comes_first() -> None:
    cell = cg.parse("cell a(x, c, h) -> h\n c' = tanh(W @ x + U @ h + b)\n h' = c' * c")
    recipe = assert_round_trip(cell)
    assert recipe["h_new_0"] == node("elementwise_prod", "h_new_1", "h_prev_1")


def test_one_value_can_be_two_states() -> None:
    recipe = {
        "f": node("linear", "x", "h_prev_0", "h_prev_1"),
        "h_new_1": node("activation_tanh", "f"),
        "h_new_0": node("activation_tanh", "f"),
    }
    assert assert_round_trip(cg.from_recipe(recipe)) == {
        "f": recipe["f"], "h_new_0": recipe["h_new_0"], "h_new_1": recipe["h_new_1"],
    }  # fmt: skip


GATES = "cell a(x, h)\n z = sigmoid(W @ x + U @ h + b)\n g = tanh(V @ x + R @ h + d)\n h' = "
BLEND = {"h_new_0": node("blend", "z", "h_prev_0", "g")}


@pytest.mark.parametrize(
    "form",
    [
        "z * h + (1 - z) * g",
        "(1 - z) * g + h * z",
        "z * h - (z - 1) * g",
        "z * h + g - z * g",
        "g - z * g + z * h",
        "g + z * (h - g)",
        "(h - g) * z + g",
        "g - z * (g - h)",
        "h + (1 - z) * (g - h)",
        "h - (1 - z) * (h - g)",
        "h - (1 - z) * h + (1 - z) * g",
        "z * h + g * 1 - z * g + 0",
        "-(z * (g - h) - g)",
        "z * h + sigmoid(-(W @ x + U @ h + b)) * g",
        "0.5 * (2 * z * h + (2 - 2 * z) * g)",
    ],
)
def test_forms_of_one_blend(form: str) -> None:
    cell = cg.parse(GATES + form)
    recipe = assert_round_trip(cell)
    assert {"h_new_0": recipe["h_new_0"]} == BLEND
    assert_round_trip(cg.simplify(cell))


@pytest.mark.parametrize(
    ("form", "blends"),
    [
        ("tanh(z * h + (1 - z) * g) + z * h", 1),
        ("z * h + z * g + (1 - z) * tanh(h)", 1),
        ("2 * z * h + (1 - z) * g", 1),
        ("z * h + (1 - z) * g + 3 * h", 1),
        ("z * h + (1 - z) * g + (1 - z) * h", 1),
        ("g * h + z * (h * h - g * h)", 1),
        ("g * z * h + (1 - z * g) * h + h", 1),
        ("z * z * h + (1 - z) * g", 1),
        ("square(z) * h + (1 - z * z) * g", 1),
        ("(z + z) * h + (1 - 2 * z) * g", 1),
        ("(z + g) * h + (1 - z - g) * tanh(h)", 1),
        ("h + g + z * (tanh(h) - h - g)", 1),
        ("h + g - z * (h + g) + z * tanh(h)", 1),
        ("z * h + g * z + tanh(g) + tanh(h) - z * tanh(g) - g * tanh(h)", 2),
        ("z * (g * h + (1 - g) * tanh(h)) + (1 - z) * h", 2),
        ("z * h + (1 - g) * z + (1 - z) * tanh(h) + g * tanh(g)", 2),
        ("h + z * (Q @ x + p - h)", 1),
        ("W2 @ x + b2 + U2 @ h + z", 0),
        ("b2 + W2 @ x + (b3 + U2 @ h + V2 @ z)", 0),
        ("W2 @ x + U2 @ (2 * h) + b2 + 2 * z + z", 0),
        ("W2 @ x + W2 @ x + b2 + h", 0),
        ("z * z * z * h + 5 * g * h", 0),
        ("leaky_relu(sigmoid(z)) * h", 0),
    ],
)
def test_sums_that_hold_more_than_a_blend(form: str, blends: int) -> None:
    recipe = assert_round_trip(cg.parse(GATES + form))
    assert [n["op"] for n in recipe.values()].count("blend") == blends


def test_many_times_one_value_are_few_nodes() -> None:
    recipe = assert_round_trip(cg.parse(GATES + "1000 * z * h"))
    assert len(recipe) < 25


# -- what a recipe cannot say ----------------------------------------------------------------------

REFUSED = """
z * h - g | g is subtracted outside a blend, expected none
g - g * h | h * g is subtracted outside a blend, expected none
z * (h - g) | g is subtracted outside a blend, expected none
(1 - z) * g | half a blend by z, expected a * b beside (1 - a) * c
g + (1 - z) * g | half a blend by z, expected a * b beside (1 - a) * c
z * (1 - g) + (1 - z) * g | half a blend by
z * h + (1 - z) | the number 1 stands outside a blend, expected none
z * h + 1 | the number 1 stands outside a blend, expected none
0.5 * z | z is taken 0.5 times, expected once or more
relu(h) + h / z | relu(h) needs the op relu, expected tanh, sigmoid, leaky_relu, + and *
h / z + g | h / z needs the op div, expected
max(z, h) | max(z, h) needs the op max, expected
z * h + (1 - z) * relu(g - h) | relu(g - h) needs the op relu
W2 @ h + g | W2 @ h has no bias beside it, expected W @ a + … + b
tanh(W2 @ h) | W2 @ h has no bias beside it, expected W @ a + … + b
p * h | parameter p stands outside a linear, expected W @ a + … + b
p + h | p has no matrix beside it, expected W @ a + … + b
W2 @ h + p + q | q has no matrix beside it, expected W @ a + … + b
W2 @ h + 2 * p | bias p is taken 2 times, expected once
V2 @ x - U2 @ h + p | U2 @ h is subtracted outside a blend, expected none
W @ h + p + z | parameter W is used twice, expected each in one place of one linear
W2 @ h + b + z | parameter b is used twice, expected each in one place of one linear
h + 0 * x + z | x stands outside a linear to no effect, expected a simplified cell
h | the next value of h is h, expected an op of a recipe
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_refused_values(line: str) -> None:
    form, message = line.split(" | ")
    with pytest.raises(cg.CellError) as caught:
        cg.recipe(cg.parse(GATES + form))
    assert str(caught.value).startswith(f"cell a is no recipe of NAS-Bench-NLP: {message}")
    assert "\n" not in str(caught.value)


LINE = "tanh(W @ x + U @ h + b)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"cell a(x, h)\n h' = {LINE}\n init b = 1", "parameter b starts at 1, expected no starts"),
        (f"cell a(x, h)\n h' = s * {LINE}\n scalar s", "parameter s is a scalar, expected none"),
        (
            "cell a(x, h, r: P)\n h' = tanh(W @ x + U @ r + b)\n r' = tanh(V @ h + d)",
            "state r has the width P, expected H alone",
        ),
        (
            f"cell a(x, h) -> y\n h' = {LINE}\n y = tanh(h')",
            "its output y is no next value of a state, expected one",
        ),
        (
            f"cell a(x, h, c)\n h' = {LINE}\n c' = tanh(h)",
            "state c is never read, expected states that are",
        ),
        (
            f"cell a(x, h, p)\n h' = {LINE} * p\n p' = x",
            "the next value of p is x, expected an op of a recipe",
        ),
        (
            "cell a(x, h, c)\n h' = W @ x + U @ c + b\n c' = h' + 0 * h",
            "parameter W is used twice, expected each in one place of one linear",
        ),
        (
            f"cell a(x, h)\n h' = relu({' + '.join(['tanh(h) * x'] * 40)} + {LINE})",
            "relu(",
        ),
    ],
)
def test_refused_cells(text: str, message: str) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.recipe(cg.parse(text))
    shown = str(caught.value)
    assert shown.startswith(f"cell a is no recipe of NAS-Bench-NLP: {message}")
    assert "\n" not in shown
    assert len(shown) < 200


def large(*lines: str, end: str = "") -> cg.CellGraph:
    return cg.parse("\n ".join(["cell a(x, h)", *lines, end]))


def test_large_cells() -> None:
    first = "a0 = tanh(W @ x + U @ h + b)"
    deep = [first, *(f"a{i} = tanh(a{i - 1})" for i in range(1, 1500)), "h' = a1499"]
    assert len(cg.recipe(large(*deep))) == 1501
    doubled = [first, *(f"a{i} = a{i - 1} + a{i - 1}" for i in range(1, 900)), "h' = a899"]
    assert len(cg.recipe(large(*doubled))) == 901
    squared = [first, *(f"a{i} = a{i - 1} * a{i - 1}" for i in range(1, 900)), "h' = a899"]
    assert len(cg.recipe(large(*squared))) == 901
    products = " + ".join(f"W{i} @ x" for i in range(300))
    assert len(cg.recipe(large(f"h' = tanh(U @ h + {products} + b)"))) == 2
    with pytest.raises(cg.CellError, match="U @ h has no bias beside it"):
        cg.recipe(large(f"h' = tanh(U @ h + {products})"))
    differences = " * ".join(f"(h - tanh(W{i} @ x + b{i}))" for i in range(50))
    with pytest.raises(cg.CellError, match="multiplies out to more than 200 products"):
        cg.recipe(large(f"h' = h + {differences}"))


# -- malformed recipes -----------------------------------------------------------------------------

H_NEW = node("activation_tanh", "f")
F = node("linear", "x", "h_prev_0")
OPS = (
    "linear, blend, elementwise_prod, elementwise_sum, activation_tanh, activation_sigm, "
    "activation_leaky_relu"
)
MALFORMED: dict[str, tuple[Any, str]] = {
    "a list": ([RNN], "a list of 1, expected one recipe: a mapping from names of nodes to op"),
    "a number": (3, "a int, expected one recipe"),
    "empty": ({}, "there is no node h_new_0, expected h_new_0, h_new_1, …"),
    "no h_new": ({"f": F}, "there is no node h_new_0, expected"),
    "a gap": (
        {"f": F, "h_new_0": H_NEW, "h_new_2": H_NEW},
        "there is no node h_new_1, but h_new_2, expected h_new_0, h_new_1, …",
    ),
    "a gap without end": (
        {"f": F, "h_new_0": H_NEW, f"h_new_{'9' * 90}": H_NEW},
        "there is no node h_new_1, but h_new_1000000000",
    ),
    "a leading zero": (
        {"f": F, "h_new_00": H_NEW},
        "'h_new_00' has a number with zeros before it, expected h_new_i",
    ),
    "an unknown op": (
        {"f": F, "h_new_0": node("activation_tan", "f")},
        "node h_new_0 has the op 'activation_tan' (did you mean activation_tanh?), "
        f"expected one of {OPS}",
    ),
    "an op that is no text": (
        {"h_new_0": {"op": ["linear"], "input": ["x"]}},
        "node h_new_0 has the op a value of type list, expected one of linear, ",
    ),
    "too few inputs": (
        {"f": F, "h_new_0": node("blend", "f", "f")},
        "node h_new_0 (blend) has 2 inputs, expected 3",
    ),
    "too many inputs": (
        {"f": F, "h_new_0": node("elementwise_sum", "f", "f", "f")},
        "node h_new_0 (elementwise_sum) has 3 inputs, expected 2",
    ),
    "a linear of nothing": (
        {"f": node("linear"), "h_new_0": H_NEW},
        "node f (linear) has 0 inputs, expected at least 1",
    ),
    "an activation of two": (
        {"f": F, "h_new_0": node("activation_sigm", "f", "f")},
        "node h_new_0 (activation_sigm) has 2 inputs, expected 1",
    ),
    "a missing node": (
        {"gate": F, "h_new_0": node("activation_tanh", "gat")},
        "node h_new_0 reads 'gat' (did you mean gate?), "
        "expected the name of a node, x or h_prev_i",
    ),
    "an input that is no name": (
        {"f": {"op": "linear", "input": [3, "x"]}, "h_new_0": H_NEW},
        "node f reads a value of type int, expected the name of a node",
    ),
    "an h_prev without h_new": (
        {"f": node("linear", "x", "h_prev_0", "h_prev_1"), "h_new_0": H_NEW},
        "node f reads 'h_prev_1', but h_new_0 is the last, expected an h_new for every h_prev",
    ),
    "an h_prev that no text can hold": (
        {"f": node("linear", "x", "h_prev_0", "h_prev_" + "1" * 5000), "h_new_0": H_NEW},
        "node f reads 'h_prev_1111111111",
    ),
    "an h_new without h_prev": (
        {"f": F, "h_new_0": H_NEW, "h_new_1": node("activation_sigm", "f")},
        "h_new_1 is there and h_prev_1 is not read, expected both or neither",
    ),
    "an h_prev that is read in vain": (
        {"f": F, "h_new_0": H_NEW, "h_new_1": H_NEW, "g": node("linear", "h_prev_1")},
        "h_new_1 is there and h_prev_1 is not read, expected both or neither",
    ),
    "a cycle": (
        {"a": node("linear", "b", "x"), "b": node("linear", "a", "h_prev_0"), "h_new_0": H_NEW,
         "f": node("linear", "b")},
        "the recipe has a cycle, a needs b needs a, expected recurrence to go through h_prev",
    ),
    "a loop": (
        {"h_new_0": node("linear", "x", "h_prev_0", "h_new_0")},
        "the recipe has a cycle, h_new_0 needs h_new_0, expected",
    ),
    "a node called x": ({"x": F, "h_new_0": H_NEW}, "node x is what a recipe is given, expected a"),
    "a node called h_prev_0": (
        {"h_prev_0": F, "h_new_0": H_NEW},
        "node h_prev_0 is what a recipe is given, expected another name",
    ),
    "a name with code": (
        {"f\nimport os": F, "h_new_0": H_NEW},
        r"node 'f\nimport os', expected a name of at most 100 letters, digits and _",
    ),
    "a long name": ({"f" * 101: F, "h_new_0": H_NEW}, "node 'ffffffffffffffffffffffffff"),
    "no name": ({3: F, "h_new_0": H_NEW}, "node a value of type int, expected a name of at most"),
    "a node that is a list": (
        {"f": ["linear", "x"], "h_new_0": H_NEW},
        "node f has a value of type list, expected op and input",
    ),
    "a node without input": (
        {"f": {"op": "linear"}, "h_new_0": H_NEW},
        "node f has 'op', expected op and input",
    ),
    "a node with more": (
        {"f": {**F, "bias": False}, "h_new_0": H_NEW},
        "node f has 'op', 'input', 'bias', expected op and input",
    ),
    "an empty node": ({"f": {}, "h_new_0": H_NEW}, "node f has nothing, expected op and input"),
    "an input that is text": (
        {"f": {"op": "linear", "input": "x"}, "h_new_0": H_NEW},
        "the input of node f is 'x', expected a list of names",
    ),
    "many nodes": (
        {**{f"f{i}": F for i in range(3000)}, "h_new_0": H_NEW},
        "a recipe of 3001 nodes, expected at most 2000",
    ),
    "many inputs": (
        {"f": node("linear", *["x"] * 100_000, "h_prev_0"), "h_new_0": H_NEW},
        "a recipe with 100002 inputs, expected at most 6000",
    ),
    "many nodes of a cell": (
        {"f": node("linear", *["x"] * 1500, "h_prev_0"), "h_new_0": H_NEW},
        "cell recipe has ",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("recipe", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_recipes(recipe: Any, message: str) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.from_recipe(recipe)
    shown = str(caught.value)
    assert shown.startswith(message)
    assert "\n" not in shown
    assert len(shown) < 300


def test_long_chains_and_cycles_of_nodes() -> None:
    chain = {f"f{i}": node("activation_tanh", f"f{i + 1}") for i in range(1500)}
    ends = {"f1500": F, "h_new_0": node("activation_tanh", "f0")}
    cell = cg.from_recipe({**chain, **ends})
    assert cg.from_recipe(cg.recipe(cell)).key() == cell.key()
    with pytest.raises(cg.CellError) as caught:
        cg.from_recipe({**chain, **ends, "f1500": node("activation_tanh", "f0")})
    assert "f0 needs f1 needs f2 needs f3 needs … needs f1500 needs f0" in str(caught.value)


def test_nodes_that_nothing_needs_are_checked_and_left_out() -> None:
    spare = {**RNN, "g": node("linear", "f", "h_prev_0"), "k": node("activation_sigm", "g")}
    assert cg.from_recipe(spare) == cg.from_recipe(RNN)


# -- files -----------------------------------------------------------------------------------------


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = cg.export("gru", "my gru-1.json", "nasbench")
    cell = cg.load(path)
    assert cell.name == "my_gru_1"
    assert cell.key() == cg.load("gru").key()
    lines = path.read_text().splitlines()
    assert lines[1] == '  "node_0": {"op": "linear", "input": ["x", "h_prev_0"]},'
    assert json.loads(path.read_text()) == cg.recipe(cg.load("gru"))
    cg.export(path, tmp_path / "again.json", "nasbench")
    assert cg.load("again.json").key() == cell.key()
    for name, expected in (("tanh", "recipe_tanh"), ("1", "recipe_1"), ("é", "_"), ("a.b", "a_b")):
        (tmp_path / f"{name}.json").write_text(json.dumps(RNN))
        assert cg.load(f"./{name}.json").name == expected
    (tmp_path / "marked.json").write_text("\ufeff" + json.dumps(GRU), encoding="utf-8")
    assert cg.load("marked.json").key() == cell.key()


def test_a_cell_that_is_none_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(cg.CellError, match="cell lstm_b is no recipe of NAS-Bench-NLP: parameter"):
        cg.export("lstm_b", tmp_path / "a.json", "nasbench")
    assert list(tmp_path.iterdir()) == []


FILES = {
    '{"f": {"op": "linear" "input": []}}': "line 1: Expecting ',' delimiter, expected a recipe in",
    '{\n"f": nul\n}': "line 2: Expecting value, expected a recipe in JSON",
    "": "line 1: Expecting value, expected a recipe in JSON",
    "cell a(x, h)": "line 1: Expecting value, expected a recipe in JSON",
    '{"f": 1, "f": 2}': "'f' stands twice, expected once",
    '{"f": {"op": 1, "op": 2}}': "'op' stands twice, expected once",
    "[" * 100_000: "brackets are nested too deeply, expected a recipe in JSON",
    "9" * 5000: "Exceeds the limit",
    "[{}, {}]": "a list of 2, expected one recipe",
    " " * 300_000: "a text of 300000 characters, expected at most 200000",
    "null": "a NoneType, expected one recipe",
    '{"f": {"op": "linear", "input": ["x"]}}': "there is no node h_new_0",
    '{"\\ud800": {}}': r"node '\ud800', expected a name",
}


@pytest.mark.parametrize("text", FILES)
def test_files_that_hold_no_recipe(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(cg.CellError) as caught:
        cg.load(path)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{path}: {FILES[text]}")


def test_the_place_of_a_fault_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{\n  "f": {"op": nonsense}\n}\n')
    with pytest.raises(cg.CellError) as caught:
        cg.load(path)
    _, source, caret = str(caught.value).splitlines()
    assert source[caret.index("^")] == "n"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    cases = [
        (lambda: None, "cannot be read (No such file or directory), expected a recipe in a .json"),
        (path.mkdir, "cannot be read (Is a directory), expected a recipe in a .json file"),
        (path.rmdir, "cannot be read (No such file or directory)"),
        (lambda: path.write_bytes(b"\xff\xfe{"), "is not text, expected a recipe in UTF-8"),
        (lambda: path.write_text(" " * 900_000), "is too large for a cell, expected at most"),
    ]
    for prepare, message in cases:
        prepare()
        with pytest.raises(cg.CellError) as caught:
            cg.load(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)


def test_commands_take_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GRU))
    out = tmp_path / "out.json"
    for words, expected in (
        (["inspect", str(path)], "cell mine(x, h_0)"),
        (["mutate", str(path), "--seed", "1"], "cell cell_"),
        (["export", str(path), "--format", "nasbench", "--out", str(out)], str(out)),
    ):
        assert main(words) == 0
        assert expected in capsys.readouterr().out
    assert main(["export", "np", "--format", "nasbench", "--out", str(path)]) == 2
    assert "exists" in capsys.readouterr().err


# -- sampling --------------------------------------------------------------------------------------


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

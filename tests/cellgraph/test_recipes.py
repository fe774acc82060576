"""Cells become recipes of NAS-Bench-NLP, or an error says why not."""

from __future__ import annotations

import pytest

import cellgraph as cg
from tests.cellgraph.recipe_examples import LSTM, assert_round_trip, drawn, node


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
        (f"cell a(x, h)\n h' = {LINE}\n skew U", "matrix U is skew, expected free matrices"),
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

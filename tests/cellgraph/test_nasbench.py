"""Recipes of NAS-Bench-NLP become cells: what they mean, which are refused, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from cellgraph.interpret import unroll
from search.cli import main
from tests.cellgraph.recipe_examples import (
    GRU,
    LSTM,
    REFERENCE,
    RNN,
    Recipe,
    assert_round_trip,
    drawn,
    node,
)


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
    '{"f": {"op": "linear" "input": []}}': "line 1: Expecting ',' delimiter, expected a recipe or",
    '{\n"f": nul\n}': "line 2: Expecting value, expected a recipe or a graph in JSON",
    "": "line 1: Expecting value, expected a recipe or a graph in JSON",
    "cell a(x, h)": "line 1: Expecting value, expected a recipe or a graph in JSON",
    '{"f": 1, "f": 2}': "'f' stands twice, expected once",
    '{"f": {"op": 1, "op": 2}}': "'op' stands twice, expected once",
    "[" * 100_000: "brackets are nested too deeply, expected a recipe or a graph in JSON",
    "9" * 5000: "Exceeds the limit",
    "[{}, {}]": "a list of 2, expected one recipe",
    "{}" + " " * 300_000: "a text of 300002 characters, expected at most 200000",
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
        (
            lambda: None,
            "cannot be read (No such file or directory), expected a recipe or a gra",
        ),
        (
            path.mkdir,
            "cannot be read (Is a directory), expected a recipe or a graph",
        ),
        (path.rmdir, "cannot be read (No such file or directory)"),
        (lambda: path.write_bytes(b"\xff\xfe{"), "is not text, expected JSON in UTF-8"),
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

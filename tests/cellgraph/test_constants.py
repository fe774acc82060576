"""Constants of a text: numbers with a name and a default, which a caller may override."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellgraph as cg
from cellgraph.graph import CONST, RESERVED, STATE, Init, Node
from cellgraph.interpret import unroll
from cellgraph.ops import FUNCTIONS
from tests.cellgraph import reference_cells as reference
from tests.cellgraph.refused import assert_refused, table
from tests.strategies import assert_round_trip

quick = settings(max_examples=60, deadline=None)
h = Node(STATE, (), "h")

TEXT = """cell leaky(x, h)
    const alpha = 0.1, beta = -2
    const start = 1e-2  # declared on a line of its own
    g  = tanh(W @ x + U @ h + b)
    h' = (1 - alpha) * h + alpha * g - beta * h
    init b = start
    init U = identity(-beta)
"""
PRINTED = """cell leaky(x, h)
    g  = tanh(W @ x + U @ h + b)
    h' = (1 - 0.1) * h + 0.1 * g - -2 * h
    init U = identity(2)
    init b = 0.01
"""


def number(value: float) -> Node:
    return Node(CONST, (), value)


def read_in(right: str, value: str) -> Node:
    cell = cg.parse(f"cell c(x, h)\n const k = {value}\n h' = {right}\n")
    assert_round_trip(cell)
    return cell.states[0].next


def test_reading_the_name_gives_the_number() -> None:
    cell = cg.parse(TEXT)
    assert str(cell) == PRINTED
    assert cell == cg.parse(PRINTED)
    assert {p.name: p.init for p in cell.params if p.init} == {
        "b": Init("constant", 0.01),
        "U": Init("identity", 2.0),
    }
    assert_round_trip(cell)


@pytest.mark.parametrize(
    ("right", "value", "node"),
    [
        ("h * k", "2", Node("mul", (h, number(2)))),
        ("h * k", "-2", Node("mul", (h, number(-2)))),
        ("h * k", "0", Node("mul", (h, number(0)))),
        ("h * -k", "2", Node("mul", (h, number(-2)))),
        ("h * -k", "-2", Node("mul", (h, number(2)))),
        ("h * --k", "2", Node("mul", (h, Node("neg", (number(-2),))))),
        ("h - k", "-0.5", Node("sub", (h, number(-0.5)))),
        ("tanh(k * h)", "1e3", Node("tanh", (Node("mul", (number(1000), h)),))),
        ("max(h, (k))", "-0", Node("max", (h, number(0)))),
    ],
)
def test_a_constant_is_a_literal_number(right: str, value: str, node: Node) -> None:
    assert read_in(right, value) is node


@quick
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_can_be_given(value: float) -> None:
    text = "cell c(x, h)\n const k = 1\n h' = h * k\n"
    cell = cg.parse(text, constants={"k": value})
    assert cell.states[0].next is Node("mul", (h, number(value)))
    assert_round_trip(cell)


def test_an_unread_constant_is_allowed() -> None:
    cell = cg.parse("cell c(x, h)\n const k = 1\n h' = tanh(h)\n", {"k": 2})
    assert cell == cg.parse("cell c(x, h)\n h' = tanh(h)\n")


@pytest.mark.parametrize("name", ["H_", "in", "k", "constant", "lambda", "_", "h_", "X1"])
def test_names_of_constants(name: str) -> None:
    cell = cg.parse(f"cell c(x, h)\n const {name} = 3\n h' = h * {name}\n")
    assert cell.states[0].next is Node("mul", (h, number(3)))


# -- overrides -------------------------------------------------------------------------------------


def test_an_override_is_another_cell() -> None:
    cell, other = cg.parse(TEXT), cg.parse(TEXT, constants={"alpha": 0.5})
    assert "(1 - 0.5) * h + 0.5 * g" in str(other)
    assert other != cell
    assert other.key() != cell.key()
    assert cg.parse(TEXT, constants={"alpha": 0.1}) == cell
    assert cg.parse(TEXT, constants={}) == cg.parse(TEXT, None) == cell
    assert_round_trip(other)


def test_overrides_come_through_load(tmp_path: Path) -> None:
    (tmp_path / "leaky.cell").write_text(TEXT)
    wanted = cg.parse(TEXT, constants={"beta": 3})
    assert cg.load(tmp_path / "leaky.cell", constants={"beta": 3}) == wanted
    assert cg.load(tmp_path / "leaky.cell") == cg.parse(TEXT)
    assert cg.load("JANET", constants={"beta": 1}) == cg.load("janet")
    assert cg.load("janet", {"beta": 0}).key() != cg.load("janet").key()
    assert cg.zoo.get("janet", constants={"beta": 0}) == cg.load("janet", {"beta": 0})


@pytest.mark.parametrize("beta", [0.0, 1.0, -2.5])
def test_janet_with_another_beta(beta: float) -> None:
    cell = cg.load("janet", constants={"beta": beta})
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    params = {p.name: draw(*p.shape({"H": 5, "X": 4})) for p in cell.params}
    x, c = draw(6, 3, 4), draw(3, 5)
    wanted, _ = reference.unroll(
        lambda p, x, c: reference.janet(p, x, c, beta=beta), params, x, (c,)
    )
    torch.testing.assert_close(unroll(cell, params, x, [c])[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["antisymmetric_rnn", "antisymmetric_rnn_gated"])
def test_another_step_and_diffusion(name: str) -> None:
    assert cg.constants(name) == {"eps": 1, "gamma": 0.01}
    found = [cg.load(name, {"eps": 0.25, "gamma": gamma}) for gamma in (0, 0.5)]
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    params = {p.name: draw(*p.shape({"H": 5, "X": 4})) for p in found[0].params}
    x, h = draw(6, 3, 4), draw(3, 5)
    plain = reference.STEPS[name]
    for cell, gamma in zip(found, (0.0, 0.5), strict=True):
        step = partial(plain, eps=0.25, gamma=gamma)
        wanted, _ = reference.unroll(step, params, x, (h,))
        torch.testing.assert_close(unroll(cell, params, x, [h])[0], wanted, rtol=1e-12, atol=1e-12)


def test_declared_constants_can_be_looked_up(tmp_path: Path) -> None:
    declared = {"alpha": 0.1, "beta": -2.0, "start": 0.01}
    (tmp_path / "leaky.cell").write_text(TEXT)
    assert cg.constants(TEXT) == declared
    assert cg.constants(tmp_path / "leaky.cell") == declared
    assert cg.constants(str(cg.parse(TEXT))) == {}
    assert cg.constants("janet") == cg.zoo.info("janet").constants == {"beta": 1.0}
    assert cg.constants("gru") == cg.zoo.info("gru").constants == {}
    cg.constants("janet")["beta"] = 7.0  # a copy
    assert cg.constants("janet") == {"beta": 1.0}
    with pytest.raises(cg.CellError, match="no cell named 'jannet'"):
        cg.constants("jannet")
    with pytest.raises(cg.CellError, match="line 2: found '='"):
        cg.constants("cell c(x, h)\n = h\n")


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        (
            {"bta": 1},
            r"cell leaky has no constant bta \(did you mean beta\?\), "
            "expected one of alpha, beta, start",
        ),
        ({"h": 1}, "cell leaky has no constant h, expected one of alpha, beta, start"),
        ({3: 1}, "cell leaky has no constant 3, expected one of"),
        ({"beta": math.nan}, "constant beta: number nan in a cell, expected a finite number"),
        ({"beta": math.inf}, "constant beta: number inf in a cell, expected a finite number"),
        ({"beta": 10**400}, "constant beta: number too large in a cell, expected a finite"),
        ({"beta": "2"}, "constant beta: number '2' in a cell, expected a finite number"),
        ({"beta": None}, "constant beta: number None in a cell, expected a finite number"),
        ([("beta", 1)], r"constants of type list, expected a mapping such as {'beta': 2.0}"),
        ("beta", "constants of type str, expected a mapping"),
    ],
)
def test_malformed_overrides(constants: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "leaky.cell").write_text(TEXT)
    with pytest.raises(cg.CellError, match=f"^{message}"):
        cg.parse(TEXT, constants)  # type: ignore[arg-type]
    with pytest.raises(cg.CellError, match=message):
        cg.load(tmp_path / "leaky.cell", constants)  # type: ignore[arg-type]


def test_an_override_of_a_cell_without_constants() -> None:
    for cell in ("gru", "lstm"):
        with pytest.raises(cg.CellError, match=f"cell {cell} has no constant beta, expected none"):
            cg.load(cell, constants={"beta": 1})


# -- malformed -------------------------------------------------------------------------------------

MALFORMED = """
cell c(x, h); const§; h' = h
    found 'end of line', expected the name of a constant
cell c(x, h); const §3 = k; h' = h
    found '3', expected the name of a constant
cell c(x, h); const §k' = 3; h' = h
    k' has a prime, expected the name of a constant without one
cell c(x, h); const k §3; h' = h
    found '3', expected '='
cell c(x, h); const k =§; h' = h
    found 'end of line', expected a number
cell c(x, h); const k = §j; h' = h
    found 'j', expected a number
cell c(x, h); const j = 1, k = §j; h' = h
    found 'j', expected a number
cell c(x, h); const k = -§-1; h' = h
    found '-', expected a number
cell c(x, h); const k = 1 §+ 1; h' = h
    found '+', expected an operator or the end of the line
cell c(x, h); const k = 1,§; h' = h
    found 'end of line', expected the name of a constant
cell c(x, h); const k = §1e999; h' = h
    number inf in a cell, expected a finite number
cell c(x, h); const k = 1, §k = 1; h' = h
    constant k stands twice, expected once
cell c(x, h); const k = 1; const §k = 1; h' = h
    constant k stands twice, expected once
cell c(x, h); §const = 1; h' = h
    const is a word of the notation, expected another name for a value
cell c(x, h); const §tanh = 1; h' = h
    tanh is a word of the notation, expected another name for a constant
cell c(x, h); const §x = 1; h' = h
    x is a word of the notation, expected another name for a constant
cell c(x, h); const §h = 1; h' = h
    h is a state, expected another name for a constant
cell c(x, h: P); const §P = 1; h' = h
    P is a width, expected another name for a constant
cell c(x, h); const §H = 1; h' = h
    H is a width, expected another name for a constant
cell c(x, h); k = h; const §k = 1; h' = h
    k is a value, expected another name for a constant
cell c(x, h); scalar k; const §k = 1; h' = h * k
    k is a parameter, expected another name for a constant
cell c(x, h); h' = h * k; const §k = 1
    k was read on line 2, expected its line above that, or another name
cell c(x, h); const k = 1; §k = h; h' = h
    k is a constant, expected another name for a value
cell c(x, h); const k = 1; §k' = h; h' = h
    k is a constant, expected another name for a value
cell c(x, h); skew k; const §k = 1; h' = h
    k is a parameter, expected another name for a constant
cell c(x, h); const k = 1; scalar §k; h' = h
    k is a constant, expected another name for a parameter
cell c(x, h); const k = 1; h' = h; init §k = 2
    k is not a parameter of the cell, expected one of none
cell c(x, h); const k = 1; h' = §k @ h
    left of @ stands a value, expected the name of a matrix
cell c(x, h); const k = 1; h' = k§(h)
    found '(', expected an operator or the end of the line
cell c(x, h); const k = 1; h' = §k'
    k is not a state, expected one of h
cell c(x, h); const k = 1; h' = §k
    the next value of h is not a vector, expected width H
cell c(x, h); const k = 1; h' = h * b; init b = §j
    found 'j', expected a number or identity(NUMBER)
cell c(x, h) -> §k; const k = 1; h' = h
    the output k is never assigned
"""


@pytest.mark.parametrize(("joined", "message"), table(MALFORMED))
def test_malformed_constants(joined: str, message: str) -> None:
    assert_refused(joined, message)


@pytest.mark.parametrize("name", [*FUNCTIONS, *RESERVED])
def test_no_word_of_the_notation_is_a_constant(name: str) -> None:
    with pytest.raises(cg.CellError, match=f"{name} is a word of the notation"):
        cg.parse(f"cell c(x, h)\n const {name} = 1\n h' = h\n")

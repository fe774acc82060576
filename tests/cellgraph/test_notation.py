"""The notation of valid cells: reading and printing are inverses. See also test_malformed.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellgraph import CellError, parse, zoo
from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, RESERVED, STATE, CellGraph, Init, Node
from cellgraph.ops import FUNCTIONS, INFIX, OPS
from cellgraph.widths import WidthError, build
from tests.strategies import (
    JUMPING,
    LIMIT,
    STATE_LIMIT,
    assert_round_trip,
    cells,
    sample,
    values_and_gradients,
)

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def expression(text: str) -> Node:
    """The node of an expression over the state h and parameters."""
    return parse(f"cell e(x, h, k)\n    h' = {text}\n    k' = k\n").states[0].next


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_round_trip_of_the_zoo(name: str) -> None:
    assert_round_trip(zoo.get(name))


@quick
@given(cells())
def test_round_trip(cell: CellGraph) -> None:
    assert_round_trip(cell)


@quick
@given(cells(max_states=5, max_lines=14))
def test_round_trip_without_names(cell: CellGraph) -> None:
    """A cell that no text ever named prints with names of its own, and reads back equal."""
    bare = build(
        cell.name,
        [(s.name, s.width, s.next) for s in cell.states],
        cell.outputs[0],
        scalars=cell.scalars,
        skews=cell.skews,
        inits={p.name: p.init for p in cell.params if p.init is not None},
    )
    assert bare == cell
    assert_round_trip(bare)


@quick
@given(cells(), st.randoms(use_true_random=False))
def test_layout_does_not_matter(cell: CellGraph, random) -> None:  # type: ignore[no-untyped-def]
    """Spaces, comments, parentheses, CRLF and dead lines leave the cell as it is."""
    lines: list[str] = []
    for line in str(cell).splitlines():
        name, equals, right = line.strip().partition(" = ")
        if equals and not name.startswith("init"):
            spaced = right.replace(" ", random.choice(["", "  ", "\t"]))
            name += random.choice(["=", " =  ", "\t= "])
            name += random.choice([right, spaced, f"(({right}))", f"( {spaced})"])
        elif equals:
            name = line
        indent = random.choice(["", "\t", "    "])
        lines.append(indent + name + random.choice(["", "  # a comment = (", " #"]))
        if len(lines) > 1 and random.random() < 0.3:
            dead = f"dead{len(lines)} = tanh(h) * 3 + unread"
            lines.append(random.choice(["", "   ", "# nothing", dead]))
    assert parse(random.choice(["\n", "\r\n"]).join(lines)) == cell


def test_text_of_a_cell_in_every_detail() -> None:
    text = (
        "# A title.\n"
        "# second line: kept\n"
        "#\n"
        "# after a blank one\n"
        "cell all(x, h, p: P, q: P) -> out\n"
        "    gate = sigmoid(W_g @ h + A @ (s * tanh(h)))\n"
        "    p'   = V @ h + -p\n"
        "    q'   = p'\n"
        "    h'   = gate * h + (1 - gate) * R @ p'\n"
        "    out  = h' / (2 + v) - 1e-05\n"
        "    scalar s\n"
        "    skew A\n"
        "    init W_g = identity(0.9)\n"
        "    init s = -1.5\n"
    )
    cell = parse(text)
    assert str(cell) == text
    assert cell.doc == "A title.\nsecond line: kept\n\nafter a blank one"
    assert [(s.name, s.width) for s in cell.states] == [("h", "H"), ("p", "P"), ("q", "P")]
    assert {p.name: p.init for p in cell.params if p.init} == {
        "W_g": Init("identity", 0.9),
        "s": Init("constant", -1.5),
    }
    assert {p.name: (p.kind, p.rows, p.cols) for p in cell.params} == {
        "W_g": ("matrix", "H", "H"),
        "A": ("skew", "H", "H"),
        "s": ("scalar", None, None),
        "V": ("matrix", "P", "H"),
        "R": ("matrix", "H", "P"),
        "v": ("vector", "H", None),
    }


def test_two_names_of_one_value() -> None:
    """The first name is kept; equal right sides are one value."""
    cell = parse("cell c(x, h, k)\n a = tanh(U @ h) \n b = tanh(U @ h)\n k' = b + 1\n h' = a\n")
    assert str(cell) == "cell c(x, h, k)\n    a  = tanh(U @ h)\n    h' = a\n    k' = a + 1\n"


def test_output_that_is_only_a_state() -> None:
    for text in (
        "cell c(x, h) -> y\n    y  = h\n    h' = tanh(y)\n",
        "cell c(x, h) -> y\n    y  = b\n    h' = tanh(y)\n",
    ):
        cell = parse(text)
        assert cell.outputs[0].op in (STATE, PARAM)
        assert_round_trip(cell)


def test_arrow_to_a_state_means_its_next_value() -> None:
    for arrow in ("c", "c'"):
        cell = parse(f"cell l(x, h, c) -> {arrow}\n c' = tanh(h)\n h' = c\n")
        assert cell.outputs[0] is cell.states[1].next
        assert str(cell).startswith("cell l(x, h, c) -> c\n")


def test_next_value_can_be_read_by_later_lines() -> None:
    cell = zoo.get("lstm_peephole")
    h, c = cell.states
    assert h.next is Node("mul", (h.next.args[0], Node("tanh", (c.next,))))


# -- precedence ------------------------------------------------------------------------------------

h, k = Node(STATE, (), "h"), Node(STATE, (), "k")
W, V = Node(PARAM, (), "W"), Node(PARAM, (), "V")


def number(value: float) -> Node:
    return Node(CONST, (), value)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("h + k * h", Node("add", (h, Node("mul", (k, h))))),
        ("h - k - h", Node("sub", (Node("sub", (h, k)), h))),
        ("h - (k - h)", Node("sub", (h, Node("sub", (k, h))))),
        ("h / k * h", Node("mul", (Node("div", (h, k)), h))),
        ("h / (k * h)", Node("div", (h, Node("mul", (k, h))))),
        ("h * W @ k", Node("mul", (h, Node(MATMUL, (W, k))))),
        ("W @ k * h", Node("mul", (Node(MATMUL, (W, k)), h))),
        ("W @ (k * h)", Node(MATMUL, (W, Node("mul", (k, h))))),
        ("W @ V @ h", Node(MATMUL, (W, Node(MATMUL, (V, h))))),
        ("W @ -h", Node(MATMUL, (W, Node("neg", (h,))))),
        ("-W @ h", Node("neg", (Node(MATMUL, (W, h)),))),
        ("W @ -V @ h", Node(MATMUL, (W, Node("neg", (Node(MATMUL, (V, h)),))))),
        ("-h * k", Node("mul", (Node("neg", (h,)), k))),
        ("-(h * k)", Node("neg", (Node("mul", (h, k)),))),
        ("h - -k", Node("sub", (h, Node("neg", (k,))))),
        ("--h", Node("neg", (Node("neg", (h,)),))),
        ("h + -1", Node("add", (h, number(-1)))),
        ("h - 1", Node("sub", (h, number(1)))),
        ("h - -1", Node("sub", (h, number(-1)))),
        ("h * -(1)", Node("mul", (h, Node("neg", (number(1),))))),
        ("h * --1", Node("mul", (h, Node("neg", (number(-1),))))),
        ("-2 * h", Node("mul", (number(-2), h))),
        ("h * (1 - 2)", Node("mul", (h, Node("sub", (number(1), number(2)))))),
        (
            "max(h + k, -k) * 2",
            Node("mul", (Node("max", (Node("add", (h, k)), Node("neg", (k,)))), number(2))),
        ),
        ("W @ tanh(h)", Node(MATMUL, (W, Node("tanh", (h,))))),
    ],
)
def test_precedence(text: str, node: Node) -> None:
    assert expression(text) is node
    assert_round_trip(parse(f"cell e(x, h, k)\n h' = {text}\n k' = k\n"))
    assert f"= {text}\n" in str(parse(f"cell e(x, h, k)\n h' = {text}\n k' = k\n")), (
        "as few parentheses as possible"
    )


@pytest.mark.parametrize(
    ("text", "value", "printed"),
    [
        ("3", 3.0, "3"),
        ("3.", 3.0, "3"),
        (".5", 0.5, "0.5"),
        ("0.5", 0.5, "0.5"),
        ("1e3", 1000.0, "1000"),
        ("1E-3", 0.001, "0.001"),
        ("2.5e+2", 250.0, "250"),
        ("0", 0.0, "0"),
        ("-0", 0.0, "0"),
        ("-0.0", 0.0, "0"),
        ("007", 7.0, "7"),
        ("1e-400", 0.0, "0"),
        ("1e22", 1e22, "1e+22"),
        ("5e-324", 5e-324, "5e-324"),
        ("1.7976931348623157e308", 1.7976931348623157e308, "1.7976931348623157e+308"),
        ("0.1000000000000000055511151231257827", 0.1, "0.1"),
        ("-1.25", -1.25, "-1.25"),
    ],
)
def test_numbers(text: str, value: float, printed: str) -> None:
    assert expression(f"h * {text}") is Node("mul", (h, number(value)))
    assert f"h * {printed}\n" in str(parse(f"cell e(x, h)\n h' = h * {text}\n"))
    assert f"init b = {printed}\n" in str(parse(f"cell e(x, h)\n h' = h * b\n init b = {text}\n"))


@quick
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_survives(value: float) -> None:
    cell = build("n", [("h", "H", Node("mul", (h, number(value))))], h, inits={})
    assert parse(str(cell)).states[0].next is cell.states[0].next


def test_comments() -> None:
    cell = parse(
        "  # indented\n#tight\n\ncell c(x, h) # after the header\n"
        "# within\nh' = h # after = (\n# below\n"
    )
    assert cell == parse("cell c(x, h)\nh' = h")
    assert cell.doc == "indented\ntight"
    assert parse(str(cell)).doc == cell.doc


def test_comment_with_anything_in_it() -> None:
    cell = parse("# Koutník's # `cell f(x)` — ∂, \x00 and \x1b[31m\ncell c(x, h)\nh' = h\n")
    assert parse(str(cell)).doc == cell.doc == "Koutník's # `cell f(x)` — ∂, \x00 and \x1b[31m"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\f", "\u2028"])
def test_line_ends(end: str) -> None:
    text = str(zoo.get("gru"))
    assert parse(text.replace("\n", end)) == zoo.get("gru")
    assert str(parse(text.replace("\n", end))) == text


# -- hostile names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "__import__",
        "__class__",
        "eval",
        "lambda",
        "None",
        "n1",
        "W",
        "H",
        "X",
        "matrix",
        "add",
        "h_",
        "_",
        "e5",
    ],
)
def test_names_that_mean_something_elsewhere(name: str) -> None:
    """As the cell, a state, a width, a value and a parameter."""
    assert_round_trip(parse(f"cell {name}(x, h)\n h' = h\n"))
    assert_round_trip(parse(f"cell c(x, {name})\n {name}' = tanh(U @ {name})\n"))
    assert_round_trip(
        parse(
            f"cell c(x, h) -> {name}\n {name} = h * h\n h' = {name} + tanh(W1 @ h) * tanh(W1 @ h)\n"
        )
    )
    assert_round_trip(parse(f"cell c(x, h)\n h' = tanh({name} @ h)\n init {name} = identity(1)\n"))
    assert_round_trip(
        parse(f"cell c(x, h)\n h' = tanh({name} * h)\n scalar {name}\n init {name} = 2\n")
    )
    if name not in ("H", "X"):
        cell = parse(f"cell c(x, h: {name})\n h' = tanh(U @ h) + W_x @ x\n")
        assert cell.widths == ("H", name)
        assert_round_trip(cell)


@pytest.mark.parametrize("name", [*FUNCTIONS, *RESERVED])
def test_words_of_the_notation_name_nothing(name: str) -> None:
    for text in (
        f"cell c(x, {name})\n {name}' = h\n",
        f"cell c(x, h)\n {name} = h\n h' = h\n",
        f"cell c(x, h)\n {name}' = h\n h' = h\n",
        f"cell c(x, h)\n h' = h * a\n scalar {name}\n",
        f"cell c(x, h)\n h' = h * a\n scalar a, {name}\n",
    ):
        with pytest.raises(
            CellError, match=f"{name} is a word of the notation, expected another name"
        ):
            parse(text)


# -- what the strategy promises to those who use it ------------------------------------------------


@quick
@given(cells(), st.integers(0, 5))
def test_drawn_cells_stay_bounded(cell: CellGraph, seed: int) -> None:
    values = values_and_gradients(cell, sample(cell, steps=5, hidden=6, seed=seed))
    outputs, last, slopes = (
        values[0],
        values[1 : 1 + len(cell.states)],
        values[1 + len(cell.states) :],
    )
    assert float(outputs.detach().abs().max()) <= LIMIT
    assert all(float(s.detach().abs().max()) <= STATE_LIMIT for s in last)
    assert all(bool(torch.isfinite(s).all()) for s in slopes)
    assert max(float(s.abs().max()) for s in slopes) < 1e6


@quick
@given(
    cells(
        max_states=2,
        max_lines=4,
        ops=("tanh", "add", "step"),
        smooth=True,
        projected=False,
        raw_x=False,
    )
)
def test_drawn_cells_keep_to_the_options(cell: CellGraph) -> None:
    assert len(cell.states) <= 2
    assert {s.width for s in cell.states} == {"H"}
    assert cell.raw_x is None
    assert sum(name[0] == "a" or name[-1] == "'" for name, _ in cell.names) <= 4
    assert {n.op for n in cell.nodes} <= {
        STATE,
        PARAM,
        CONST,
        INPUT,
        MATMUL,
        "tanh",
        "sigmoid",
        "add",
        "sub",
        "mul",
    }


def test_jumping_ops() -> None:
    """Read off the derivatives, so that a new op sorts itself; these are today's."""
    jumping = {"max", "min", "relu", "leaky_relu", "abs", "hard_sigmoid", "sign", "step"}
    assert jumping == JUMPING


def test_every_op_has_one_place_in_the_notation() -> None:
    assert len(FUNCTIONS) + len(INFIX) == len(OPS)


def test_width_error_is_a_cell_error_of_one_line() -> None:
    with pytest.raises(CellError, match="the output is not a vector, expected one") as caught:
        build("c", [("h", "H", h)], number(1))
    assert isinstance(caught.value, WidthError)
    assert "\n" not in str(caught.value)
    with pytest.raises(CellError, match="state 'k' is read but not declared"):
        build("c", [("h", "H", k)], k)

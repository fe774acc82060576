"""Malformed, hostile and huge texts: each is read, or ends in one CellError that points at it."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgraph import CellError, CellGraph, parse
from cellgraph.graph import STATE, Node
from cellgraph.notation import MAX_DEPTH, MAX_TEXT
from cellgraph.widths import MAX_NODES, build
from tests.cellgraph.refused import assert_refused, read_or_refused, table
from tests.strategies import assert_round_trip, cells

quick = settings(max_examples=60, deadline=None)
h, k = Node(STATE, (), "h"), Node(STATE, (), "k")

MALFORMED = """
cell c(x, h); h' = h §$ h
    unexpected character '$', expected a name, a number or one of
cell c(x, h); h' = h §^ 2
    unexpected character '^'
cell c(x, h); h'§' = h
    unexpected character "'"
cell c(x, h); §é = h
    unexpected character 'é'
cell c(x, h); h' = §"tanh"
    unexpected character '"'
cell c(x, h); h' = h * §1e999
    number inf in a cell, expected a finite number
cell c(x, h); h' = 2 §h
    found 'h', expected an operator or the end of the line
cell c(x, h); h' = 1.5§.2 * h
    found '.2', expected an operator

§gru(x, h); h' = h
    found 'gru', expected a header like: cell NAME(x, h)
# doc; §h' = h
    found "h'", expected a header
cell §(x, h); h' = h
    found '(', expected the name of the cell
cell §3(x, h); h' = h
    found '3', expected the name of the cell
cell §c'(x, h); h' = h
    c' has a prime, expected the name of the cell without one
cell c§; h' = h
    found 'end of line', expected '('
cell c(§h, x); h' = h
    found 'h', expected the input x
cell c(§); h' = h
    found ')', expected the input x
cell §c(x)
    cell c has no state, expected at least one after x
cell c(x, h,§); h' = h
    found ')', expected the name of a state
cell c(x, §h'); h' = h
    h' has a prime, expected the name of a state without one
cell c(x, §x); x' = x
    x is a word of the notation, expected another name for a state
cell c(x, §tanh)
    tanh is a word of the notation, expected another name for a state
cell c(x, h, §h); h' = h
    state h stands twice in the header, expected once
cell c(x, h: §3); h' = h
    found '3', expected the name of a width
cell c(x, §h: X); h' = h
    X is the width of the input, expected another name for a width
cell c(x, h §h2); h' = h
    found 'h2', expected ')'
cell c(x, h) §: h; h' = h
    found ':', expected an operator or the end of the line
cell c(x, h) ->§; h' = h
    found 'end of line', expected the name of the output
cell c(x, h) -> h §h; h' = h
    found 'h', expected an operator or the end of the line
cell c(x, h) -> §gat; gate = h + 1; h' = h
    the output gat is never assigned (did you mean gate?), expected
cell c(x, h) -> §U; h' = U @ h
    the output U is never assigned, expected a state or an assigned name
cell c(x, h) -> §y'; y = tanh(h); h' = y
    the output y is never assigned

cell c(x, h); §= h
    found '=', expected a name to assign
cell c(x, h); §2 = h
    found '2', expected a name to assign
cell c(x, h); h' §+ h
    found '+', expected '='
cell c(x, h); h' = h; §cell d(x, h); h' = h
    a second cell starts here, expected one cell in a text
cell c(x, h); §tanh = h; h' = h
    tanh is a word of the notation, expected another name for a value
cell c(x, h); §x' = h; h' = h
    x is a word of the notation, expected another name for a value
cell c(x, h); §scalar = h; h' = h
    scalar is a word of the notation
cell c(x, h); h' = §skew @ h
    skew is a word of the notation, expected a value
cell c(x, hidden); §hiden' = x
    hiden is not a state, expected one of hidden (did you mean hidden?)
cell c(x, h); h' = h; §h' = h
    h' is assigned twice, expected exactly once
cell c(x, h); §h = x; h' = h
    h is the previous value of a state, expected h' on the left
cell c(x, h); a = h; §a = x; h' = a
    a is assigned twice, expected exactly once
cell c(x, h); b = h * a; §a = h; h' = b
    a was read on line 2, expected names assigned before they are used
cell c(x, h); §a = a + h; h' = a
    a was read on line 2
cell §c(x, h, k); h' = k
    state k has no next value, expected a line k' = …

cell c(x, h); h' = h * a; scalar a,§
    found 'end of line', expected the name of a parameter
cell c(x, h); h' = h * a; scalar §a'
    a' has a prime, expected the name of a parameter without one
cell c(x, h); h' = h * a; scalar §tanh
    tanh is a word of the notation, expected another name for a param
cell c(x, h); h' = h * a; scalar a §b
    found 'b', expected an operator or the end of the line
cell c(x, h); h' = h * alpha; scalar §alpa
    alpa is not a parameter of the cell (did you mean alpha?),
cell c(x, h); h' = h; scalar §a
    a is not a parameter of the cell, expected one of none
cell c(x, h); h' = h * b; scalar §h
    h is not a parameter of the cell, expected one of b
cell c(x, h); h' = U @ h; skew U,§
    found 'end of line', expected the name of a parameter
cell c(x, h); h' = U @ h; skew §V
    V is not a parameter of the cell, expected one of U
cell c(x, h); h' = h * b; init §h = 1
    h is not a parameter of the cell, expected one of b
cell c(x, h); h' = h * b; init b = 1; init §b = 2
    init b stands twice, expected once
cell c(x, h); h' = h * b; init b §1
    found '1', expected '='
cell c(x, h); h' = h * b; init b = §a
    found 'a', expected a number or identity(NUMBER)
cell c(x, h); h' = h * b; init b = -§-1
    found '-', expected a number
cell c(x, h); h' = h * b; init b = 1 §+ 1
    found '+', expected an operator or the end of the line
cell c(x, h); h' = U @ h; init U = identity §1
    found '1', expected '('
cell c(x, h); h' = U @ h; init U = identity(§)
    found ')', expected a number
cell c(x, h); h' = U @ h; init U = identity(1§
    found 'end of line', expected ')'
cell c(x, h); h' = U @ h; init U = identity(§1e999)
    number inf in a cell

cell c(x, h); h' =§
    found 'end of line', expected a name, a number or (
cell c(x, h); h' = h +§
    found 'end of line', expected a name, a number or (
cell c(x, h); h' = h §= h
    found '=', expected an operator or the end of the line
cell c(x, h); h' = h * §/ h
    found '/', expected a name, a number or (
cell c(x, h); h' = §+h
    found '+', expected a name, a number or (
cell c(x, h); h' = (h§
    found 'end of line', expected ')'
cell c(x, h); h' = h§)
    found ')', expected an operator or the end of the line
cell c(x, h); h' = (§)
    found ')', expected a name, a number or (
cell c(x, h); h' = tanh(h§
    found 'end of line', expected ')'
cell c(x, h); h' = tanh(h§ # )
    found 'end of line', expected ')'
cell c(x, h); h' = §h @ h
    left of @ stands a value, expected the name of a matrix
cell c(x, h); h' = §tanh(h) @ h
    left of @ stands a value, expected the name of a matrix
cell c(x, h); h' = U @ §h @ h
    left of @ stands a value, expected the name of a matrix
cell c(x, h); h' = h + §2 @ h
    left of @ stands a value
cell c(x, h); h' = U @§
    found 'end of line', expected a name, a number or (
cell c(x, h); h' = §tahn(h)
    unknown function 'tahn' (did you mean tanh?), expected one of max min sigmoid
cell c(x, h); h' = §h(h)
    unknown function 'h'
cell c(x, h); h' = §h'(h)
    unknown function "h'"
cell c(x, h); h' = §tanh(h, h)
    tanh has 2 arguments, expected 1
cell c(x, h); h' = §max(h)
    max has 1 arguments, expected 2
cell c(x, h); h' = tanh(§)
    found ')', expected a name, a number or (
cell c(x, h); h' = max(h, §)
    found ')', expected a name
cell c(x, h); h' = h * §tanh
    tanh is a word of the notation, expected a value
cell c(x, h); h' = h * §identity
    identity is a word of the notation, expected a value
cell c(x, h); a = §h'; h' = a
    h' is read before it is assigned, expected its line above
cell c(x, h); h' = h + §h'
    h' is read before it is assigned
cell c(x, cell_state); cell_state' = §cel_state'
    cel_state is not a state, expected one of cell_state (did you
cell c(x, h); h' = §x'
    x is not a state, expected one of h

cell c(x, h, p: P); h' = h §+ p; p' = p
    a vector of width H meets one of width P, expected equal widths
cell c(x, h, p: P); h' = U @ h; p' = U §@ p
    a vector of width H meets one of width P
cell c(x, h, p: P); h' = §p; p' = p
    a vector of width P meets one of width H
cell c(x, h, p: P); h' = b * h; p' = b §* p
    a vector of width H meets one of width P
cell c(x, h); h' = §1
    the next value of h is not a vector, expected width H
cell c(x, h); h' = a §* 2; scalar a
    the next value of h is not a vector
cell c(x, h); h' = U §@ h; scalar U
    U is declared scalar, expected a matrix left of @
cell c(x, h); h' = §U @ h; scalar U; skew U
    U is declared scalar and skew, expected one of them
cell c(x, h); h' = U @ (§b * h); skew b
    b is declared skew, expected it left of @
cell c(x, h, r: P); h' = U §@ r; r' = r; skew U
    a vector of width P meets one of width H, expected equal widths
cell c(x, h); h' = §U @ h; skew U; init U = identity(1)
    init U = identity(1): U is skew, where constants and diagonals cancel out, expected no init
cell c(x, h); h' = §U @ h; init U = 0.5; skew U
    init U = 0.5: U is skew, where constants and diagonals cancel out, expected no init
cell c(x, h); h' = U §@ 2
    the right side of @ is a number, expected a vector
cell c(x, h); h' = U §@ U
    the right side of @ is a matrix, expected a vector
cell c(x, h); h' = U @ h §+ U
    U is a matrix elsewhere in the cell, expected it left of @ only
cell c(x, h, k); h' = §U @ h; k' = U
    the next value of k is not a vector, expected width H
cell c(x, h) -> y; y = §2; h' = h
    the output is not a vector, expected one
cell c(x, h, r: P); h' = W §@ r; r' = x; init W = identity(1)
    a vector of width P meets one of width H, expected equal widths
cell c(x, h); h' = h * §b; init b = identity(1)
    init b = identity(…): b is not a matrix, expected a number
"""


@pytest.mark.parametrize(("joined", "message"), table(MALFORMED))
def test_malformed_text(joined: str, message: str) -> None:
    assert_refused(joined, message)


def test_an_error_survives_pickling() -> None:
    """Workers send errors home."""
    with pytest.raises(CellError) as caught:
        parse("cell c(x, h)\n h' = tahn(h)")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is CellError
    assert (str(again), again.line, again.column) == (str(caught.value), 2, 6)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "   # one\n\t\n"])
def test_no_cell(text: str) -> None:
    with pytest.raises(CellError, match="no cell in the text, expected a line like: cell NAME"):
        parse(text)


@pytest.mark.parametrize("text", [None, 3, b"cell c(x, h)", ["cell"]])
def test_not_text(text: object) -> None:
    with pytest.raises(CellError, match=f"a cell is text, got {type(text).__name__}"):
        parse(text)  # type: ignore[arg-type]


def test_a_space_that_is_none() -> None:
    """A no-break space, as copied from a web page, is itself the fault."""
    with pytest.raises(CellError, match=r"line 2: unexpected character '\\xa0'") as caught:
        parse("cell c(x, h)\n h' =\u00a0h")
    assert caught.value.column == 5


def test_caret_stays_under_tabs_and_in_long_lines() -> None:
    with pytest.raises(CellError) as caught:
        parse("cell c(x, h)\n\t\th' = \t$")
    assert str(caught.value).split("\n")[1:] == ["      h' =  $", " " * 12 + "^"]
    with pytest.raises(CellError) as caught:
        parse("cell c(x, h)\n h' = " + "h + " * 1000 + "$" + " + h" * 1000)
    _, source, caret = str(caught.value).split("\n")
    assert source[caret.index("^")] == "$"
    assert len(source) < 130


def test_no_control_character_reaches_the_terminal() -> None:
    with pytest.raises(CellError) as caught:
        parse("cell c(x, h)\n h' = h \x1b[31m\x07")
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


# -- sizes: whatever its size, a text is read or refused, and what is read can be printed ----------


def one_line(right: str) -> CellGraph:
    return parse(f"cell big(x, h)\n    h' = {right}\n")


def test_nesting() -> None:
    inside = MAX_DEPTH - 1
    assert one_line("(" * inside + "h" + ")" * inside).states[0].next is h
    assert_round_trip(one_line("tanh(" * inside + "h" + ")" * inside))
    for opening in ("(", "tanh(", "-(", "1 - ("):
        with pytest.raises(
            CellError, match=f"line 2: nested deeper than {MAX_DEPTH}, expected fewer parentheses"
        ):
            one_line(opening * MAX_DEPTH + "h" + ")" * MAX_DEPTH)
    with pytest.raises(CellError, match="nested deeper"):
        one_line("(" * 90_000)


def test_a_graph_nested_deeper_than_the_notation_prints_in_lines() -> None:
    """Mutation may nest without end; the printed cell must still read back."""
    node = h
    for _ in range(3 * MAX_DEPTH):
        node = Node("tanh", (Node("sub", (k, node)),))
    cell = build("deep", [("h", "H", node), ("k", "H", h)], node)
    assert max(line.count("(") for line in str(cell).splitlines()) <= MAX_DEPTH
    assert_round_trip(cell)


@pytest.mark.parametrize(
    "right",
    [
        "-" * 12_001 + "h",
        "U @ " * 5_000 + "h",
        " + ".join(["h"] * 5_000),
        " - ".join(f"p{i}" for i in range(6_000)),
        "U @ -" * 2_500 + "h",
        " * ".join(["2"] * 5_000 + ["h"]),
    ],
    ids=["minus", "matrices", "sum", "parameters", "both", "numbers"],
)
def test_long_chains(right: str) -> None:
    """Read in linear time and without recursion, then refused for their number of nodes."""
    with pytest.raises(CellError, match=rf"has \d+ nodes, expected at most {MAX_NODES}"):
        one_line(right)
    words = right.split(" ")
    few = " ".join(words[-1401:]) if len(words) > 1 else right[-1401:]
    cell = one_line(few)
    assert 700 <= len(cell.nodes) <= MAX_NODES
    assert_round_trip(cell)


def test_many_lines_with_exponentially_many_paths() -> None:
    """Each line uses the one above thrice: 3^900 paths, and 1,802 nodes."""
    lines = [f"a{i + 1} = a{i} * a{i} + a{i}" for i in range(900)]
    cell = parse("cell paths(x, h)\na0 = tanh(h)\n" + "\n".join(lines) + "\nh' = a900")
    assert len(cell.nodes) == 2 + 2 * 900
    assert_round_trip(cell)
    assert repr(cell) == f"parse({str(cell)!r})"
    assert repr(cell.states[0].next) == "add(mul, add)"


def test_huge_text() -> None:
    with pytest.raises(
        CellError, match=f"has {MAX_TEXT + 1} characters, expected at most {MAX_TEXT}"
    ):
        parse("#" * (MAX_TEXT + 1))
    filled = "cell c(x, h)\nh' = h\n#"
    assert parse(filled + "#" * (MAX_TEXT - len(filled))).name == "c"
    with pytest.raises(CellError, match="number inf"):
        one_line("h * " + "9" * 100_000)
    with pytest.raises(CellError, match="a name of 60000 characters, expected at most 100"):
        one_line("a" * 60_000 + " * h")
    long = "a" * 99
    assert_round_trip(one_line(f"{long} * h"))
    with pytest.raises(CellError, match=r"line 3: a+b is not a state"):
        parse(f"cell c(x, {long})\n {long}' = x\n {long}b' = x")


WORDS = st.sampled_from(
    [
        "cell",
        "c",
        "(",
        "x",
        ",",
        "h",
        ")",
        "\n",
        "\n",
        "h",
        "'",
        "=",
        "U",
        "@",
        "h",
        "+",
        "-",
        "*",
        "/",
        "tanh",
        "1",
        "scalar",
        "skew",
        "init",
        "identity",
        "b",
        "->",
        ":",
        "P",
        "max",
        "#",
        " ",
    ]
)


@quick
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    read_or_refused(text)
    read_or_refused(f"cell c(x, h)\n{text}")
    read_or_refused(f"cell c(x, h)\nh' = {text}")


@settings(quick, max_examples=200)
@given(st.lists(WORDS, max_size=25))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    text = " ".join(words).replace(" '", "'")
    read_or_refused(text)
    read_or_refused(f"cell c(x, h)\n h' = U @ x + {text}")
    read_or_refused(f"cell c(x, h, c: P)\n h' = h\n c' = c\n {text}")


@quick
@given(cells(), st.randoms(use_true_random=False))
def test_a_damaged_cell_is_read_or_refused(cell: CellGraph, random) -> None:  # type: ignore[no-untyped-def]
    """One character of a valid text removed, doubled or replaced."""
    text = str(cell)
    at = random.randrange(len(text))
    for new in ("", text[at] * 2, random.choice("()@+-*/=,':#x1 \n")):
        read_or_refused(text[:at] + new + text[at + 1 :])

"""Indices and repeats: a compact text is exactly the text that one would have written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellgraph as cg
from cellgraph.interpret import unroll
from cellgraph.notation import MAX_TEXT
from cellgraph.repeat import LARGEST_INDEX, MOST_REPETITIONS
from cellgraph.widths import MAX_NODES
from tests.cellgraph import reference_cells as reference
from tests.cellgraph.refused import assert_refused, read_or_refused, table
from tests.strategies import assert_round_trip, gradients

quick = settings(max_examples=60, deadline=None)


def written_out(depth: int) -> str:
    """The RHN in long form."""
    lines = [
        "cell rhn5(x, h)",
        "t_1 = sigmoid(W_t @ x + U_t_1 @ h + b_t_1)",
        "g_1 = tanh(W_g @ x + U_g_1 @ h + b_g_1)",
        "s_1 = g_1 * t_1 + h * (1 - t_1)",
    ]
    for step in range(2, depth + 1):
        before = f"s_{step - 1}"
        lines += [
            f"t_{step} = sigmoid(U_t_{step} @ {before} + b_t_{step})",
            f"g_{step} = tanh(U_g_{step} @ {before} + b_g_{step})",
            f"s_{step} = g_{step} * t_{step} + {before} * (1 - t_{step})",
        ]
    lines.append(f"h' = s_{depth}")
    lines += [f"init b_t_{step} = -2" for step in range(1, depth + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize("depth", [1, 2, 5, 10, 50])
def test_the_compact_rhn_is_the_long_one(depth: int) -> None:
    cell, wanted = cg.load("rhn", constants={"depth": depth}), cg.parse(written_out(depth))
    assert cell == wanted
    assert cell.key() == wanted.key()
    assert [name for name, _ in cell.names] == [name for name, _ in wanted.names]
    assert str(cell).splitlines()[-4 * depth - 2 :] == str(wanted).splitlines()
    assert_round_trip(cell)


def test_depths_are_different_cells() -> None:
    assert cg.load("rhn") == cg.load("rhn", constants={"depth": 5})
    keys = {cg.load("rhn", constants={"depth": depth}).key() for depth in (1, 2, 5, 10)}
    assert len(keys) == 4
    assert cg.constants("rhn") == {"depth": 5.0}


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_rhn_of_another_depth_agrees_with_torch(depth: int) -> None:
    """Values and gradients in float64; depth 5 is in test_zoo.py."""
    cell = cg.load("rhn", constants={"depth": depth})
    rng = torch.Generator().manual_seed(depth)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).mul_(0.8).requires_grad_()

    params = {p.name: draw(*p.shape({"H": 5, "X": 4})) for p in cell.params}
    x, s = draw(6, 3, 4), draw(3, 5)
    wanted, _ = reference.unroll(
        lambda p, x, s: reference.rhn(p, x, s, depth=depth), params, x, (s,)
    )
    outputs, _ = unroll(cell, params, x, [s])
    leaves = [*params.values(), x, s]
    slopes = gradients([outputs], leaves)
    torch.testing.assert_close(outputs, wanted, rtol=1e-12, atol=1e-12)
    for slope, wanted_slope in zip(slopes, gradients([wanted], leaves), strict=True):
        assert bool((slope != 0).any())
        torch.testing.assert_close(slope, wanted_slope, rtol=1e-12, atol=1e-12)


# -- the same text, shorter ------------------------------------------------------------------------

SAME = [
    # An index is a part of the name, inside a repeat or not; a constant may be one.
    (
        "cell c(x, h)\n a[3] = tanh(h)\n h' = a[3] + a_3",
        "cell c(x, h)\n a_3 = tanh(h)\n h' = a_3 + a_3",
    ),
    (
        "cell c(x, h)\n const k = 2\n a[k+1] = h\n h' = a[k + 2 - 1] * b[0]",
        "cell c(x, h)\n h' = h * b_0",
    ),
    # Spaces are free; so is a leading zero.
    ("cell c(x, h)\n h' = U [ 007 ] @ h", "cell c(x, h)\n h' = U_7 @ h"),
    # States and the output may be indexed too.
    (
        "cell c(x, h[1], h[2]: P) -> h[2]\n repeat i in 1..2\n  h[i]' = tanh(U[i] @ h[i])",
        "cell c(x, h_1, h_2: P) -> h_2\n h_1' = tanh(U_1 @ h_1)\n h_2' = tanh(U_2 @ h_2)",
    ),
    # The index is a number where a number may stand.
    (
        "cell c(x, h)\n s[0] = h\n repeat l in 1..3\n  s[l] = s[l-1] / l + -l\n h' = s[3]",
        "cell c(x, h)\n h' = ((h / 1 + -1) / 2 + -2) / 3 + -3",
    ),
    # scalar, skew and init lines are repeated with their equations.
    (
        "cell c(x, h)\n s[0] = h\n repeat l in 1..2\n  s[l] = a[l] * A[l] @ s[l-1]\n"
        "  scalar a[l]\n  skew A[l]\n  init a[l] = l\n h' = s[2]",
        "cell c(x, h)\n h' = a_2 * A_2 @ (a_1 * A_1 @ h)\n scalar a_1, a_2\n skew A_1, A_2\n"
        " init a_1 = 1\n init a_2 = 2",
    ),
    # Bounds are sums, no repetition is one of the numbers of repetitions, and an index may be used
    # again.
    (
        "cell c(x, h)\n const d = 2\n s[0] = h\n repeat l in d-1..d + d - 1\n"
        "  s[l] = tanh(s[l-1])\n repeat l in 2..1\n  s[l] = nothing(here) is read\n"
        " repeat l in 4..4\n  s[l] = s[l-1] * 2\n h' = s[4]",
        "cell c(x, h)\n h' = tanh(tanh(tanh(h))) * 2",
    ),
    # Comments and empty lines, wherever they stand, neither end nor begin a block; tabs indent.
    (
        "cell c(x, h)\n\ts[0] = h\n\trepeat l in 1..2 # twice\n# here\n\n\t # there\n"
        "\t\ts[l] = tanh(s[l-1]) # so\n\n# and\n\t\t\t\n\th' = s[2]",
        "cell c(x, h)\n h' = tanh(tanh(h))",
    ),
    # A block at the end of the text, and a text without indentation around it.
    (
        "cell c(x, h, k)\nh' = tanh(h)\nrepeat l in 1..1\n k' = h' * b[l]",
        "cell c(x, h, k)\n h' = tanh(h)\n k' = h' * b_1",
    ),
    # `in` is an ordinary name elsewhere, and even that of an index.
    (
        "cell c(x, h)\n repeat in in 1..2\n  a[in] = h * in\n h' = a[2]",
        "cell c(x, h)\n h' = h * 2",
    ),
    ("cell c(x, h)\n in = tanh(h)\n h' = in", "cell c(x, h)\n h' = tanh(h)"),
]


@pytest.mark.parametrize(("compact", "long"), SAME)
def test_the_compact_text_is_the_long_one(compact: str, long: str) -> None:
    assert cg.parse(compact) == cg.parse(long)
    assert_round_trip(cg.parse(compact))


def test_a_comment_in_a_block_is_no_title() -> None:
    cell = cg.parse(
        "# title\n\ncell c(x, h)\n s[0] = h\n repeat l in 1..2\n# inside\n  s[l] = s[l-1] * b\n"
        " h' = s[2]\n"
    )
    assert cell.doc == "title"


@quick
@given(st.integers(0, 40), st.integers(-3, 12), st.integers(0, 3))
def test_any_range(first: int, count: int, shift: int) -> None:
    """Repetitions from `first` on, their index shifted, against the lines written out."""
    text = f"cell c(x, h)\n s[{first}] = h\n repeat l in {first}..{first + count + 9} - 10\n"
    text += f"  s[l+1] = tanh(U[l + {shift} ] @ s[l]) - b[l]\n h' = s[{first + max(count, 0)}]\n"
    if count < 0:
        with pytest.raises(cg.CellError, match=f"line 3: a repeat from {first} to "):
            cg.parse(text)
        return
    lines = ["cell c(x, h)", f"s_{first} = h"]
    lines += [
        f"s_{at + 1} = tanh(U_{at + shift} @ s_{at}) - b_{at}" for at in range(first, first + count)
    ]
    assert cg.parse(text) == cg.parse("\n".join([*lines, f"h' = s_{first + count}"]))


# -- malformed -------------------------------------------------------------------------------------

MALFORMED = """
cell c(x, h); repeat§;   a = h; h' = h
    found 'end of line', expected the name of an index, as in: repeat l in 1..5
cell c(x, h); repeat §3;   a = h; h' = h
    found '3', expected the name of an index
cell c(x, h); repeat §l' in 1..2;   a = h; h' = h
    l' has a prime, expected the name of an index
cell c(x, h); repeat l §= 1..2;   a = h; h' = h
    found '=', expected 'in'
cell c(x, h); repeat l in§;   a = h; h' = h
    found 'end of line', expected a whole number or a constant
cell c(x, h); repeat l in 1§;   a = h; h' = h
    found 'end of line', expected '..'
cell c(x, h); repeat l in 1§, 2;   a = h; h' = h
    found ',', expected '..'
cell c(x, h); repeat l in 1..§;   a = h; h' = h
    found 'end of line', expected a whole number or a constant
cell c(x, h); repeat l in 1..2§:;   a = h; h' = h
    found ':', expected + or - or the end of the line
cell c(x, h); repeat l in §1.5..2;   a = h; h' = h
    found '1.5', expected a whole number or a constant
cell c(x, h); repeat l in §-1..2;   a = h; h' = h
    found '-', expected a whole number or a constant
cell c(x, h); repeat l in 1..§l;   a = h; h' = h
    l is no number here, expected a whole number or a constant
cell c(x, h); const depth = 2; repeat l in 1..§dept;   a = h; h' = h
    dept is no number here (did you mean depth?), expected a whole number or a constant, one of d
cell c(x, h); const d = 2.5; repeat l in 1..§d;   a = h; h' = h
    d = 2.5, expected a whole number up to 9999
cell c(x, h); const d = 1e300; repeat l in 1..§d;   a = h; h' = h
    d = 1e+300, expected a whole number up to 9999
cell c(x, h); repeat l in 1..§9999999999;   a = h; h' = h
    9999999999, expected a whole number up to 9999
cell c(x, h); repeat l in 3..§1;   a = h; h' = h
    a repeat from 3 to 1, expected an end of at least 2, which repeats nothing
cell c(x, h); repeat l in 1..§101;   a = h; h' = h
    101 repetitions, expected at most 100
§repeat l in 1..2;   a = h; h' = h
    found 'repeat', expected a header like
cell c(x, h); §repeat = h; h' = h
    repeat is a word of the notation, expected another name for a value
cell c(x, h); h' = h * §repeat
    repeat is a word of the notation, expected a value

cell c(x, h); repeat §h in 1..2;   a[h] = h; h' = h
    h is a state, expected another name for an index
cell c(x, h: P); repeat §P in 1..2;   a[P] = h; h' = h
    P is a width, expected another name for an index
cell c(x, h); a = h; repeat §a in 1..2;   b[a] = h; h' = h
    a is a value, expected another name for an index
cell c(x, h); const k = 1; repeat §k in 1..2;   b[k] = h; h' = h
    k is a constant, expected another name for an index
cell c(x, h); repeat §exp in 1..2;   a = h; h' = h
    exp is a word of the notation, expected another name for an index
cell c(x, h); a = h * l; repeat §l in 1..2;   b[l] = h; h' = a
    l was read on line 2, expected its line above that, or another name for an index
cell c(x, h); repeat l in 1..2;   §l = h; h' = h
    l is an index, expected another name for a value
cell c(x, h); repeat l in 1..2;   a[l] = h; const §l = 1; h' = h
    l is an index, expected another name for a constant
cell c(x, h); repeat l in 1..2;   a[l] = h; h' = a[2] * §l
    l is the index of a repeat, expected it inside that only
cell c(x, h); repeat l in 1..2;   a[l] = h; h' = a[§l]
    l is no number here, expected a whole number

cell c(x, h); §repeat l in 1..2
    a repeat without lines, expected them below it, indented deeper
cell c(x, h); §repeat l in 1..2; h' = h
    a repeat without lines
cell c(x, h); repeat l in 1..2;   a[l] = h;  §b[l] = h; h' = h
    indented unlike line 3, expected the same, or no more than the repeat in line 2
cell c(x, h); repeat l in 1..2;   a[l] = h;     §b[l] = h; h' = h
    indented unlike line 3
cell c(x, h); repeat l in 1..2;   a[l] = h;   §repeat k in 1..2;     b[k] = h; h' = h
    a repeat line inside a repeat, expected equations, scalar, skew and init lines
cell c(x, h); repeat l in 1..2;   §const a = 3; h' = h
    a const line inside a repeat
cell c(x, h); repeat l in 1..2;   §cell d(x, h); h' = h
    a second cell starts here

cell c(x, h); h' = §[1]
    found '[', expected one index, and a name before it
cell c(x, h); h' = 3§[1]
    found '[', expected one index
cell c(x, h); h' = U[1]§[2] @ h
    found '[', expected one index
cell c(x, h); h' = U[§] @ h
    found ']', expected a whole number or a constant
cell c(x, h); h' = U[§-1] @ h
    found '-', expected a whole number or a constant
cell c(x, h); h' = U[§1.0] @ h
    found '1.0', expected a whole number or a constant
cell c(x, h); h' = U[1 §* 2] @ h
    found '*', expected ']'
cell c(x, h); h' = U[1 §@ h
    found '@', expected ']'
cell c(x, h); h' = U[1§
    found 'end of line', expected ']'
cell c(x, h); h' = U§] @ h
    found ']', expected an operator or the end of the line
cell c(x, h); h' = §h'[1]
    h' has a prime, expected it behind the index: name[…]'
cell c(x, h); h' = h; §s[1]' = h
    s_1 is not a state, expected one of h
cell c(x, h); h' = §U[1-2] @ h
    U[-1], expected an index from 0 to 9999
cell c(x, h); h' = §U[9999+1] @ h
    U[10000], expected an index from 0 to 9999
cell c(x, h); h' = U[§10000] @ h
    10000, expected a whole number up to 9999
cell c(x, h); h' = §tanh[1](h)
    unknown function 'tanh_1' (did you mean tanh?)
cell c(x, h); h' = h§..2
    found '..', expected an operator or the end of the line

cell c(x, h); repeat l in 0..2;   a[l] = §b[l-1] * h; h' = h
    b[-1], expected an index from 0 to 9999
cell c(x, h); s[1] = h; repeat l in 2..3;   s[l] = §s[l-2] * 2; h' = s[3]
    s_0 is never assigned, but s_1 is, expected the index of one that is
cell c(x, h); s[1] = h; repeat l in 2..3;   s[l] = s[l-1] * 2; h' = §s[4]
    s_4 is never assigned, but s_1 is
"""


@pytest.mark.parametrize(("joined", "message"), table(MALFORMED))
def test_malformed_repeats(joined: str, message: str) -> None:
    assert_refused(joined, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # What is wrong in the first repetition is wrong in the text.
        ("a[l] = h +", "found 'end of line', expected a name, a number or ("),
        ("a[l] = U @ q[2-l]", "q[-1], expected an index from 0 to 9999 (at l = 3)"),
        ("a[l] = U @ q[l-2]", "the right side of @ is a number, expected a vector"),
        ("a[l] = U @ q[4-l]", "the right side of @ is a number, expected a vector (at l = 4)"),
        ("a[l] = r[4-l] + h", "a vector of width P meets one of width H, expected equal widths"
         " (at l = 4)"),
        ("a = h", "a is assigned twice, expected exactly once (at l = 3)"),
        ("h' = h", "h' is assigned twice, expected exactly once (at l = 3)"),
        ("a[l] = s[l-1]", "s_2 is never assigned, but s_1 is, expected the index of one that is"
         " (at l = 3)"),
    ],
)  # fmt: skip
def test_errors_name_the_repetition_that_matters(body: str, message: str) -> None:
    text = (
        "cell c(x, h, r_0: P, r_1, r_2)\n const q_0 = 1\n s[1] = h\n repeat l in 2..4\n"
        f"  {body}\n h' = a_2 + a_3 + a_4\n r_0' = r_0\n r_1' = r_1\n r_2' = r_2\n"
    )
    with pytest.raises(cg.CellError) as caught:
        cg.parse(text)
    first, source, caret = str(caught.value).split("\n")
    assert first == f"line 5: {message}"
    assert source.strip() == body
    assert caret.strip() == "^"


# -- sizes -----------------------------------------------------------------------------------------


def repeated(count: int, lines: str) -> str:
    return f"cell c(x, h)\n s[0] = h\n repeat l in 1..{count}\n{lines}\n h' = s[{count}]\n"


def test_as_often_as_it_may() -> None:
    cell = cg.parse(repeated(MOST_REPETITIONS, "  s[l] = tanh(U[l] @ s[l-1])"))
    assert sum(p.kind == "matrix" for p in cell.params) == MOST_REPETITIONS
    assert_round_trip(cell)
    with pytest.raises(cg.CellError, match="101 repetitions, expected at most 100"):
        cg.parse(repeated(MOST_REPETITIONS + 1, "  s[l] = tanh(U[l] @ s[l-1])"))
    cg.parse(f"cell c(x, h)\n h' = h * b[{LARGEST_INDEX}]")


def test_an_unrolled_cell_may_be_too_large() -> None:
    chain = " + ".join(["b[l]"] * 30)
    with pytest.raises(cg.CellError, match=rf"has \d+ nodes, expected at most {MAX_NODES}"):
        cg.parse(repeated(100, f"  s[l] = s[l-1] * ({chain})"))


def test_a_short_text_costs_no_more_than_a_long_one() -> None:
    """Repetitions count as text: a thousand repeats of a long line end in an error, not in an
    hour."""
    blocks = [f" repeat l in 1..100\n  a{i}[l] = {'h + ' * 200}h\n" for i in range(150)]
    text = "cell c(x, h)\n" + "".join(blocks) + " h' = h\n"
    assert len(text) < MAX_TEXT
    with pytest.raises(
        cg.CellError, match=rf"more than {MAX_TEXT} characters with all repetitions, expected"
    ):
        cg.parse(text)
    with pytest.raises(cg.CellError, match="a name of 101 characters, expected at most 100"):
        cg.parse(f"cell c(x, h)\n h' = h * {'a' * 99}[1]")


# -- anything --------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *"hslxUb1023",
        *("s[l]", "s[l-1]", "U[l] @", "b[0]", "s[l]'", "h'", "[", "]", "]'", "..", "="),
        *("+", "-", "(", ")", ",", "const", "const k = 2", "repeat", "repeat l in 1..2", "in"),
        *("scalar", "skew", "init", "tanh(", "\n", "\n ", "\n  ", "\n   ", "\n\t", " "),
    ]
)


@settings(quick, max_examples=120)
@given(st.lists(WORDS, max_size=25))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    text = " ".join(words)
    read_or_refused(text)
    read_or_refused(f"cell c(x, h)\n{text}")
    start = "cell c(x, h)\n s[0] = h\n repeat l in 1..2\n"
    read_or_refused(f"{start}  {text}\n h' = s[0]")
    read_or_refused(f"{start}  s[l] = s[l-1] {text}\n h' = s[2]")
    read_or_refused(f"cell c(x, h)\n h' = h * b[{text}]")


COMPACT = """cell rhn(x, h)
    const depth = 3
    s[0] = h
    repeat l in 1..depth
        t[l] = sigmoid(U[l] @ s[l-1] + b[l])
        s[l] = t[l] * s[l-1] + a[l]
        init b[l] = -depth
        scalar a[l]
    h' = s[depth] + W @ x
"""


@settings(quick, max_examples=100)
@given(st.integers(0, len(COMPACT) - 1), st.sampled_from([*"()[]@+-*.=,':#xl01 \n\t", "", "  "]))
def test_a_damaged_text_is_read_or_refused(at: int, new: str) -> None:
    """One character of a compact text removed, doubled or replaced."""
    assert_round_trip(cg.parse(COMPACT))
    for put in (new, COMPACT[at] * 2, COMPACT[at] + new):
        read_or_refused(COMPACT[:at] + put + COMPACT[at + 1 :])

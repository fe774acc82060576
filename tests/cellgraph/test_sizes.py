"""Sizes without building anything: against layers that are built, and against counting by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cellgraph as cg
from cellgraph.sizes import concrete_widths, output_width
from tests.strategies import cells

WIDE = "cell wide(x, h, r: P)\n r' = tanh(R @ h + p)\n h' = tanh(W @ x + U @ r)"


def built(cell: cg.CellGraph | str, *sizes: int, both: bool = False, **widths: int) -> int:
    layer = cg.compile(cell, *sizes, bidirectional=both, widths=widths)
    return sum(p.numel() for p in layer.parameters())


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cg.zoo.names())
def test_parameters_of_named_cells(name: str) -> None:
    cell = cg.load(name)
    for x, hidden, layers in itertools.product((1, 4, 5), (1, 4), (1, 3)):
        for both in (False, True):
            found = cg.count_parameters(cell, x, hidden, layers, bidirectional=both)
            assert found == built(cell, x, hidden, layers, both=both)


@settings(max_examples=40, deadline=None)
@given(cells(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_parameters_of_drawn_cells(
    cell: cg.CellGraph, x: int, hidden: int, layers: int, both: bool
) -> None:
    widths = dict.fromkeys(cell.widths[1:], 3)
    found = cg.count_parameters(cell, x, hidden, layers, widths=widths, bidirectional=both)
    assert found == built(cell, x, hidden, layers, both=both, **widths)


def test_parameters_by_hand() -> None:
    lstm = cg.load("lstm")
    assert cg.count_parameters(lstm, 32, 64) == 4 * (64 * 32 + 64 * 64 + 64)
    # The second layer reads both directions of the first.
    assert cg.count_parameters(lstm, 32, 64, 2, bidirectional=True) == 2 * 4 * (
        (64 * 32 + 64 * 64 + 64) + (64 * 128 + 64 * 64 + 64)
    )
    assert cg.count_parameters(cg.load("mut1"), 64, 64) == 4 * 64 * 64 + 3 * 64
    assert cg.count_parameters(cg.load("mut1"), 32, 64) == 4 * 64 * 64 + 3 * 64 + 64 * 32
    wide = cg.parse(WIDE)
    assert cg.count_parameters(wide, 3, 5, widths={"P": 2}) == 2 * 5 + 2 + 5 * 3 + 5 * 2


# -- operations ------------------------------------------------------------------------------------


def test_operations_of_an_lstm_by_hand() -> None:
    h, x = 64, 32
    products = 2 * 4 * (h * x + h * h)
    # A gate: two additions and a function; then f * c + i * g, tanh(c'), o * tanh(c').
    elementwise = 4 * (2 + 1) * h + 3 * h + h + h
    assert cg.flops_per_step(cg.load("lstm"), x, h) == products + elementwise
    both = cg.flops_per_step(cg.load("lstm"), x, h, bidirectional=True)
    assert both == 2 * (products + elementwise)
    second = cg.flops_per_step(cg.load("lstm"), h, h)
    assert cg.flops_per_step(cg.load("lstm"), x, h, 2) == products + elementwise + second


def test_operations_by_hand_of_projections_scalars_and_other_widths() -> None:
    mut1 = cg.load("mut1")
    assert cg.flops_per_step(mut1, 32, 64) - cg.flops_per_step(mut1, 64, 64) == 2 * 32 * 64
    scalars = cg.parse("cell a(x, h)\n scalar s, t\n h' = tanh(s * t + h) * (1 - 2)")
    assert cg.flops_per_step(scalars, 3, 5) == 1 + 5 + 5 + 1 + 5
    wide = cg.parse(WIDE)
    expected = (2 * 2 * 5 + 2 + 2) + (2 * 5 * 3 + 2 * 5 * 2 + 5 + 5)
    assert cg.flops_per_step(wide, 3, 5, widths={"P": 2}) == expected


def test_a_value_that_is_used_twice_counts_once() -> None:
    once = cg.parse("cell a(x, h)\n g = tanh(W @ x + U @ h)\n h' = g * h")
    twice = cg.parse("cell a(x, h)\n g = tanh(W @ x + U @ h)\n h' = g * g")
    assert cg.flops_per_step(once, 3, 5) == cg.flops_per_step(twice, 3, 5)


# -- hidden sizes ----------------------------------------------------------------------------------


def counts() -> list[Callable[[int], int]]:
    lstm, tanh_rnn = cg.load("lstm"), cg.load("tanh_rnn")
    return [
        lambda h: cg.count_parameters(lstm, 20, h, 2),
        lambda h: cg.count_parameters(tanh_rnn, 1, h),
        lambda h: 50 * h + cg.count_parameters(cg.load("mut1"), h, h) + (h + 1) * 50,
        lambda h: h,
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("budget", [3000, 25_000, 25_001, 1_000_000])
def test_the_hidden_size_is_the_largest_within_the_budget(which: int, budget: int) -> None:
    count = counts()[which]
    size = cg.hidden_size_for(count, budget)
    assert count(size) <= budget < count(size + 1)


@given(st.integers(1, 2000), st.integers(1, 7))
def test_the_hidden_size_of_any_budget(budget: int, price: int) -> None:
    def count(h: int) -> int:
        return price * h * h

    if budget < price:
        with pytest.raises(cg.CellError, match="one hidden unit already takes"):
            cg.hidden_size_for(count, budget)
    else:
        size = cg.hidden_size_for(count, budget)
        assert count(size) <= budget < count(size + 1)


def test_a_cell_without_parameters_has_no_hidden_size() -> None:
    bare = cg.parse("cell a(x, h)\n h' = tanh(x - h)")
    with pytest.raises(cg.CellError, match="101 hidden units take 0 parameters"):
        cg.hidden_size_for(lambda h: cg.count_parameters(bare, h, h), 100)


def test_known_weakness_a_projection_that_falls_away_is_not_looked_for() -> None:
    """Where x has as many features as the layer has units, raw x needs no projection, so that one
    larger layer may fit as well. What comes back fits, but is not the largest."""
    count = lambda h: cg.count_parameters(cg.load("mut1"), 64, h)  # noqa: E731
    budget = count(64)
    size = cg.hidden_size_for(count, budget)
    assert count(size) <= budget
    assert size < 64


# -- widths ----------------------------------------------------------------------------------------


def test_concrete_widths() -> None:
    assert concrete_widths(cg.load("gru"), 3, 5) == {"H": 5, "X": 3}
    assert concrete_widths(cg.load("mut1"), 3, 5) == {"H": 5, "X": 5}
    assert concrete_widths(cg.parse(WIDE), 3, 5, {"P": 2}) == {"H": 5, "X": 3, "P": 2}
    raw = cg.parse("cell a(x, h, r: P)\n r' = x * r\n h' = tanh(R @ r' + U @ h)")
    assert concrete_widths(raw, 3, 5, {"P": 2}) == {"H": 5, "X": 2, "P": 2}


def test_the_width_of_the_output() -> None:
    assert output_width(cg.load("lstm")) == "H"
    assert output_width(cg.parse(WIDE.replace("P)", "P) -> r"))) == "P"
    assert output_width(cg.parse("cell a(x, h) -> y\n y = W @ x\n h' = tanh(h + y)")) == "H"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "input_size is 0, expected a whole number of at least 1"),
        ((3, 1.5), "hidden_size is 1.5, expected a whole number of at least 1"),
        ((3, "5"), "hidden_size is '5', expected a whole number of at least 1"),
        ((3, 5, {"P": -1}), "P is -1, expected a whole number of at least 1"),
        ((3, 5), "cell wide declares the width P, expected widths={'P': …}"),
        ((3, 5, {"P": 2, "H": 5}), "cell wide has no width H, expected H, P"),
    ],
)
def test_bad_sizes(arguments: tuple[object, ...], message: str) -> None:
    for function in (
        lambda *a: concrete_widths(cg.parse(WIDE), *a),
        lambda x, h, w=None: cg.count_parameters(cg.parse(WIDE), x, h, widths=w),
        lambda x, h, w=None: cg.flops_per_step(cg.parse(WIDE), x, h, widths=w),
    ):
        with pytest.raises(cg.CellError) as caught:
            function(*arguments)  # type: ignore[operator]
        assert str(caught.value) == message

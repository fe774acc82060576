"""What the check of exports lets through, and what it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from cellgraph.exporters import TOLERANCE, Difference, check
from cellgraph.layer import CellLayer

#: A hundredth more or less of h comes to anything at all a few steps later.
WILD = "cell wild(x, h)\n    h' = sin({} * h + W @ x)"


def layer_of(text: str) -> CellLayer:
    sizes = {"input_size": 3, "hidden_size": 4}
    return check.concrete(cg.parse(text), sizes, {}, None)


def running(
    layer: CellLayer,
) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, list[Tensor]]]:
    """A layer, which computes in float64, as an export that rounds in its own way."""
    exact = copy.deepcopy(layer).double()

    def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        given = tuple(value.double() for value in state)
        y, last = exact(x.double(), given[0] if len(given) == 1 else given)
        return y, list(last) if isinstance(last, tuple) else [last]

    return run


def test_single_steps_hold_where_long_runs_cannot() -> None:
    layer = layer_of(WILD.format(8))
    *long, steps = check.cases(layer)
    assert max(case.doubt for case in long) > 0.1  # anything would pass there
    assert steps.doubt < 1e-3
    assert steps.x.shape == (1, 150, 3)
    found = check.largest_difference(layer, running(layer))
    assert found.step <= TOLERANCE
    assert found.steps == 1
    assert " over single steps: " in str(found)


@pytest.mark.parametrize(("doubt", "passes"), [(5e-4, False), (2e-3, True), (float("inf"), True)])
def test_where_rounding_has_grown_nothing_is_held_against_a_cell(
    doubt: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, other = layer_of(WILD.format(8)), layer_of(WILD.format(8.1))
    other.load_state_dict(layer.state_dict())
    one, *_, long, _ = check.cases(layer)
    cases = [replace(one, doubt=1.0), replace(long, doubt=doubt)]
    monkeypatch.setattr(check, "cases", lambda _: iter(cases))
    if passes:
        assert check.largest_difference(layer, running(other)).steps == 1
    else:
        with pytest.raises(cg.CellError, match="is not the cell"):
            check.largest_difference(layer, running(other))


def test_another_cell_does_not_hide_behind_rounding() -> None:
    layer, other = layer_of(WILD.format(8)), layer_of(WILD.format(8.001))
    other.load_state_dict(layer.state_dict())
    with pytest.raises(
        cg.CellError, match=r"is not the cell: the output at T = 1, B = \d+ differs"
    ):
        check.largest_difference(layer, running(other))


def test_single_steps_start_where_states_are_of_a_size_that_float32_can_tell() -> None:
    layer = layer_of("cell grows(x, h)\n    h' = 2 * h + W @ x")
    *_, steps = check.cases(layer)
    (state,) = steps.state
    assert state.abs().max() <= check.LARGEST
    assert 3 <= state.shape[1] < 50
    assert check.largest_difference(layer, running(layer)).step <= TOLERANCE


@pytest.mark.parametrize("sizes", [{"num_layers": 2, "bidirectional": True}, {"num_layers": 3}])
def test_single_steps_of_several_layers(sizes: dict[str, int]) -> None:
    layer = check.concrete(cg.load("lstm"), {"input_size": 3, "hidden_size": 4, **sizes}, {}, None)
    *_, steps = check.cases(layer)
    assert [value.shape for value in steps.state] == [(len(layer.cells), 150, 4)] * 2
    assert check.largest_difference(layer, running(layer)).largest <= TOLERANCE


def test_words() -> None:
    assert str(Difference(2.5e-7, 1e-7, 50)) == "largest difference 2.5e-07"
    end = "over single steps: this cell makes more of every rounding"
    assert str(Difference(1e-7, 1e-7, 1)) == f"largest difference 1.0e-07 {end}"
    assert str(Difference(2.5e-3, 1e-7, 50)) == (
        f"largest difference 2.5e-03 over up to 50 steps, 1.0e-07 {end}"
    )


def test_the_cases_are_the_same_every_time() -> None:
    layer = layer_of(WILD.format(2))
    for one, other in zip(check.cases(layer), check.cases(layer), strict=True):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=0)
        torch.testing.assert_close(one.state, other.state, rtol=0, atol=0)

"""The score relative to the GRU."""

from __future__ import annotations

import math

import pytest

from evaluators import DataError
from evaluators.fitness import score

# Jozefowicz et al. 2015, table 1; papers' scores follow from equation 1
GRU = {"arithmetic": 0.89565, "xml": 0.45963, "ptb_word": 0.09069}
UP = dict.fromkeys(GRU, True)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((0.29493, 0.32050, 0.08782), 0.329),  # tanh RNN
        ((0.89228, 0.42470, 0.08912), 0.924),  # LSTM
        ((0.90163, 0.44434, 0.08952), 0.967),  # LSTM-b
        ((0.89565, 0.45963, 0.09069), 1.000),  # GRU
        ((0.90728, 0.46478, 0.09161), 1.010),  # MUT3
    ],
)
def test_scores_of_the_paper(results: tuple[float, ...], expected: float) -> None:
    assert score(dict(zip(GRU, results, strict=True)), GRU, UP) == pytest.approx(expected, abs=5e-4)


def test_a_smaller_loss_is_better() -> None:
    baseline, down = {"chorales": 8.5}, {"chorales": False}
    assert score({"chorales": 8.0}, baseline, down) == pytest.approx(1.0625)
    assert score({"chorales": 9.0}, baseline, down) < 1
    assert math.isfinite(score({"chorales": 0.0}, baseline, down))


def test_the_worst_task_decides() -> None:
    baseline, directions = {"xml": 0.5, "chorales": 8.0}, {"xml": True, "chorales": False}
    assert score({"xml": 1.0, "chorales": 10.0}, baseline, directions) == pytest.approx(0.8)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("maximise", [True, False])
def test_a_value_that_is_no_number_never_improves(value: float | None, maximise: bool) -> None:
    assert score({"a": 9.0, "b": value}, {"a": 1.0, "b": 1.0}, {"a": True, "b": maximise}) == 0.0


def test_a_missing_task_scores_zero_and_one_more_is_ignored() -> None:
    assert (
        score({"xml": 0.5}, {"xml": 0.4, "arithmetic": 0.8}, {"xml": True, "arithmetic": True})
        == 0.0
    )
    assert score({"xml": 0.5, "memorisation": 0.1}, {"xml": 0.4}, {"xml": True}) == pytest.approx(
        1.25
    )


@pytest.mark.parametrize("base", [0.0, -1.0, math.nan, math.inf])
def test_a_useless_baseline_is_an_error(base: float) -> None:
    with pytest.raises(DataError, match="xml"):
        score({"xml": 0.5}, {"xml": base}, {"xml": True})


def test_incomplete_arguments() -> None:
    with pytest.raises(DataError, match="baseline"):
        score({"xml": 0.5}, {}, {})
    with pytest.raises(DataError, match="direction"):
        score({"xml": 0.5}, {"xml": 0.5}, {})

"""The statistics of a confirmation against numbers worked out elsewhere, and the table of them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import cellgraph as cg
from reports import collect, confirmed, inference, measured, page
from search.errors import SearchError
from search.journal import CandidateRow, Journal, ResultRow, UnitRow
from tests.reports import journals

# -- numbers


def test_an_interval_from_the_table_of_student() -> None:
    # s² = 2.5; the 0.975 quantile of t with 4 degrees of freedom is 2.776 in every table.
    assert inference.interval([1, 2, 3, 4, 5], 0.95) == pytest.approx(
        2.776 * math.sqrt(2.5 / 5), rel=1e-3
    )
    # With one degree of freedom t is Cauchy: its 0.95 quantile is tan(0.45 π).
    assert inference.interval([0, 2], 0.9) == pytest.approx(math.tan(0.45 * math.pi))
    assert inference.interval([7, 7, 7], 0.95) == 0


def test_a_paired_test_worked_out_by_hand() -> None:
    # Differences 1 to 5: t = 3 / √(2.5 / 5) = 4.2426; with 4 degrees of freedom the distribution
    # has a closed form, F(t) = 1/2 + (3/8) (t/√(1 + t²/4)) (1 - t²/(12 (1 + t²/4))).
    t = 3 / math.sqrt(0.5)
    root = 1 + t * t / 4
    upper = 0.5 - 0.375 * t / math.sqrt(root) * (1 - t * t / (12 * root))
    first, second = [11, 12, 13, 14, 15], [10, 10, 10, 10, 10]
    assert inference.paired(first, second) == pytest.approx(2 * upper)
    assert inference.paired(second, first) == pytest.approx(2 * upper)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_the_paired_test_is_that_of_scipy(count: int) -> None:
    first = [math.sin(i) for i in range(count)]
    second = [math.cos(3 * i) + 0.4 for i in range(count)]
    expected = stats.ttest_rel(first, second)
    assert inference.paired(first, second) == pytest.approx(expected.pvalue, rel=1e-12)
    low, high = stats.ttest_1samp(first, 0).confidence_interval(0.9)
    assert inference.interval(first, 0.9) == pytest.approx((high - low) / 2, rel=1e-12)


def test_pairs_remove_what_the_seeds_share() -> None:
    """A small gain in every seed shows, although the seeds differ by far more."""
    seeds = [0.1, 0.5, 0.9, 0.3, 0.7]
    better = [s + gain for s, gain in zip(seeds, [0.01, 0.011, 0.009, 0.01, 0.012], strict=True)]
    assert inference.paired(better, seeds) < 0.001
    assert stats.ttest_ind(better, seeds).pvalue > 0.9


def test_differences_that_do_not_vary() -> None:
    assert inference.paired([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1
    assert inference.paired([0.5] * 5, [0.025] * 5) == 2**-4  # the sign test
    # 0.3 - 0.2 and 0.2 - 0.1 differ by rounding alone.
    assert inference.paired([0.2, 0.3, 0.4], [0.1, 0.2, 0.3]) == 0.25


def test_wilcoxon_could_not_show_anything_at_five_seeds() -> None:
    """Why the test is not the one that assumes least."""
    clear = stats.wilcoxon([10, 20, 30, 40, 50], [1, 2, 3, 4, 5])
    assert clear.pvalue == 2 / 2**5


def test_holm_worked_out_by_hand() -> None:
    # .005 × 4, .01 × 3, .03 × 2, and .04 × 1, which must not fall below the one before.
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.5, 0.9, 0.4]) == [1, 1, 1]
    assert inference.holm([]) == []


# -- the table

GRU, LSTM = cg.load("gru"), cg.load("lstm")
NAME = "<img src=x onerror=alert(1)>\x1b[31m[bold]"
CELLS = {
    "gru": (GRU, "baseline", None),
    "lstm": (LSTM, "baseline", None),
    NAME: (cg.parse(journals.GOOD), "found", 1),
    "slow": (cg.parse(journals.SLOW), "random", None),
}
ARITHMETIC = {"name": "arithmetic", "metric": "accuracy", "maximise": True, "steps": 400,
              "parameters": 25000, "settings": 2, "uninformed": 0.025}  # fmt: skip
CHORALES = {**ARITHMETIC, "name": "chorales", "metric": "nll", "maximise": False,
            "uninformed": 61.0}  # fmt: skip
#: On test data, by cell and task and seed: the gains of the found cell are 0.05 ± 0.001; a text is
#: how a training failed; None: no setting worked.
VALUES: dict[tuple[str, str], Sequence[float | str] | None] = {
    ("gru", "arithmetic"): (0.90, 0.91, 0.92, 0.93),
    ("gru", "chorales"): (8.0, 8.1, 8.2, 8.3),
    ("lstm", "arithmetic"): (0.80, 0.95, 0.90, 0.85),
    ("lstm", "chorales"): (9.0, 9.1, 9.2, 9.3001),
    (NAME, "arithmetic"): (0.95, 0.961, 0.969, 0.98),
    (NAME, "chorales"): (8.4, 8.0, 8.1, 8.2),
    ("slow", "arithmetic"): (0.90, "diverged", 0.91, "crashed"),
    ("slow", "chorales"): None,
}
ALPHA = 0.05


def record(task: Mapping[str, Any], value: float | str, test: bool) -> dict[str, Any]:
    if isinstance(value, str):
        return {"status": value, "error": "loss <b>inf</b>", "metrics": {}, "cost": {}}
    made = {"status": "ok", "error": None, "cost": {"parameters": 24987}}
    # Validation promises far more than the test holds.
    made["metrics"] = {task["metric"]: 0.999 if task["maximise"] else 0.001}
    return {**made, "test": {task["metric"]: value}} if test else made


def write(run: Path, leave_out: int | None = None, tasks: Any = (ARITHMETIC, CHORALES)) -> Path:
    """A confirmation in `run`, without the result of unit `leave_out`."""
    about = {
        "options": {"top": 1, "settings": 2, "seeds": 4, "random": 1, "alpha": ALPHA},
        "notes": ["random cells: 5 asked for, 1 of the run passed the filter"],
        "references": {"gru": GRU.key(), "lstm": LSTM.key()},
        "tasks": tasks,
    }
    meta = {"confirmation": json.dumps(about), "created": "2026-01-02T03:04:05+00:00",
            "entrants": json.dumps([str(cell) for cell, _, _ in CELLS.values()])}  # fmt: skip
    candidates, units, results = [], [], []

    def train(cell: int, task: Mapping[str, Any], phase: str, value: float | str) -> None:
        number = len(units)
        payload = {"phase": phase, "settings": [{"lr": 0.01}], "seed": number}
        units.append(UnitRow(number, cell, task["name"], payload, 1.0, 0.0, 1.0))
        if value == "crashed":
            results.append(ResultRow(number, "crashed", ({"error": "killed"},)))
        elif number != leave_out:
            results.append(ResultRow(number, "ok", (record(task, value, phase == "measure"),)))

    for number, (name, (cell, origin, rank)) in enumerate(CELLS.items()):
        detail = {"rank": rank, "random": origin == "random"}
        row = CandidateRow(number, cell.key(), name, str(cell), origin, detail=detail)
        candidates.append(row)
        for task in tasks:
            values = VALUES[name, task["name"]]
            for value in (0.5, "diverged") if values is not None else ("diverged", "diverged"):
                train(number, task, "tune", value)
            for value in values or ():
                train(number, task, "measure", value)
    with Journal.create(run / "confirm", meta) as journal:
        journal.write(candidates, units, results)
    return run


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return measured.read(write(tmp_path))


def cell(document: Mapping[str, Any], task: str, name: str) -> dict[str, Any]:
    (found,) = [
        cell
        for t in document["tasks"]
        if t["name"] == task
        for cell in t["cells"]
        if cell["name"] == name
    ]
    return dict(found)


def test_means_and_intervals_are_those_of_the_test_split(document: dict[str, Any]) -> None:
    assert document["state"] == "finished"
    gru = cell(document, "arithmetic", "gru")
    assert gru["mean"] == pytest.approx(0.915)
    # s = √(0.0005/3); the 0.975 quantile of t with 3 degrees of freedom is 3.182.
    assert gru["half"] == pytest.approx(3.182 * math.sqrt(0.0005 / 3 / 4), rel=1e-3)
    assert gru["parameters"] == 24987
    assert (gru["tuning_failed"], gru["failed"]) == (1, 0)
    order = [[c["name"] for c in t["cells"]] for t in document["tasks"]]
    assert order == [[NAME, "gru", "lstm", "slow"], ["gru", NAME, "lstm", "slow"]]


def test_every_comparison_is_corrected_for_all_of_them(document: dict[str, Any]) -> None:
    # Two tasks: three cells against gru, two against lstm (gru and lstm are one pair).
    assert document["comparisons"] == 2 * 5
    pairs = [("lstm", "gru"), (NAME, "gru"), ("slow", "gru"), (NAME, "lstm"), ("slow", "lstm")]
    tests = [
        (task["name"], *pair, cell(document, task["name"], pair[0])["against"][pair[1]])
        for task in document["tasks"]
        for pair in pairs
    ]
    for task, first, second, test in tests:
        values = [cell(document, task, name)["values"] for name in (first, second)]
        assert test["p"] == pytest.approx(stats.ttest_rel(*values).pvalue, rel=1e-9)
        assert test["difference"] == pytest.approx(sum(values[0]) / 4 - sum(values[1]) / 4)
    adjusted = inference.holm([test["p"] for *_, test in tests])
    assert [test["p_holm"] for *_, test in tests] == pytest.approx(adjusted)
    mirrored = cell(document, "chorales", "gru")["against"]["lstm"]
    original = cell(document, "chorales", "lstm")["against"]["gru"]
    assert mirrored["p_holm"] == original["p_holm"]
    assert mirrored["difference"] == -original["difference"]
    assert (mirrored["verdict"], original["verdict"]) == ("better", "worse")


def test_a_failure_is_a_result(document: dict[str, Any]) -> None:
    slow = cell(document, "arithmetic", "slow")
    assert slow["values"] == [0.90, 0.025, 0.91, 0.025]
    assert slow["statuses"] == ["ok", "diverged", "ok", "crashed"]
    assert slow["mean"] == pytest.approx((0.90 + 0.91 + 2 * 0.025) / 4)
    untrained = cell(document, "chorales", "slow")
    assert untrained["values"] == [61.0] * 4
    assert (untrained["tuning_failed"], untrained["failed"]) == (2, 4)
    assert untrained["setting"] is None


def test_what_can_be_claimed_stands_there_in_words(document: dict[str, Any]) -> None:
    claims = {claim["name"]: claim["text"] for claim in document["claims"]}
    holm = cell(document, "arithmetic", NAME)["against"]["gru"]["p_holm"]
    assert holm < 0.001
    assert claims[NAME].startswith("better than gru on arithmetic (p < .001), lstm on chorales (p")
    assert claims[NAME].endswith("; no difference shown elsewhere")
    assert claims["lstm"].startswith("worse than gru on chorales (p < .001)")
    shown = confirmed.text(document)
    assert "at the level 0.05 for all of it together" in shown
    assert "found 1): better than gru on arithmetic (p < .001)" in shown


def test_a_claim_of_nothing() -> None:
    """The same seeds of two equal cells: nothing is shown, and that is what it says."""
    task = {**ARITHMETIC, "cells": [
        {"key": key, "values": [0.5, 0.6, 0.7], "setting": {}, "against": {}} for key in "ab"
    ]}  # fmt: skip
    about = {"options": {"alpha": 0.05}, "references": {"gru": "a"}}
    assert measured._compare([task], about) == 1
    row = CandidateRow(0, "b", "other", "", "found", detail={"rank": 2, "random": True})
    claim = measured._claim(row, [task])
    assert claim["text"] == "no difference shown"
    assert confirmed.role(claim) == "found 2, random"


def test_the_text_shows_results_and_no_search_score(document: dict[str, Any]) -> None:
    shown = confirmed.text(document)
    lines = shown.splitlines()
    assert max(map(len, lines[:-5])) <= confirmed.WIDTH
    (row,) = [line for line in lines if line.startswith("gru ") and "91.50" in line]
    assert row.split()[2:6] == ["baseline", "91.50", "±", "2.05"]
    assert "slow" in shown
    assert "2/4" in shown  # failed seeds
    assert "99.9" not in shown  # the validation metric that chose the setting
    assert "random cells: 5 asked for" in shown
    assert "95 % confidence" in shown
    assert "all 10 comparisons" in shown
    assert "\x1b" not in shown
    json.dumps(document, allow_nan=False)


def test_before_the_last_training_nothing_is_compared(tmp_path: Path) -> None:
    document = measured.read(write(tmp_path, leave_out=0))
    assert document["state"] == "unfinished"
    assert document["trainings"]["planned"] == document["trainings"]["done"] + 1
    assert document["tasks"] == document["claims"] == []
    shown = confirmed.text(document)
    assert f"go on with: cellsearch confirm {tmp_path}" in shown.replace("\n", " ")
    assert "gru" not in shown


def test_a_reference_that_nothing_could_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VALUES, ("gru", "chorales"), None)
    document = measured.read(write(tmp_path))
    assert document["comparisons"] == 5 + 3
    assert "gru" not in cell(document, "chorales", NAME)["against"]
    assert "gru failed with every setting on chorales" in " ".join(document["notes"])
    assert "vs gru" not in confirmed.headings(document["tasks"][1])
    assert "vs gru" in confirmed.headings(document["tasks"][0])


def test_a_value_that_is_not_finite_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VALUES, (NAME, "chorales"), (8.4, math.inf, 8.1, 8.2))
    found = cell(measured.read(write(tmp_path)), "chorales", NAME)
    assert found["statuses"] == ["ok", "diverged", "ok", "ok"]
    assert found["values"][1] == 61.0


@pytest.mark.parametrize(
    "meta", [{}, {"confirmation": "{"}, {"confirmation": "[]", "entrants": "[]", "created": "x"}]
)
def test_a_journal_of_something_else(tmp_path: Path, meta: dict[str, str]) -> None:
    Journal.create(tmp_path / "confirm", meta).close()
    with pytest.raises(SearchError, match="rows that cellsearch did not write"):
        measured.read(tmp_path)


def test_on_the_page_of_a_run(tmp_path: Path) -> None:
    run = journals.write(tmp_path / "run")
    before = page.render(collect.read(run))
    assert "<h2>Confirmation</h2>" not in before
    write(run)
    text = page.render(collect.read(run))
    assert "<h2>Confirmation</h2>" in text
    assert text.index("<h2>Confirmation</h2>") < text.index("<h2>Leaderboard</h2>")
    assert "better than gru on arithmetic (p &lt; .001)" in text
    assert "<img" not in text
    assert "\x1b" not in text
    shutil.rmtree(run / "confirm")
    assert page.render(collect.read(run)) == before
    write(run, leave_out=0)
    assert "Not finished" in page.render(collect.read(run))


def test_none_was_begun(tmp_path: Path) -> None:
    assert confirmed.fragment(tmp_path) is None
    with pytest.raises(SearchError, match="no such run directory"):
        measured.read(tmp_path)

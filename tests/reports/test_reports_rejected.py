"""Settings that the screen or a rung rejected: counted, shown, and never a result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from reports import collect, page, tables
from reports.collect import Run
from search.errors import SearchError
from tests.reports import journals
from tests.reports.journals import KEYS

SCREENED = {
    "setting": journals.setting(0), "status": "rejected", "stage": "screen",
    "error": "explodes: |h| is 1e+09 after 200 steps", "curve": [], "metrics": {}, "final": {},
    "cost": {"steps": 0, "seconds": 0.0},
}  # fmt: skip
# Better than all others until it was stopped, which must not help it.
AT_A_RUNG = {
    "setting": journals.setting(1), "seed": 1, "status": "rejected", "stage": "rung", "rung": 1,
    "error": "3rd of 4 at step 50", "curve": [[50, 1.0, 0.1, 0.999]],
    "metrics": {"loss": 0.1, "accuracy": 0.999, "step": 50},
    "cost": {"steps": 50, "seconds": 1.0, "hidden_size": 17, "parameters": 1987,
             "flops_per_step": 4000},
}  # fmt: skip


def write_rejected(directory: Path, **change: Any) -> Path:
    """The small run, but flat was rejected by the screen and slow's second setting at a rung."""
    units, results = journals.rows()
    by_unit = {result.unit: result for result in results}
    by_unit[4] = dataclasses.replace(by_unit[4], records=({**SCREENED, **change},))
    by_unit[7] = dataclasses.replace(by_unit[7], records=(by_unit[7].records[0], AT_A_RUNG))
    # Not the second proposal of flat, which got through memorisation.
    kept = [result for result in by_unit.values() if result.unit != 15]
    return journals.write(directory, units=units, results=kept)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect.read(write_rejected(tmp_path_factory.mktemp("rejected") / "small"))


def test_they_are_counted(run: Run) -> None:
    assert run.totals["statuses"] == {"crashed": 1, "diverged": 3, "ok": 19, "rejected": 2}
    assert run.totals["rejections"] == {"screen": 1, "rung": 1}
    assert run.totals["steps"] == 19 * 100 + 3 * 60 + 50
    rejected = run.records[run.records["status"] == "rejected"]
    assert list(rejected["rejected"]) == ["screen", "rung"]
    assert list(rejected["steps"]) == [0, 50]
    assert run.records["rejected"].notna().sum() == 2


def test_they_are_never_results(run: Run) -> None:
    rejected = run.records[run.records["status"] == "rejected"]
    assert rejected["metric"].isna().all()
    assert rejected["customary"].isna().all()
    cells = run.cells.set_index("key")
    assert cells.loc[KEYS["slow"], "best.ptb_char"] == 0.40
    assert cells.loc[KEYS["slow"], "outcome"] == "rejected at ptb_char"
    assert cells["best.memorisation"].isna()[KEYS["flat"]]
    assert KEYS["flat"] not in set(run.leaderboard["key"])


def test_what_the_screen_rejects_was_not_tried(run: Run) -> None:
    cells = run.cells.set_index("key")
    assert cells.loc[KEYS["flat"], "tried.memorisation"] == 0
    assert cells.loc[KEYS["slow"], "tried.ptb_char"] == 2
    # By its last proposal, whose result is still to come.
    assert cells.loc[KEYS["flat"], "outcome"] == "running"


def test_the_screen_is_the_first_stage_of_the_funnel(run: Run) -> None:
    assert run.funnel.to_dict("list") == {
        "stage": ["screen", "memorisation", "ptb_char", "jsb"],
        "entered": [7, 6, 4, 2],
        "finished": [5, 4, 3, 2],
        "passed": [4, 3, 2, 1],
    }


def test_they_are_shown(run: Run) -> None:
    assert tables.status_data(run)["rejections"] == {"screen": 1, "rung": 1}
    cell = tables.cell_data(run, KEYS["slow"])
    stage = cell["stages"][1]
    assert stage["statuses"] == {"ok": 1, "rejected": 1}
    assert stage["errors"] == ["3rd of 4 at step 50"]
    text = page.render(run)
    assert "explodes: |h| is 1e+09 after 200 steps" in text
    assert "3rd of 4 at step 50" in text
    assert list(run.curves(KEYS["slow"])["status"]) == ["ok"] * 4 + ["rejected"]


@pytest.mark.parametrize("stage", [None, "luck\n", 5])
def test_rejected_by_nobody_we_know(tmp_path: Path, stage: Any) -> None:
    directory = write_rejected(tmp_path / "r", stage=stage)
    with pytest.raises(SearchError, match="expected screen or rung") as caught:
        collect.read(directory)
    assert "\n" not in str(caught.value)

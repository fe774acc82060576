"""Reading a run: every number of a hand-made journal, and what the search itself would say."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evaluators.fitness import score
from reports import collect, tables
from reports.collect import Run
from reports.history import History, Stage, ratio
from reports.trainings import trainings
from search import launch
from search.algorithms.jozefowicz import Jozefowicz
from search.config import Config
from search.errors import SearchError
from search.executor import InlineExecutor
from search.journal import EventRow, Journal
from tests.reports import journals
from tests.reports.journals import KEYS
from tests.search import fakes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect.read(journals.write(tmp_path_factory.mktemp("reports") / "small"))


@pytest.fixture
def empty(tmp_path: Path) -> Run:
    return collect.read(journals.launched(tmp_path / "empty"))


def test_importing_the_package_loads_neither_torch_nor_ray_nor_pandas() -> None:
    code = (
        "import sys, reports; assert 'pandas' not in sys.modules;"
        "import reports.page, reports.tables;"
        "print([m for m in ('torch', 'ray', 'evaluators', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_one_record_per_setting_that_has_a_result(run: Run) -> None:
    assert len(run.records) == 4 * 2 + 3 + 2 * 2 + 1 + 2 + 1 + 2 + 2 + 2 + 1
    assert run.records["unit"].is_monotonic_increasing
    first = run.records.iloc[0]
    assert (first["key"], first["stage"], first["purpose"]) == (KEYS["lstm"], "ptb_char", "seed")
    assert (first["lr"], first["clip"], first["optimizer"]) == (0.001, 5.0, "adam")
    assert (first["metric"], first["loss"], first["steps"]) == (0.5, 0.5, 100)
    assert first["customary"] == pytest.approx(0.5 / 0.6931471805599453)
    assert (first["hidden_size"], first["parameters"], first["flops"]) == (17, 1987, 4000)


def test_what_failed_counts_for_nothing_however_good_it_was(run: Run) -> None:
    diverged = run.records[run.records["status"] == "diverged"]
    assert len(diverged) == 3
    assert diverged["metric"].isna().all()
    assert diverged["customary"].isna().all()
    assert (diverged["loss"] == 0.1).all()
    crashed = run.records[run.records["status"] == "crashed"]
    assert list(crashed["key"]) == [KEYS["fatal"]]
    assert list(crashed["error"]) == ["WorkerDied: <u>killed</u> by signal 9"]
    assert list(crashed["steps"]) == [0]
    assert crashed["seconds"].isna().all()


def test_a_unit_that_was_lost_counts_once_for_each_setting(tmp_path: Path) -> None:
    units, results = journals.rows()
    lost = [dataclasses.replace(r, status="timeout", records=()) for r in results[:1]]
    made = collect.read(journals.write(tmp_path / "r", units=units, results=lost + results[1:]))
    assert list(made.records["status"][:3]) == ["timeout", "timeout", "ok"]
    assert made.totals["statuses"]["timeout"] == 2
    assert made.cells.set_index("key").loc[KEYS["lstm"], "settings"] == 4


def test_cells_have_a_row_per_key_with_their_fate(run: Run) -> None:
    cells = run.cells.set_index("key")
    assert list(cells.index) == [
        KEYS[n] for n in ("lstm", "gru", "flat", "slow", "good", "hostile", "fatal", "late")
    ]
    assert list(cells["outcome"]) == [
        "seed", "seed", "running", "rejected at ptb_char", "evaluated", "rejected at jsb",
        "rejected at memorisation", "running",
    ]  # fmt: skip
    assert list(cells["furthest"]) == [
        "jsb", "jsb", "ptb_char", "ptb_char", "jsb", "jsb", "memorisation", "memorisation",
    ]  # fmt: skip
    assert list(cells["proposals"]) == [1, 1, 2, 1, 1, 1, 1, 1]
    assert list(cells["settings"]) == [4, 4, 0, 2, 6, 4, 0, 0]
    assert cells.loc[KEYS["flat"], "tried.memorisation"] == 2
    assert cells.loc[KEYS["flat"], "best.memorisation"] == 0.96
    assert cells.loc[KEYS["hostile"], "parents"] == (KEYS["good"], KEYS["lstm"])
    assert cells.loc[KEYS["good"], "seconds"] == 35.0
    assert list(cells.index[cells["pooled"]]) == [KEYS[n] for n in ("lstm", "gru", "good")]


def test_ratios_are_to_the_best_of_the_baseline_whichever_way_is_better(run: Run) -> None:
    cells = run.cells.set_index("key")
    assert cells.loc[KEYS["lstm"], "ratio.ptb_char"] == 0.50 / 0.52
    assert cells.loc[KEYS["lstm"], "ratio.jsb"] == 8.0 / 8.8
    assert cells.loc[KEYS["good"], "ratio.ptb_char"] == 0.572 / 0.52
    assert cells.loc[KEYS["good"], "ratio.jsb"] == 8.0 / 7.5
    assert cells.loc[KEYS["good"], "score"] == 8.0 / 7.5
    assert cells.loc[KEYS["slow"], "ratio.ptb_char"] == 0.40 / 0.52
    assert cells["score"].isna().sum() == 4
    assert "ratio.memorisation" not in cells


def test_the_leaderboard_ranks_what_has_a_result_on_every_task(run: Run) -> None:
    board = run.leaderboard
    assert list(board["key"]) == [KEYS[name] for name in ("good", "gru", "lstm", "hostile")]
    assert list(board["score"]) == [8.0 / 7.5, 1.0, 8.0 / 8.8, 0.4]
    assert list(board["rank"]) == [1, 2, 3, 4]


def test_equal_scores_stand_in_the_order_of_their_keys(tmp_path: Path) -> None:
    _, results = journals.rows()
    by_unit = {result.unit: result for result in results}
    for gru, lstm in ((2, 0), (3, 1)):  # the lstm's results are the gru's
        by_unit[lstm] = dataclasses.replace(by_unit[gru], unit=lstm)
    made = collect.read(journals.write(tmp_path / "r", results=list(by_unit.values())))
    tied = [key for key in made.leaderboard["key"] if key in (KEYS["gru"], KEYS["lstm"])]
    assert tied == sorted([KEYS["gru"], KEYS["lstm"]])


def test_leaderboard_text_is_exact_and_blind_to_when_and_where(run: Run, tmp_path: Path) -> None:
    text = collect.leaderboard_text(run)
    units, results = journals.rows(worker="another")
    later = [dataclasses.replace(r, seconds=99.0, attempts=2) for r in reversed(results)]
    other = collect.read(journals.write(tmp_path / "r", units=units, results=later))
    assert collect.leaderboard_text(other) == text
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0][6:] == ["ptb_char:accuracy", "jsb:nll"]
    assert lines[1] == ["1", repr(8 / 7.5), KEYS["good"], "good", "mutation", "6", "0.572", "7.5"]
    assert [line[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert "\x1b" not in text


def test_the_funnel_counts_proposals(run: Run) -> None:
    assert run.funnel.to_dict("list") == {
        "stage": ["memorisation", "ptb_char", "jsb"],
        "entered": [7, 4, 2],
        "finished": [6, 3, 2],
        "passed": [4, 2, 1],
    }


def test_totals(run: Run) -> None:
    assert run.totals == {
        "candidates_planned": 8,
        "candidates": 7,
        "candidates_decided": 5,
        "cells": 8,
        "units": 18,
        "units_done": 16,
        "trainings": 26,
        "steps": 22 * 100 + 3 * 60,
        "seconds": 10 * 10.0 + 5 * 5.0 + 1.0,
        "statuses": {"crashed": 1, "diverged": 3, "ok": 22},
        "rejections": {"screen": 0, "rung": 0},
        "busy": None,
        "draws": 0,
        "invalid": 0,
        "duplicates": 0,
        "equal": 0,
        "retries": 2,
        "fallbacks": 0,
        "workers_lost": 0,
        "resumed": 0,
    }


def test_how_busy_the_workers_were(tmp_path: Path) -> None:
    directory = journals.write(tmp_path / "run")
    with Journal.open(directory) as journal:
        uses = [{"worked": 30.0, "offered": 40.0}, {"worked": 60.0, "offered": 60.0}, {}]
        journal.write(events=[EventRow("interrupted", use) for use in uses])
    run = collect.read(directory)
    assert run.totals["busy"] == 0.9
    text = io.StringIO()
    tables.status(run, Console(file=text, width=200))
    assert "busy 90.0% of the time" in text.getvalue()


def test_moments_follow_the_pool(run: Run) -> None:
    shown = [(m.tried, m.candidate, m.score, m.best, m.worst) for m in run.history.moments]
    lstm, good = 8.0 / 8.8, 0.546 / 0.52  # good before its re-evaluation
    assert shown == [
        (1, 2, None, 1.0, lstm),
        (2, 3, None, 1.0, lstm),
        (3, 4, good, good, lstm),
        (4, 6, None, good, lstm),
        (5, 5, None, 8.0 / 7.5, lstm),
    ]


def test_what_ends_after_a_missing_result_is_not_decided(tmp_path: Path) -> None:
    units, results = journals.rows()
    early = [r for r in results if r.unit != 4]  # the first candidate's; virtual end 3
    made = collect.read(journals.write(tmp_path / "r", units=units, results=early))
    assert made.history.tried == 0
    assert set(made.cells["outcome"]) == {"seed", "running"}
    assert len(made.leaderboard) == 4  # what was measured is shown all the same


def test_lineage_leads_to_a_seed(run: Run) -> None:
    names = [run.first[key].name for key in run.lineage(KEYS["hostile"])]
    assert names == [journals.NAME, "good", "gru"]
    assert run.lineage(KEYS["flat"]) == [KEYS["flat"], KEYS["gru"]]  # its first proposal's
    assert run.lineage(KEYS["lstm"]) == [KEYS["lstm"]]


def test_curves(run: Run) -> None:
    curves = run.curves(KEYS["gru"])
    assert len(curves) == 8
    first = curves.iloc[0]
    assert (first["stage"], first["step"], first["metric"]) == ("ptb_char", 50, 0.26)
    assert curves["loss"].isna().sum() == 1
    assert run.curves(KEYS["late"]).empty
    assert run.curves(KEYS["fatal"]).empty


def test_find_by_the_beginning_of_a_key(tmp_path: Path, run: Run) -> None:
    for key in KEYS.values():
        assert run.find(key[:12]) == run.find(key) == key
    for prefix, words in {"": "expected the first hex", "XY": "hex", "0" * 64: "holds no"}.items():
        with pytest.raises(SearchError, match=words) as caught:
            run.find(prefix)
        assert "\n" not in str(caught.value)
    twins = [
        dataclasses.replace(row, key=f"abc{row.id}" + row.key[4:]) for row in journals.CANDIDATES
    ]
    made = collect.read(journals.write(tmp_path / "r", candidates=twins))
    with pytest.raises(SearchError, match=r"^9 cells of .* expected more digits$"):
        made.find("abc")
    assert made.find("abc7") == twins[7].key


def test_a_run_that_has_just_begun(empty: Run) -> None:
    assert empty.state == "unfinished"
    assert len(empty.records) == len(empty.cells) == len(empty.leaderboard) == 0
    assert {"score", "best.jsb", "ratio.jsb", "tried.memorisation"} <= set(empty.cells.columns)
    assert {"metric", "steps", "status", "flops"} <= set(empty.records.columns)
    assert list(empty.funnel["entered"]) == [0, 0, 0]
    assert empty.baseline is None
    assert empty.totals["trainings"] == empty.totals["steps"] == 0
    assert collect.leaderboard_text(empty).count("\n") == 1


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), "unfinished"),
        (("launched", "interrupted"), "interrupted"),
        (("launched", "interrupted", "resumed", "worker_lost"), "unfinished"),
        (("launched", "worker_lost", "finished"), "finished"),
        (("launched", "finished", "worker_lost"), "finished"),
        (("launched", "finished", "resumed"), "unfinished"),
    ],
)
def test_state(tmp_path: Path, events: tuple[str, ...], state: str) -> None:
    made = collect.read(journals.write(tmp_path / "r", events=events))
    assert made.state == state
    assert made.totals["workers_lost"] == events.count("worker_lost")


@pytest.mark.parametrize("broken", ["config", "environment", "seeds", "stages", "created"])
def test_a_journal_that_describes_no_run_is_refused(tmp_path: Path, broken: str) -> None:
    meta = {name: text for name, text in journals.META.items() if name != broken}
    with pytest.raises(SearchError, match="does not describe a run") as caught:
        collect.read(journals.write(tmp_path / "r", meta))
    assert "\n" not in str(caught.value)


def test_other_damage_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no such run directory"):
        collect.read(tmp_path / "nowhere")
    wrong = json.dumps([{"name": "memorisation"}])
    with pytest.raises(SearchError, match="does not describe a run"):
        collect.read(journals.write(tmp_path / "a", {**journals.META, "stages": wrong}))
    short = json.dumps(journals.STAGES[:2])
    with pytest.raises(SearchError, match="unit 1 is of stage jsb, expected one of memorisation"):
        collect.read(journals.write(tmp_path / "b", {**journals.META, "stages": short}))
    orphan = [*journals.CANDIDATES[:8], dataclasses.replace(journals.CANDIDATES[8], parents=(8,))]
    with pytest.raises(SearchError, match="candidate 8 names the parent 8"):
        collect.read(journals.write(tmp_path / "c", candidates=orphan))
    units, results = journals.rows()
    cut = dataclasses.replace(results[0], records=results[0].records[:1])
    with pytest.raises(SearchError, match="unit 0 has 1 records for 2 settings"):
        collect.read(journals.write(tmp_path / "d", units=units, results=[cut, *results[1:]]))


@pytest.mark.parametrize("value", [None, float("nan"), 0.0, 1e-15, 0.3, 4.0])
@pytest.mark.parametrize("maximise", [True, False])
def test_the_ratio_is_that_of_the_search(value: float | None, maximise: bool) -> None:
    assert ratio(value, 0.6, maximise) == score({"t": value}, {"t": 0.6}, {"t": maximise})


@pytest.mark.parametrize("base", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_without_a_usable_baseline_there_is_no_ratio(base: float | None) -> None:
    assert ratio(0.5, base, maximise=True) is None


def _followed(directory: Path, algorithm: Jozefowicz, config: Config) -> History:
    """The history of a journal of `tests.search.fakes`, which has no meta data."""
    stages = [
        Stage(s.name, s.task.metric, s.task.maximise, s.task.unit, s.task.family, s.is_filter,
              s.threshold, s.budget.steps, len(s.grid), abandons=s.abandons)
        for s in launch.plan(config).stages
    ]  # fmt: skip
    with Journal.read(directory) as journal:
        units, candidates = journal.units(), journal.candidates()
        results = list(journal.packed())
    keys = {row.id: row.key for row in candidates}
    values: dict[int, list[float | None]] = {row.unit: [] for row, _ in results}
    for training in trainings(directory, {u.id: u for u in units}, results, keys, stages):
        values[training.unit].append(training.metric)
    seeds = [seed.key for seed in algorithm.seeds]
    baseline = algorithm.baseline.key
    history = History(stages, seeds, baseline, algorithm.config.pool)
    history.follow(units, keys, values)
    return history


@pytest.mark.parametrize("abandon", [False, True])
@pytest.mark.parametrize("die_after", [None, 30, 60])
def test_history_is_what_the_search_did(
    tmp_path: Path, die_after: int | None, abandon: bool
) -> None:
    made = fakes.config(candidates=50, reevaluate=0.3, pool=4, abandon=abandon)
    directory = tmp_path / "run"
    if die_after is None:
        fakes.run(directory, InlineExecutor(fakes.evaluate), made)
    else:
        with pytest.raises(ConnectionError):
            fakes.run(directory, fakes.Shuffled(1, die_after), made)
    loop, complete = fakes.run(directory, None, made)  # a replay: the state at that moment
    algorithm = loop.algorithm
    assert isinstance(algorithm, Jozefowicz)
    assert complete is (die_after is None)
    history = _followed(directory, algorithm, made)
    counted = [
        (stage.name, len(ends), sum(d.passed for d in ends))
        for stage in history.stages
        for ends in [[d for d in history.decisions if d.stage == stage.name]]
    ]
    assert counted == algorithm.funnel()
    assert counted[0][2] > 0
    members = [member.key for member in algorithm.pool.members]
    assert history.pool == members
    assert [history.score(key) for key in members] == [
        algorithm.scores.score(member) for member in algorithm.pool.members
    ]
    assert history.tried == len(history.moments)
    if algorithm.progress().phase == "candidates":
        assert history.tried == algorithm.progress().done

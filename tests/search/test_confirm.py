"""Confirmation: equal terms for every cell, two phases in any order, and nothing lost in a kill."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cellgraph as cg
from evaluators import tasks
from reports import confirmed, measured
from search import funnel
from search.config import Config
from search.confirmation import FOLDER, Options
from search.confirmation.choice import _passed
from search.confirmation.driver import Driver
from search.confirmation.plan import BASELINES, Entrant, Plan, _budget, retimed
from search.confirmation.progress import Progress
from search.confirmation.work import Paired, Trainer
from search.errors import SearchError
from search.executor import Executor, Outcome
from search.journal import CandidateRow, Journal, UnitRow
from tests.search import fakes

TINY = str(Path(__file__).parent / "tiny.yaml")
ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = Config.from_dict(
    {
        "tasks": [
            {"task": "arithmetic", "steps": 40, "eval_every": 10, "params": [2000, 4000],
             "schedule": "cosine", "options": {"digits": 1, "valid_size": 1400, "test_size": 1400}},
            {"task": "xml", "steps": 20, "eval_every": 20, "params": [3000],
             "grid": {"lr": [0.01, 0.02], "scale": [1.4], "clip": [5.0], "layers": [1, 2]}},
        ],
    }
)  # fmt: skip
OPTIONS = Options(settings=5, seeds=3, tasks=("arithmetic", "xml"))


class Silent:
    """A watch that counts."""

    fresh = failed = 0

    def planned(self, plan: Plan) -> None: ...

    def done(self, unit: UnitRow, *, failed: bool, fresh: bool) -> None:
        self.fresh += fresh
        self.failed += failed

    def waiting(self) -> None: ...


def make(options: Options = OPTIONS, names: tuple[str, ...] = BASELINES) -> Plan:
    stages, notes = retimed(funnel.stages(CONFIG), options)
    entrants = [Entrant(cg.load(name), baseline=True) for name in names]
    return Plan(CONFIG, options, stages, entrants, notes)


# -- what is planned


def test_every_cell_is_trained_on_the_same_terms() -> None:
    plan = make()
    for stage in plan.stages:
        mine = [contest for contest in plan.contests() if contest.stage.name == stage.name]
        assert len(mine) == len(BASELINES)
        tuning = [[dict(unit.payload) for unit in contest.tuning] for contest in mine]
        assert all(payloads == tuning[0] for payloads in tuning)
        drawn = [payload["settings"][0] for payload in tuning[0]]
        assert len({json.dumps(setting) for setting in drawn}) == len(drawn)
        assert {setting["params"] for setting in drawn} == {max(stage.grid.params)}
        setting = drawn[0]
        seeds = [[u.payload["seed"] for u in c.measuring(setting, plan.seeds)] for c in mine]
        assert all(found == plan.seeds for found in seeds)
    tuned = {unit.payload["seed"] for contest in plan.contests() for unit in contest.tuning}
    assert len(tuned) == 1
    assert len({*tuned, *plan.seeds, CONFIG.seed}) == 1 + OPTIONS.seeds + 1


def test_ids_do_not_overlap() -> None:
    plan = make()
    contests = plan.contests()
    setting = contests[0].tuning[0].payload["settings"][0]
    units = [unit for contest in contests for unit in contest.tuning]
    units += [unit for contest in contests for unit in contest.measuring(setting, plan.seeds)]
    assert sorted(unit.id for unit in units) == list(range(len(units)))
    trainings, seconds = plan.estimate()
    assert trainings == len(units) == len(BASELINES) * (5 + 3 + 4 + 3)
    # Settings differ in cost by their layers, and the mean stands for the one that is chosen.
    cheapest, dearest = (f(unit.cost for unit in units) for f in (min, max))
    assert trainings * cheapest < seconds < trainings * dearest


def test_the_terms_are_those_of_the_search() -> None:
    arithmetic, xml = make().stages
    assert arithmetic.grid.params == (4000,)
    assert (arithmetic.budget.steps, arithmetic.budget.eval_every) == (40, 10)
    assert arithmetic.budget.schedule == "cosine"
    notes = make().notes
    assert notes == [
        "arithmetic: of its parameter budgets the largest, 4,000",
        "xml: 5 settings asked for, its grid has 4",
    ]
    longer = make(replace(OPTIONS, steps_scale=2.5)).stages
    assert [stage.budget.steps for stage in longer] == [100, 50]
    assert longer[0].budget.seconds == 2.5 * CONFIG.timeout
    shorter = make(replace(OPTIONS, steps_scale=0.1, tasks=("xml",))).stages
    assert [(s.name, s.budget.steps, s.budget.eval_every) for s in shorter] == [("xml", 2, 2)]
    hurried = replace(xml.budget, target=0.5)  # would stop as soon as it is good enough
    assert _budget(hurried, OPTIONS).target is None


# -- the two phases


def value(payload: Mapping[str, Any]) -> float | None:
    """The metric of a training, drawn from a hash; one in eight diverges."""
    key = cg.parse(payload["cell"]).key()
    luck = fakes.fraction(
        key, payload["stage"], payload["seed"], sorted(payload["settings"][0].items())
    )
    return None if luck < 0.125 or key == FRAGILE else luck


FRAGILE = cg.load("mut2").key()


class Shuffled:
    """An executor whose units finish in any order, several at a time; dies when told to."""

    workers = 3

    def __init__(self, seed: int, die_after: int | None = None) -> None:
        self.rng = fakes.random.Random(seed)
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.trained: dict[int, dict[str, Any]] = {}
        self.left = die_after

    def submit(self, unit: int, payload: dict[str, Any]) -> None:
        assert unit not in self.trained
        self.pending.append((unit, payload))

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if self.left is not None:
            if self.left == 0:
                raise ConnectionError("killed")
            self.left -= 1
        self.rng.shuffle(self.pending)
        count = self.rng.randint(0, min(4, len(self.pending)))
        finished, self.pending = self.pending[:count], self.pending[count:]
        self.trained |= dict(finished)
        return [self._outcome(unit, payload) for unit, payload in finished]

    def _outcome(self, unit: int, payload: dict[str, Any]) -> Outcome:
        if unit == 3:  # a worker that nobody could keep alive
            return Outcome(unit, "crashed", None, "WorkerDied: signal 9", 0.0, "fake", 3)
        found = value(payload)
        record: dict[str, Any] = {"status": "ok" if found else "diverged", "cost": {}}
        record |= {"error": None if found else "loss inf", "metrics": {}}
        if found:
            record["metrics"] = {"accuracy": found}
            record["cost"] = {"parameters": 1}
            if payload["test"]:
                record["test"] = {"accuracy": found / 2}
        return Outcome(unit, "ok", {"records": [record]}, None, 0.0, "fake", 1)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return []

    def drain(self) -> None: ...

    def close(self) -> None: ...


def run(directory: Path, executor: Executor, plan: Plan | None = None) -> Silent:
    plan = plan or make()
    folder = directory / FOLDER
    watch = Silent()
    there = (folder / "journal.sqlite").exists()
    meta = plan.meta() | {"created": "now"}
    with Journal.open(folder) if there else Journal.create(folder, meta) as journal:
        Driver(plan, journal, lambda plan: executor, watch).run()
    return watch


def ledger(directory: Path) -> tuple[Any, ...]:
    with Journal.read(directory / FOLDER) as journal:
        results = [(r.unit, r.status, r.records) for r in journal.results()]
        return journal.candidates(), journal.units(), results


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    run(directory, Shuffled(0))
    return directory


def test_the_setting_is_the_best_on_validation(reference: Path) -> None:
    plan, (_, units, results) = make(), ledger(reference)
    held = {unit.id: unit for unit in units}
    cells = [str(entrant.cell) for entrant in plan.entrants]
    records = {unit: records[0] for unit, status, records in results if status == "ok"}
    for contest in plan.contests():
        scores = [
            records[unit.id]["metrics"].get("accuracy", -1.0) if unit.id in records else -1.0
            for unit in contest.tuning
        ]
        measured_with = [
            held[contest.first + i].payload
            for i in range(OPTIONS.seeds)
            if contest.first + i in held
        ]
        if max(scores) < 0:
            assert plan.entrants[contest.candidate].cell.key() == FRAGILE
            assert not measured_with
        else:
            best = contest.tuning[scores.index(max(scores))].payload["settings"]
            assert [payload["settings"] for payload in measured_with] == [best] * OPTIONS.seeds
            assert [payload["seed"] for payload in measured_with] == plan.seeds
    assert len(cells) == len(BASELINES)


def test_test_data_are_kept_from_the_choice(tmp_path: Path) -> None:
    executor = Shuffled(4)
    run(tmp_path, executor)
    phases = {unit.id: unit.payload["phase"] for unit in ledger(tmp_path)[1]}
    assert sorted(executor.trained) == sorted(phases)
    for unit, payload in executor.trained.items():
        assert payload["test"] == (phases[unit] == "measure")


def test_the_order_in_which_trainings_finish_changes_nothing(
    tmp_path: Path, reference: Path
) -> None:
    for seed in (1, 2):
        run(tmp_path / str(seed), Shuffled(seed))
        candidates, units, results = ledger(tmp_path / str(seed))
        expected = ledger(reference)
        assert candidates == expected[0]
        assert units == expected[1]
        assert results == expected[2]


def test_a_confirmation_that_dies_again_and_again(tmp_path: Path, reference: Path) -> None:
    finished: dict[int, dict[str, Any]] = {}
    for attempt in range(100):
        executor = Shuffled(attempt, die_after=7)
        try:
            run(tmp_path, executor)
        except ConnectionError:
            pass
        else:
            break
        finally:
            assert not finished.keys() & executor.trained.keys(), "an answered unit ran again"
            finished |= executor.trained
            state = measured.read(tmp_path)["state"]
            assert state == ("unfinished" if executor.left == 0 else "finished")
    assert attempt > 3
    assert ledger(tmp_path) == ledger(reference)
    texts = [confirmed.text(measured.read(d)) for d in (tmp_path, reference)]
    assert texts[0].splitlines()[1:] == texts[1].splitlines()[1:]


def test_one_that_is_done_trains_nothing(reference: Path) -> None:
    def none(plan: Plan) -> Executor:
        raise AssertionError("an executor was started")

    watch, plan = Silent(), make()
    before = ledger(reference)
    with Journal.open(reference / FOLDER) as journal:
        Driver(plan, journal, none, watch).run()
        assert [event.kind for event in journal.events()] == ["started", "finished"]
    assert (watch.fresh, ledger(reference)) == (0, before)


def test_killed_before_the_first_row_was_written(tmp_path: Path, reference: Path) -> None:
    Journal.create(tmp_path / FOLDER, make().meta() | {"created": "now"}).close()
    assert measured.read(tmp_path)["trainings"] == {"done": 0, "planned": 7 * (5 + 3 + 4 + 3)}
    run(tmp_path, Shuffled(5))
    assert ledger(tmp_path) == ledger(reference)


def test_failures_are_counted(reference: Path) -> None:
    document = measured.read(reference)
    for task in document["tasks"]:
        (fragile,) = [cell for cell in task["cells"] if cell["key"] == FRAGILE]
        assert fragile["tuning_failed"] == task["settings"]
        assert fragile["values"] == [task["uninformed"]] * OPTIONS.seeds
    failed = sum(status != "ok" or r[0]["status"] != "ok" for _, status, r in ledger(reference)[2])
    counted = [
        cell["tuning_failed"] + (cell["failed"] if cell["key"] != FRAGILE else 0)
        for task in document["tasks"]
        for cell in task["cells"]
    ]
    assert failed == sum(counted)


def test_a_journal_of_another_plan_is_refused(tmp_path: Path, reference: Path) -> None:
    shutil.copytree(reference / FOLDER, tmp_path / FOLDER)
    with sqlite3.connect(tmp_path / FOLDER / "journal.sqlite") as database:
        database.execute("DELETE FROM events WHERE kind = 'finished'")
    database.close()
    with pytest.raises(SearchError, match="another unit 4 than this version plans"):
        run(tmp_path, Shuffled(0), make(replace(OPTIONS, settings=4)))
    with pytest.raises(SearchError, match="another candidate 0"):
        run(tmp_path, Shuffled(0), make(names=("lstm", "gru")))


def test_random_cells_are_those_that_passed_and_their_scores_play_no_part() -> None:
    def candidate(number: int, name: str) -> Any:
        cell = cg.load(name)
        return CandidateRow(number, cell.key(), name, str(cell), "mutation")

    rows = [candidate(0, "gru"), candidate(1, "cifg"), candidate(2, "nig"), candidate(3, "cifg")]
    units = [UnitRow(i, candidate, stage, {}, 1.0, 0.0, 1.0) for i, (candidate, stage) in enumerate(
        [(0, "xml"), (1, "memorisation"), (2, "memorisation"), (2, "xml"), (3, "xml"), (2, "xml")]
    )]  # fmt: skip
    found = _passed(rows, units, ["xml"], [cg.load("gru").key()])
    assert [row.id for row in found] == [2, 3]


# -- what a worker does


def test_all_cells_see_the_same_data_under_one_seed() -> None:
    task = tasks.create("arithmetic", digits=1, valid_size=1400, test_size=1400)
    first, again = (next(Paired(task, 5).train_batches(seed)) for seed in (1, 2))
    other = next(Paired(task, 6).train_batches(1))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert Paired(task, 5).metric == "accuracy"


def test_training_depends_on_the_payload_alone() -> None:
    plan = make(replace(OPTIONS, tasks=("arithmetic",)))
    trainer = Trainer.of(plan.stages, "eager")
    setting = plan.settings(plan.stages[0])[0].to_dict()
    payload = {"cell": str(cg.load("tanh_rnn")), "stage": "arithmetic", "settings": [setting]}

    def train(seed: int, test: bool) -> dict[str, Any]:
        (record,) = trainer({**payload, "seed": seed, "test": test})["records"]
        del record["cost"]["seconds"]
        return dict(record)

    tuned, once, again, other = (
        train(seed, test) for seed, test in ((1, False), (1, True), (1, True), (2, True))
    )
    assert "test" not in tuned
    assert once == again
    assert {**tuned, "test": once["test"]} == once
    assert once["test"]["accuracy"] != other["test"]["accuracy"]
    assert once["curve"] != other["curve"]


def test_the_picture_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    plan = make()
    with Progress("confirm x", Console(stderr=True)) as progress:
        progress.planned(plan)
        unit = plan.contests()[0].tuning[0]
        progress.done(unit, failed=False, fresh=False)
        progress.done(unit, failed=True, fresh=True)
        progress.waiting()
    assert "2/105 trainings  1 failed  1 from the journal  about " in progress.line()
    err = capsys.readouterr().err
    assert "7 cells on arithmetic, xml; 5 settings, then 3 seeds: 105 trainings, planned at" in err
    assert "core-hours" in err
    assert "xml: 5 settings asked for, its grid has 4" in err

"""Every algorithm over the same funnel: exact for its seed, and what is its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import cellgraph as cg
from search import launch
from search.algorithms import Work
from search.algorithms.aging import Aging
from search.algorithms.funnelled import Funnelled
from search.algorithms.nsga2 import Nsga2
from search.algorithms.random_walk import RandomWalk
from search.config import Config
from search.errors import SearchError
from search.executor import InlineExecutor
from search.journal import Journal
from search.work import Evaluator
from tests.search import fakes

ALGORITHMS = ("aging", "nsga2", "random", "jozefowicz")


def config(algorithm: str, **search: Any) -> Config:
    """With rungs, a filter relative to the baseline, and no cell twice."""
    plain = fakes.config(algorithm=algorithm, retry=False, tournament=3, **search).to_dict()
    plain["filter"] |= {"relative": True, "rungs": [{"steps": 5, "bar": 0.3}]}
    plain["tasks"][0]["rungs"] = [{"steps": 5, "keep": 2, "bar": 0.5}]
    return Config.from_dict(plain)


@pytest.fixture(scope="module", params=ALGORITHMS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Funnelled, Path]:
    made = config(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    loop, complete = fakes.run(directory, InlineExecutor(fakes.evaluate), made)
    assert complete
    assert isinstance(loop.algorithm, Funnelled)
    return made, loop.algorithm, directory


def test_order_and_kills_leave_no_trace(
    finished: tuple[Config, Funnelled, Path], tmp_path: Path
) -> None:
    made, _, reference = finished
    deaths = 0
    while True:
        try:
            assert fakes.run(tmp_path, fakes.Shuffled(deaths, die_after=17), made)[1]
            break
        except ConnectionError:
            deaths += 1
    assert deaths > 1
    assert fakes.ledger(tmp_path) == fakes.ledger(reference)


def test_every_draw_can_be_made_again(finished: tuple[Config, Funnelled, Path]) -> None:
    made, algorithm, directory = finished
    again, complete = fakes.run(directory, None, made)
    assert complete
    assert again.algorithm.standing() == algorithm.standing()
    assert again.algorithm.draws() == algorithm.draws()


def test_what_is_drawn_ahead_is_what_would_have_been_drawn(
    finished: tuple[Config, Funnelled, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, _, reference = finished
    prepare, ask = Funnelled.prepare, Funnelled.ask
    used, void = 0, 0

    def counted(self: Funnelled) -> Work | None:
        nonlocal used, void
        step, number = self._ahead.get(self.steps), self.steps
        work = ask(self)
        if step is not None and self.steps > number:
            fresh = step.epoch == self._epoch()
            used, void = used + fresh, void + (not fresh)
        return work

    def prepared(self: Funnelled) -> bool:
        while prepare(self):  # as far as it goes
            pass
        return False

    monkeypatch.setattr(Funnelled, "ask", counted)
    monkeypatch.setattr(Funnelled, "prepare", prepared)
    assert fakes.run(tmp_path, fakes.Shuffled(3), made)[1]
    assert fakes.ledger(tmp_path) == fakes.ledger(reference)
    assert used > 5
    assert (void > 0) == (made.search.algorithm != "random")


def test_no_cell_is_trained_twice(finished: tuple[Config, Funnelled, Path]) -> None:
    with Journal.read(finished[2]) as journal:
        candidates, units = journal.candidates(), journal.units()
    assert len({row.key for row in candidates}) == len(candidates) == 42
    stages = Counter((u.candidate, u.stage) for u in units if u.payload["purpose"] == "candidate")
    assert set(stages.values()) == {1}
    draws = finished[1].draws()
    assert draws["draws"] == 40 + draws["invalid"] + draws["duplicates"] + draws["equal"]
    details = [row.detail for row in candidates if row.origin != "seed"]
    assert sum(d["draws"] for d in details) == draws["draws"]


def test_bars_are_shares_of_what_the_baseline_had_reached(
    finished: tuple[Config, Funnelled, Path],
) -> None:
    _, algorithm, directory = finished
    with Journal.read(directory) as journal:
        units = journal.units()
        records = {row.unit: row.records for row in journal.results()}
    for stage, share, keep in (("memorisation", 0.3, None), ("arithmetic", 0.5, 2)):
        mine = [u for u in units if u.stage == stage]
        base = max(
            record["at_rungs"][0]
            for unit in mine
            if unit.candidate == algorithm.baseline.candidate
            for record in records[unit.id]
        )
        purposes = {u.payload["purpose"] for u in mine}
        assert {"seed", "candidate"} <= purposes
        for unit in mine:
            (rung,) = unit.payload["rungs"]
            if unit.payload["purpose"] == "candidate":
                assert rung["keep"] == keep
                assert 0 < rung["bar"] <= share * base + 1e-12
            else:
                assert rung == {"steps": 5, "keep": None, "bar": None}


def test_a_filter_has_seen_enough_at_its_bar(finished: tuple[Config, Funnelled, Path]) -> None:
    _, algorithm, directory = finished
    with Journal.read(directory) as journal:
        units = journal.units()
    assert algorithm.filter is not None
    base = algorithm.baseline.best(algorithm.filter)
    assert base is not None
    for unit in units:
        target = unit.payload.get("target")
        if (unit.stage, unit.payload["purpose"]) == ("memorisation", "candidate"):
            assert target == pytest.approx(0.5 * base)
            assert target / base >= 0.5
        else:
            assert target is None


def test_training_ends_at_the_target_of_its_unit() -> None:
    stage = launch.plan(config("random")).stages[0]
    settings = [stage.grid[0].to_dict()]
    payload = {"cell": str(cg.load("gru")), "stage": stage.name, "settings": settings}
    function = Evaluator.of([stage], "eager", 0)
    (whole,) = function({**payload, "rungs": [], "screen": False})["records"]
    assert whole["cost"]["steps"] == stage.budget.steps
    target = whole["curve"][0][3]
    (short,) = function({**payload, "rungs": [], "screen": False, "target": target})["records"]
    assert (short["status"], short["curve"]) == ("ok", whole["curve"][:1])


def test_a_rung_makes_a_unit_cheaper() -> None:
    ready = launch.plan(config("jozefowicz"))
    stage, cell = ready.stages[1], ready.seeds[0]
    settings = [stage.grid[0]] * 4
    (rung,) = stage.bars([0.5], halving=True)
    assert stage.cost(cell, settings, [rung]) == pytest.approx(
        stage.cost(cell, settings) * (5 * 4 + 5 * 2) / (10 * 4)
    )


def test_the_best_are_those_of_the_standing(finished: tuple[Config, Funnelled, Path]) -> None:
    algorithm = finished[1]
    best = algorithm.best(3)
    assert [(score, cell.name) for score, cell in best] == algorithm.standing()[:3]


def test_the_oldest_leaves_an_aging_population() -> None:
    algorithm = launch.plan(config("aging", pool=3)).algorithm()
    assert isinstance(algorithm, Aging)
    members = [fakes.architecture(algorithm, name) for name in ("mut1", "mut2", "mut3", "nig")]
    for member in members:
        algorithm._survives(member)
    assert list(algorithm.population) == members[1:]
    assert [member.alive for member in members] == [0, 1, 1, 1]


def test_nsga2_keeps_what_nothing_dominates() -> None:
    algorithm = launch.plan(config("nsga2", pool=3)).algorithm()
    assert isinstance(algorithm, Nsga2)
    for stage in algorithm.tasks:
        algorithm.baseline.note(stage, 0, 1.0)
    # mut1 is smaller and quicker than the GRU, and that than the LSTM: at equal scores it dominates
    # both, and a worse LSTM is dominated by all.
    values = {"lstm": 0.5, "gru": 0.8, "mut1": 0.8, "tanh_rnn": 0.1}
    for name, value in values.items():
        member = fakes.architecture(algorithm, name)
        for stage in algorithm.tasks:
            member.note(stage, 0, value)
        algorithm._survives(member)
    kept = [member.architecture.name for member in algorithm.population]
    assert kept == ["gru", "mut1", "tanh_rnn"]


def test_a_random_search_takes_its_parents_from_the_seeds(tmp_path: Path) -> None:
    loop, _ = fakes.run(tmp_path, InlineExecutor(fakes.evaluate), config("random"))
    assert isinstance(loop.algorithm, RandomWalk)
    with Journal.read(tmp_path) as journal:
        rows = [row for row in journal.candidates() if row.origin != "seed"]
    assert {row.origin for row in rows} == {"walk"}
    assert {parent for row in rows for parent in row.parents} == {0, 1}


def test_an_algorithm_that_nobody_knows() -> None:
    with pytest.raises(SearchError, match="'tabu', expected one of jozefowicz, aging, nsga2"):
        launch.plan(fakes.config(algorithm="tabu"))

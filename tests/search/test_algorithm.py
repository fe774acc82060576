"""The search of Jozefowicz et al. 2015: who is proposed, on which settings, with what result."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import cellgraph as cg
from search import launch
from search.algorithms import Work
from search.algorithms.draws import Draw
from search.algorithms.jozefowicz import Jozefowicz
from search.archive import Architecture
from search.errors import SearchError
from search.executor import InlineExecutor
from search.journal import Journal
from tests.search import fakes

CANDIDATES = 120


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Jozefowicz, Path]:
    directory = tmp_path_factory.mktemp("algorithm")
    made = fakes.config(candidates=CANDIDATES, reevaluate=0.3)
    loop, _ = fakes.run(directory, InlineExecutor(fakes.evaluate), made)
    assert isinstance(loop.algorithm, Jozefowicz)
    return loop.algorithm, directory


def _units(directory: Path) -> list[tuple[str, int, str, dict[str, Any], list[Any]]]:
    """(key, candidate, stage, payload, records) of every unit, in order."""
    with Journal.read(directory) as journal:
        key = {c.id: c.key for c in journal.candidates()}
        records = {r.unit: list(r.records) for r in journal.results()}
        return [
            (key[u.candidate], u.candidate, u.stage, dict(u.payload), records[u.id])
            for u in journal.units()
        ]


def test_every_proposal_is_tried(finished: tuple[Jozefowicz, Path]) -> None:
    algorithm, directory = finished
    with Journal.read(directory) as journal:
        origins = [c.origin for c in journal.candidates()]
    assert origins.count("seed") == 2
    assert origins.count("mutation") == CANDIDATES
    assert algorithm.progress().done == algorithm.progress().total == CANDIDATES


def test_no_setting_is_tried_twice_on_a_cell(finished: tuple[Jozefowicz, Path]) -> None:
    tried: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for key, _, stage, payload, _ in _units(finished[1]):
        tried[key, stage] += [tuple(sorted(s.items())) for s in payload["settings"]]
    assert all(len(settings) == len(set(settings)) for settings in tried.values())


def test_the_funnel_lets_through_what_passes_and_nothing_else(
    finished: tuple[Jozefowicz, Path],
) -> None:
    algorithm, directory = finished
    stages: dict[int, list[str]] = defaultdict(list)
    best: dict[tuple[str, str], float] = defaultdict(float)
    passed_filter: set[str] = set()
    for key, candidate, stage, payload, records in _units(directory):
        if payload["purpose"] == "candidate":
            stages[candidate].append(stage)
            assert len(payload["settings"]) == (1 if stage == "memorisation" else 3)
            assert (stage == "memorisation") or key in passed_filter
        good = [r["metrics"]["accuracy"] for r in records if r["status"] == "ok"]
        best[key, stage] = max([best[key, stage], *good])
        if stage == "memorisation" and best[key, stage] >= 0.5:
            passed_filter.add(key)
    gru = algorithm.baseline.key
    order = ["memorisation", "arithmetic", "xml"]
    for candidate, seen in stages.items():
        assert seen in (order[:1], order[:2], order, order[1:2], order[1:]), (candidate, seen)
        key = algorithm.first[candidate].key if candidate in algorithm.first else None
        if key and seen[-1] == "arithmetic":  # rejected there; the baseline can only have risen
            assert best[key, "arithmetic"] <= 0.9 * best[gru, "arithmetic"]
    counts = {name: (tried, passed) for name, tried, passed in algorithm.funnel()}
    assert counts["memorisation"][1] <= counts["memorisation"][0]
    assert 0 < counts["xml"][0] <= counts["arithmetic"][1] <= counts["arithmetic"][0]


def test_the_pool_holds_the_best_by_the_minimum_ratio(finished: tuple[Jozefowicz, Path]) -> None:
    pool = finished[0].pool
    assert len(pool.members) == 6
    gru = pool.scores.baseline
    for member in pool.members:
        stages = pool.scores.stages
        ratios = [member.best(s) / gru.best(s) for s in stages]  # type: ignore[operator]
        assert pool.scores.score(member) == pytest.approx(min(ratios))
    standing = finished[0].standing()
    assert standing == sorted(standing, key=lambda entry: -entry[0])


def test_members_are_re_evaluated_on_every_task(finished: tuple[Jozefowicz, Path]) -> None:
    again = [stage for _, _, stage, payload, _ in _units(finished[1])
             if payload["purpose"] == "re-evaluation"]  # fmt: skip
    assert again.count("arithmetic") > 5
    assert again.count("xml") > 5
    assert "memorisation" not in again


def test_seeds_are_trained_on_the_same_settings_of_every_task(
    finished: tuple[Jozefowicz, Path],
) -> None:
    settings: dict[int, list[Any]] = defaultdict(list)
    for _, candidate, stage, payload, _ in _units(finished[1]):
        if payload["purpose"] == "seed":
            settings[candidate] += [(stage, s) for s in payload["settings"]]
    assert settings[0] == settings[1]
    assert len(settings[0]) == 2 * 6


def test_all_settings_of_the_grid_for_the_seeds() -> None:
    ready = launch.plan(fakes.config(seed_settings="all", settings=5))
    algorithm = ready.algorithm()
    asked = []
    while (work := algorithm.ask()) is not None:
        asked.append(work)
    for stage in ready.stages[1:]:
        for seed in ready.seeds:
            mine = [w for w in asked if w.stage is stage and w.proposal.cell == seed]
            indices = [i for w in mine for i in w.indices]
            assert sorted(indices) == list(range(len(stage.grid)))
            assert {len(w.indices) for w in mine[:-1]} == {5}


class TestInheritance:
    """Section 3.3: where the settings of a child come from."""

    def _algorithm(self, **search: Any) -> Jozefowicz:
        made = launch.plan(fakes.config(**search)).algorithm()
        assert isinstance(made, Jozefowicz)
        return made

    def test_a_well_known_parent_hands_down_its_best(self) -> None:
        algorithm = self._algorithm(experienced_after=20, best_settings=4, settings=1)
        stage, parent = algorithm.tasks[0], algorithm.seeds[0]
        for i in range(30):
            parent.note(stage, i, fakes.fraction(i))
        best = set(parent.best_settings(stage, 4))
        rng = random.Random(0)
        drawn = [algorithm._inherit(stage, {}, parent, rng)[0] for _ in range(500)]
        # 80 % from the 4 best, and 4 of 36 of the fresh ones fall on them by chance: 82 %.
        assert sum(i in best for i in drawn) / 500 == pytest.approx(0.82, abs=0.05)

    def test_otherwise_a_third_each_fresh_from_the_seeds_and_from_the_parent(self) -> None:
        algorithm = self._algorithm(best_settings=2, settings=1)
        stage, (lstm, gru) = algorithm.tasks[0], algorithm.seeds
        for cell, values in ((lstm, {0: 0.9, 1: 0.1, 2: None}), (gru, {3: 0.8, 4: 0.2})):
            for index, value in values.items():
                cell.note(stage, index, value)
        parent = fakes.architecture(algorithm, "mut1")
        parent.note(stage, 10, 0.5)
        parent.note(stage, 11, None)
        rng = random.Random(0)
        drawn = [algorithm._inherit(stage, {}, parent, rng)[0] for _ in range(900)]
        share = [sum(i in group for i in drawn) / 900 for group in ({0, 3}, {10, 11})]
        # A third each, and 2 of 36 of the fresh third.
        assert share == pytest.approx([1 / 3 + 1 / 54] * 2, abs=0.05)

    def test_nothing_is_drawn_twice_and_the_grid_can_run_out(self) -> None:
        algorithm = self._algorithm(settings=5)
        stage, parent = algorithm.tasks[1], algorithm.seeds[0]
        size = len(stage.grid)
        tried = dict.fromkeys(range(size - 2), 0.5)
        drawn = algorithm._inherit(stage, tried, parent, random.Random(1))
        assert sorted(drawn) == [size - 2, size - 1]


def test_a_seed_that_is_re_evaluated_holds_nobody_up() -> None:
    algorithm = launch.plan(fakes.config()).algorithm()
    assert isinstance(algorithm, Jozefowicz)
    while algorithm.progress().phase == "seeds":
        work = algorithm.ask()
        assert work is not None
        algorithm.tell(work, fakes.evaluate(fakes_payload(work))["records"])
    algorithm.seeds[0].busy = True
    assert algorithm.ask() is not None
    assert algorithm.progress().phase == "candidates"


def test_of_equals_the_older_stays_and_ranks_first() -> None:
    algorithm = launch.plan(fakes.config(pool=3)).algorithm()
    assert isinstance(algorithm, Jozefowicz)
    pool, stages = algorithm.pool, algorithm.tasks
    made = [fakes.architecture(algorithm, name) for name in ("mut1", "mut2", "mut3", "nig")]
    values = (0.5, 0.6, 0.6, 0.6)
    for architecture, value in [(algorithm.baseline, 1.0), *zip(made, values, strict=True)]:
        for stage in stages:
            architecture.note(stage, 0, value)
    for architecture in made:
        pool.offer(architecture)
    assert [a.name for a in pool.ranked()] == ["mut2", "mut3", "nig"]
    assert [a.alive for a in made] == [0, 1, 1, 1]


def test_what_cannot_enter_the_pool_is_tried_no_further(tmp_path: Path) -> None:
    """Of every cell that goes on, all ratios known until then beat the worst of a full pool."""
    for abandon in (False, True):
        made = fakes.config(pool=4, reevaluate=0.0, abandon=abandon)
        algorithm = launch.plan(made).algorithm()
        assert isinstance(algorithm, Jozefowicz)
        hopeless = 0
        while (work := algorithm.ask()) is not None:
            cell = work.proposal.architecture
            if work.purpose == "candidate" and not work.stage.is_filter:
                earlier = algorithm.tasks[: algorithm.tasks.index(work.stage)]
                ratios = [algorithm.scores.ratio(cell, stage) for stage in earlier]
                scores = sorted(map(algorithm.scores.score, algorithm.pool.members))
                hopeless += len(scores) == 4 and min(ratios, default=9.0) <= scores[0]
            algorithm.tell(work, fakes.evaluate(fakes_payload(work))["records"])
        assert (hopeless == 0) is abandon


def test_the_worst_of_the_pool_follows_new_results() -> None:
    algorithm = launch.plan(fakes.config(pool=2)).algorithm()
    assert isinstance(algorithm, Jozefowicz)
    pool, stages = algorithm.pool, algorithm.tasks
    first, second = (fakes.architecture(algorithm, name) for name in ("mut1", "mut2"))

    def learn(architecture: Architecture, index: int, value: float) -> None:
        for stage in stages:
            architecture.note(stage, index, value)
            pool.told(architecture)

    for architecture, value in ((algorithm.baseline, 1.0), (first, 0.5), (second, 0.6)):
        learn(architecture, 0, value)
        if architecture is not algorithm.baseline:
            assert pool.admits(0.0)  # there is room
            pool.offer(architecture)
    assert (pool.worst(), pool.admits(0.5), pool.admits(0.51)) == (0.5, False, True)
    learn(first, 1, 0.8)
    assert pool.worst() == 0.6
    learn(algorithm.baseline, 1, 1.2)
    assert pool.worst() == 0.5


@pytest.mark.parametrize(
    ("algorithm", "abandons"),
    [("jozefowicz", True), ("random", True), ("aging", False), ("nsga2", False)],
)
def test_who_keeps_a_population_abandons_nobody(algorithm: str, abandons: bool) -> None:
    stages = launch.plan(fakes.config(algorithm=algorithm, abandon=True)).stages
    assert [stage.abandons for stage in stages] == [False, abandons, False]


def test_a_baseline_that_learns_nothing_is_an_error(tmp_path: Path) -> None:
    def nothing(payload: dict[str, Any]) -> dict[str, Any]:
        return {"records": [{"status": "diverged", "metrics": {}} for _ in payload["settings"]]}

    with pytest.raises(SearchError, match="baseline gru has no usable result on arithmetic"):
        fakes.run(tmp_path, InlineExecutor(nothing))


def after_one_candidate(**search: Any) -> tuple[Jozefowicz, Work]:
    """A search whose first candidate has left the funnel, and the last unit of that."""
    algorithm = launch.plan(fakes.config(**search)).algorithm()
    assert isinstance(algorithm, Jozefowicz)
    while (work := algorithm.ask()) is not None:
        algorithm.tell(work, fakes.evaluate(fakes_payload(work))["records"])
        if work.purpose == "candidate":
            break
    assert work is not None
    algorithm.queue.clear()
    architecture = work.proposal.architecture
    architecture.busy, architecture.passed_filter, architecture.alive = False, False, 0
    return algorithm, work


def test_a_cell_that_fails_the_filter_may_come_back_with_another_setting() -> None:
    algorithm, work = after_one_candidate()
    architecture, seed = work.proposal.architecture, algorithm.seeds[0]
    before = set(architecture.on(work.stage))
    assert algorithm._admit(Draw.of([seed], "mutation", architecture.cell), Counter())
    again = algorithm.queue.popleft()
    assert again.stage.is_filter
    assert not before & set(again.indices)
    assert again.proposal.id != work.proposal.id
    assert again.proposal.architecture is architecture
    architecture.busy = False
    architecture.passed_filter = True
    assert algorithm._admit(Draw.of([seed], "mutation", architecture.cell), Counter())
    assert algorithm.queue.popleft().stage is algorithm.tasks[0]


def test_no_cell_is_evaluated_twice_where_that_is_asked() -> None:
    algorithm, work = after_one_candidate(retry=False)
    architecture, seed = work.proposal.architecture, algorithm.seeds[0]
    wasted: Counter[str] = Counter()
    assert not algorithm._admit(Draw.of([seed], "mutation", architecture.cell), wasted)
    assert wasted == {"duplicates": 1}
    # The same values in another form, of which no rule knows.
    first = cg.parse("cell a(x, h)\n h' = tanh(W @ x + U @ h) * (b + c)")
    second = cg.parse("cell b(x, h)\n v = tanh(W @ x + U @ h)\n h' = v * b + v * c")
    assert first.key() != second.key()
    assert algorithm._admit(Draw.of([seed], "mutation", first), wasted)
    assert not algorithm._admit(Draw.of([seed], "mutation", second), wasted)
    assert wasted == {"duplicates": 1, "equal": 1}
    assert algorithm.draws()["draws"] == 1 + 2


def fakes_payload(work: Any) -> dict[str, Any]:
    return {
        "cell": str(work.proposal.cell),
        "stage": work.stage.name,
        "settings": [s.to_dict() for s in work.settings],
        "rungs": [vars(rung) for rung in work.rungs],
    }

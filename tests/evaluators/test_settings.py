"""Settings, grids, budgets and learning-rate schedules."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from evaluators import Budget, DataError, Grid, Rung, Settings
from evaluators.schedule import Schedule
from evaluators.settings import JOZEFOWICZ, MODERN

BASE = {"scale": 1.0, "lr": 0.5, "clip": 5.0, "layers": 2, "params": 25_000}
SMALL = Grid(
    optimizer=("sgd", "adam"),
    scale=(1.0,),
    lr=(0.1, 0.2, 0.5),
    clip=(1.0, 5.0),
    layers=(1, 2),
    params=(500,),
)


def test_settings_survive_json() -> None:
    settings = Settings(**BASE, optimizer="adam", dropout=0.3)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_id_is_pinned_because_seeds_are_derived_from_it() -> None:
    assert Settings(**BASE).id == "sgd,lr=0.5,scale=1,clip=5,layers=2,params=25000"
    assert Settings(**BASE | {"dropout": 0.25}).id.endswith(",dropout=0.25")
    assert (
        Settings(**BASE | {"scale": 1, "clip": 5}).id == Settings(**BASE).id
    )  # YAML writes 1 and 1.0


def test_ids_of_the_grids_are_distinct() -> None:
    for grid in (JOZEFOWICZ, MODERN, SMALL):
        assert len({settings.id for settings in grid}) == len(grid)
    close = (0.1, math.nextafter(0.1, 1))
    assert len({Settings(**BASE | {"lr": lr}).id for lr in close}) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"scale": -1.0}, "scale"),
        ({"clip": float("inf")}, "clip"),
        ({"layers": 0}, "layers"),
        ({"layers": 1.5}, "layers"),
        ({"params": True}, "params"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"optimizer": "rmsprop"}, "optimizer"),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=named) as caught:
        Settings.from_dict(BASE | change)
    assert "\n" not in str(caught.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(DataError, match="without scale, params"):
        Settings.from_dict({"lr": 1.0, "clip": 1.0, "layers": 1})


def test_the_papers_grid() -> None:
    assert len(JOZEFOWICZ) == 840
    assert len(replace(JOZEFOWICZ, params=(250_000, 1_000_000))) == 1680
    assert {settings.optimizer for settings in JOZEFOWICZ} == {"sgd"}


@pytest.mark.parametrize("grid", [JOZEFOWICZ, MODERN, SMALL])
def test_indices_are_settings(grid: Grid) -> None:
    assert [grid.index(grid[index]) for index in range(len(grid))] == list(range(len(grid)))
    for outside in (-1, len(grid)):
        with pytest.raises(IndexError):
            grid[outside]


def test_the_last_list_turns_fastest() -> None:
    grid = replace(SMALL, params=(500, 700))
    assert [grid[i].params for i in range(4)] == [500, 700, 500, 700]
    assert [grid[i].layers for i in range(4)] == [1, 1, 2, 2]


def test_settings_off_the_grid() -> None:
    with pytest.raises(DataError, match=r"lr=0\.3"):
        SMALL.index(Settings(**BASE | {"params": 500, "scale": 1.0, "lr": 0.3}))


def test_grids_from_lists_and_whole_numbers() -> None:
    grid = Grid(
        optimizer=["adam"], scale=[1], lr=[0.01], clip=[1], layers=[1], dropout=[0], params=[500]
    )
    assert grid[0] == Settings(optimizer="adam", scale=1.0, lr=0.01, clip=1.0, layers=1, params=500)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": ()},
        {"lr": 0.1},
        {"lr": (0.1, 0.1)},
        {"layers": (1, 0)},
        {"optimizer": "sgd"},
        {"params": ([1],)},
    ],
)
def test_bad_grids(change: dict[str, object]) -> None:
    axes = {
        "optimizer": ("sgd",),
        "scale": (1.0,),
        "lr": (0.1,),
        "clip": (1.0,),
        "layers": (1,),
        "params": (500,),
    }
    with pytest.raises(DataError, match=next(iter(change))):
        Grid(**axes | change)


def test_sampling_never_repeats_and_runs_dry() -> None:
    rng, seen = random.Random(3), []
    while drawn := SMALL.sample(rng, 5, seen):
        seen += drawn
    assert sorted(seen) == list(range(len(SMALL)))
    assert SMALL.sample(rng, 5, seen) == []


def test_samples_depend_on_what_is_excluded_and_not_on_its_order() -> None:
    draws = [
        JOZEFOWICZ.sample(random.Random(0), 4, exclude)
        for exclude in ([7, 400, 3], {3, 400, 7}, (400, 7, 3, 3))
    ]
    assert draws[0] == draws[1] == draws[2]
    assert len(set(draws[0])) == 4


def test_samples_reach_the_whole_grid_evenly() -> None:
    rng = random.Random(1)
    counts = [0] * len(SMALL)
    for _ in range(2400):
        counts[SMALL.sample(rng, 1, [0])[0]] += 1
    assert counts[0] == 0
    assert min(counts[1:]) > 60  # 104 expected


def test_budgets() -> None:
    assert Budget.of(1000) == Budget(steps=1000, eval_every=100)
    assert Budget.of(3) == Budget(steps=3, eval_every=1)
    budget = Budget(steps=10, eval_every=5, schedule="cosine", target=0.95, seconds=60)
    assert Budget.of(budget) is budget
    assert Budget.of(json.loads(json.dumps(budget.to_dict()))) == budget


def test_rungs_survive_json() -> None:
    budget = Budget(steps=10, eval_every=2, rungs=(Rung(2), Rung(4, keep=3), Rung(8, 1, bar=1)))
    written = budget.to_dict()
    assert json.loads(json.dumps(written)) == written
    assert Budget.of(written) == budget
    assert budget.rungs[2].bar == 1.0
    assert isinstance(budget.rungs[2].bar, float)
    assert Budget.of(written | {"rungs": [{"steps": 6}]}).rungs == (Rung(6),)


def test_budgets_from_before_there_were_rungs() -> None:
    old = {"steps": 10, "eval_every": 5, "schedule": "cosine", "target": None, "seconds": 60.0}
    assert Budget.of(old) == Budget(steps=10, eval_every=5, schedule="cosine", seconds=60)
    assert Budget.of(old).rungs == ()


@pytest.mark.parametrize(
    ("rungs", "error"),
    [
        ([{"steps": 3}], "rung 1 steps is 3; expected a multiple of eval_every, 2, below .* 10"),
        ([{"steps": 10}], "rung 1 steps is 10; expected .* below the budget's 10 steps"),
        ([{"steps": 4}, {"steps": 4}], "rung 2 steps is 4; expected more than rung 1 has, 4"),
        ([{"steps": 4}, {"steps": 2}], "rung 2 steps is 2; expected more than rung 1 has, 4"),
        (
            [{"steps": 2, "keep": 2}, {"steps": 4}, {"steps": 6, "keep": 3}],
            "rung 3 keep is 3; expected at most the 2 of rung 1",
        ),
        ([{"steps": 2, "keep": 0}], "rung keep is 0; expected a whole number from 1"),
        ([{"steps": 2, "keep": True}], "rung keep is True"),
        ([{"steps": 2.0}], "rung steps is 2.0"),
        ([{"steps": 0}], "rung steps is 0"),
        ([{"steps": 2, "bar": "high"}], "rung bar is 'high'; expected a finite number"),
        ([{"steps": 2, "bar": math.nan}], "rung bar is nan"),
        ([{"keep": 2}], "rung without steps"),
        ([{"steps": 2, "keeps": 2}], "keeps"),
        ([2], "rung 1 is 2; expected steps, keep and bar"),
        ({"steps": 2}, "budget rungs is .*; expected a list of rungs"),
        ("2", "budget rungs is '2'"),
        (None, "budget rungs is None"),
    ],
)
def test_bad_rungs_are_named(rungs: object, error: str) -> None:
    with pytest.raises(DataError, match=error) as caught:
        Budget.of({"steps": 10, "eval_every": 2, "rungs": rungs})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (0, "steps"),
        (-5, "steps"),
        (2.5, "steps"),
        (True, "steps"),
        ("many", "steps"),
        ({"steps": 5}, "eval_every"),
        ({"steps": 5, "eval_every": 0}, "eval_every"),
        ({"steps": 5, "eval_every": 1, "schedule": "linear"}, "schedule"),
        ({"steps": 5, "eval_every": 1, "target": "good"}, "target"),
        ({"steps": 5, "eval_every": 1, "seconds": 0}, "seconds"),
        ({"steps": 5, "eval_every": 1, "epochs": 2}, "epochs"),
    ],
)
def test_bad_budgets_are_named(value: object, named: str) -> None:
    with pytest.raises(DataError, match=named):
        Budget.of(value)  # type: ignore[arg-type]


def _rates(schedule: Schedule, metrics: list[float]) -> list[float]:
    """The rate in force after each evaluation, until the schedule ends the training."""
    rates = []
    for metric in metrics:
        going_on = schedule.observe(metric)
        rates.append(schedule.rate(0))
        if not going_on:
            break
    return rates


def _schedule(name: str, lr: float = 1.0, maximise: bool = True, steps: int = 100) -> Schedule:
    return Schedule(
        Budget.from_dict({"steps": steps, "eval_every": 1, "schedule": name}), lr, maximise
    )


def test_halving_waits_three_then_halves_four_times() -> None:
    metrics = [0.1, 0.2, 0.15, 0.2, 0.3, 0.3, 0.29, 0.3] + [0.9] * 20
    #          gain gain  1     2   gain  1     2    3: cut; a gain does not stop the cuts
    assert _rates(_schedule("halving"), metrics) == [
        1,
        1,
        1,
        1,
        1,
        1,
        1,
        1 / 2,
        1 / 4,
        1 / 8,
        1 / 16,
        1 / 16,
    ]


def test_halving_of_a_loss() -> None:
    falling = [1.0 - 0.01 * i for i in range(50)]
    assert _rates(_schedule("halving", maximise=False), falling) == [1] * 50
    assert len(_rates(_schedule("halving", maximise=False), falling[::-1])) == 1 + 3 + 4


def test_music_cuts_after_ten_and_counts_anew() -> None:
    rates = _rates(_schedule("music", maximise=False), [3.0] * 21 + [2.0] + [3.0] * 10)
    assert rates[:10] == [1] * 10
    assert rates[10:20] == [0.8] * 10
    assert rates[20:31] == pytest.approx(
        [0.64] * 11
    )  # the gain at the 22nd evaluation starts the count again
    assert rates[31] == pytest.approx(0.512)


def test_music_ends_below_a_thousandth() -> None:
    rates = _rates(_schedule("music", lr=0.0015, maximise=False), [3.0] * 100)
    assert rates[-2:] == pytest.approx([0.0012, 0.00096])
    assert len(rates) == 1 + 2 * 10


def test_cosine_and_constant() -> None:
    cosine = _schedule("cosine", lr=0.2)
    assert [cosine.rate(step) for step in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0.0])
    assert _rates(_schedule("constant"), [0.5] * 50) == [1] * 50

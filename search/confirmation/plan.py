"""What a confirmation trains: which cells, on which tasks, with which settings and seeds.

All of it is decided before the first training and written down; only the setting that a cell is
measured with is chosen on the way, by its validation metric.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from evaluators import Budget, Settings
from evaluators.metrics import uniform_loss
from evaluators.task import Task
from evaluators.train import derive_seed
from search.config import Config
from search.funnel import Stage
from search.journal import CandidateRow, UnitRow

BASELINES = ("tanh_rnn", "lstm", "lstm_b", "gru", "mut1", "mut2", "mut3")
REFERENCES = ("gru", "lstm")  #: what every cell is tested against


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for. They belong to a confirmation from its first moment, the level of its
    tests among them: a level that is chosen when the results are known is none."""

    # How many of the best cells that the search has found.
    top: int = 10
    # Hyperparameter settings per cell and task, the same ones for every cell.
    settings: int = 8
    # Fresh seeds of the chosen setting.
    seeds: int = 5
    # Names; none stated, all tasks of the run.
    tasks: tuple[str, ...] | None = None
    # Training steps as a multiple of those in the search.
    steps_scale: float = 1.0
    # Random cells that passed the filter, whatever became of them.
    random: int = 5
    # Level of the tests; intervals are of level 1 - alpha.
    alpha: float = 0.05


@dataclass(frozen=True)
class Entrant:
    """A cell that takes part. `rank`: its place among the cells that the search found, from 1."""

    cell: CellGraph
    baseline: bool = False
    rank: int | None = None
    random: bool = False

    @property
    def origin(self) -> str:
        return "baseline" if self.baseline else "found" if self.rank else "random"

    def to_dict(self) -> dict[str, Any]:
        roles = {"baseline": self.baseline, "rank": self.rank, "random": self.random}
        return {"cell": str(self.cell), **roles}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entrant:
        return cls(cg.parse(data["cell"]), data["baseline"], data["rank"], data["random"])


@dataclass(frozen=True)
class Contest:
    """One cell on one task: the units that choose its setting, then those that measure it."""

    candidate: int
    cell: CellGraph
    stage: Stage
    tuning: tuple[UnitRow, ...]
    first: int  # id of the first unit that measures

    def measuring(self, setting: Mapping[str, Any], seeds: Sequence[int]) -> list[UnitRow]:
        """One unit per seed, all with this setting."""
        return [
            _unit(self.first + i, self.candidate, self.cell, self.stage, "measure", setting, seed)
            for i, seed in enumerate(seeds)
        ]


@dataclass(frozen=True)
class Plan:
    """A confirmation with everything it names loaded and checked. `notes`: where it falls short of
    what was asked for."""

    config: Config  # of the run
    options: Options
    stages: list[Stage]  # with the budgets and grids of the confirmation
    entrants: list[Entrant]
    notes: list[str]

    @property
    def seeds(self) -> list[int]:
        """Of the measurements; none of them has been used in the search or in tuning."""
        count = self.options.seeds
        return [derive_seed(self.config.seed, "confirm", "measure", i) for i in range(count)]

    def settings(self, stage: Stage) -> list[Settings]:
        """The settings that every cell may choose from."""
        rng = random.Random(f"{self.config.seed}/confirm/{stage.name}")
        return [stage.grid[index] for index in stage.grid.sample(rng, self.options.settings)]

    def candidates(self) -> list[CandidateRow]:
        return [
            CandidateRow(
                number,
                entrant.cell.key(),
                entrant.cell.name,
                str(entrant.cell),
                entrant.origin,
                detail={"rank": entrant.rank, "random": entrant.random},
            )
            for number, entrant in enumerate(self.entrants)
        ]

    def contests(self) -> list[Contest]:
        """Every cell on every task. Ids follow from the plan alone, not from who finishes when."""
        seed = derive_seed(self.config.seed, "confirm", "tune")
        settings = {
            stage.name: [s.to_dict() for s in self.settings(stage)] for stage in self.stages
        }
        made: list[Contest] = []
        following = 0
        for number, entrant in enumerate(self.entrants):
            for stage in self.stages:
                tuning = tuple(
                    _unit(following + i, number, entrant.cell, stage, "tune", setting, seed)
                    for i, setting in enumerate(settings[stage.name])
                )
                following += len(tuning)
                made.append(Contest(number, entrant.cell, stage, tuning, 0))
        for index, contest in enumerate(made):
            made[index] = replace(contest, first=following)
            following += self.options.seeds
        return made

    def estimate(self) -> tuple[int, float]:
        """How many trainings there will be, and their planned seconds of one core."""
        contests = self.contests()
        trainings, seconds = 0, 0.0
        for contest in contests:
            costs = [unit.cost for unit in contest.tuning]
            trainings += len(costs) + self.options.seeds
            seconds += sum(costs) + self.options.seeds * fmean(costs)
        return trainings, seconds

    def meta(self) -> dict[str, str]:
        """What the journal begins with; `choice.restored` and `reports.measured` read it."""
        about = {
            "options": asdict(self.options),
            "notes": self.notes,
            "references": {name: cg.load(name).key() for name in REFERENCES},
            "tasks": [
                {
                    "name": stage.name,
                    "metric": stage.task.metric,
                    "maximise": stage.task.maximise,
                    "steps": stage.budget.steps,
                    "parameters": stage.grid.params[0],
                    "settings": len(self.settings(stage)),
                    "uninformed": uninformed(stage.task),
                }
                for stage in self.stages
            ],
        }
        return {
            "confirmation": json.dumps(about),
            "config": json.dumps(self.config.to_dict(), sort_keys=True),
            "entrants": json.dumps([entrant.to_dict() for entrant in self.entrants]),
            "data": json.dumps({stage.name: stage.task.describe() for stage in self.stages}),
        }


def uninformed(task: Task) -> float:
    """The metric of the predictor that knows nothing, each outcome as likely as any other: what a
    training that failed counts for. Leaving failures out would reward cells for being fragile."""
    return 1 / task.output_width if task.metric == "accuracy" else uniform_loss(task)


def retimed(stages: Sequence[Stage], options: Options) -> tuple[list[Stage], list[str]]:
    """The stages of the chosen tasks on the terms of the confirmation, and what to say about
    those."""
    made, notes = [], []
    for stage in stages:
        if stage.name not in (options.tasks or ()):
            continue
        sizes = stage.grid.params
        # One budget for all: a cell must not win because its best setting happened to be a larger
        # model.
        grid = replace(stage.grid, params=(max(sizes),))
        if len(sizes) > 1:
            notes.append(f"{stage.name}: of its parameter budgets the largest, {max(sizes):,}")
        if len(grid) < options.settings:
            notes.append(
                f"{stage.name}: {options.settings} settings asked for, its grid has {len(grid)}"
            )
        made.append(replace(stage, grid=grid, budget=_budget(stage.budget, options), rungs=()))
    return made, notes


def _budget(budget: Budget, options: Options) -> Budget:
    """As in the search, for longer or shorter; nobody is stopped on the way."""
    steps = max(1, round(budget.steps * options.steps_scale))
    seconds = budget.seconds
    return Budget(
        steps=steps,
        eval_every=min(budget.eval_every, steps),
        schedule=budget.schedule,
        seconds=None if seconds is None else seconds * max(1.0, options.steps_scale),
    )


def _unit(
    number: int,
    candidate: int,
    cell: CellGraph,
    stage: Stage,
    phase: str,
    setting: Mapping[str, Any],
    seed: int,
) -> UnitRow:
    """One training. It has a planned cost and no virtual time: nothing depends on the order."""
    cost = stage.cost(cell, [Settings.from_dict(setting)])
    payload = {"phase": phase, "settings": [dict(setting)], "seed": seed}
    return UnitRow(number, candidate, stage.name, payload, cost, 0.0, cost)

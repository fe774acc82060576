"""What a worker does with a unit of work. Runs in Ray actors and, without Ray, in the driver
itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cellgraph as cg
from evaluators import Budget, data, evaluate, tasks
from evaluators.screen import Rejection, screen
from evaluators.task import Task
from evaluators.train import prepare_process
from search.funnel import Stage


@dataclass(frozen=True)
class StageSpec:
    """A stage as it travels to a worker: names and numbers only."""

    task: str
    options: Mapping[str, Any]
    budget: Mapping[str, Any]


@dataclass
class Evaluator:
    """The function that executors call: payload in, records out. Pure, but for the tasks that it
    keeps."""

    stages: Mapping[str, StageSpec]
    backend: str
    seed: int
    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, stages: Sequence[Stage], backend: str, seed: int) -> Evaluator:
        specs = {
            s.name: StageSpec(s.task.name, dict(s.options), s.budget.to_dict()) for s in stages
        }
        return cls(specs, backend, seed)

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """`payload`: cell (notation), stage, settings (mappings), rungs (mappings), screen, and
        target where it is not the stage's. Returns {"records": one per setting}."""
        spec = self.stages[payload["stage"]]
        cell = cg.parse(payload["cell"])
        if payload["screen"] and (rejection := screen(cell)) is not None:
            return {"records": [_rejected(s, rejection) for s in payload["settings"]]}
        if payload["stage"] not in self._tasks:
            self._tasks[payload["stage"]] = tasks.create(spec.task, **spec.options)
        own = {name: payload[name] for name in ("rungs", "target") if name in payload}
        records = evaluate(
            cell,
            self._tasks[payload["stage"]],
            payload["settings"],
            Budget.of({**spec.budget, **own}),
            self.seed,
            backend=self.backend,
        )
        return {"records": records}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tasks": {}}  # tasks hold data, which travels once, on its own


def _rejected(setting: Mapping[str, Any], rejection: Rejection) -> dict[str, Any]:
    """The record of a setting that nobody trained."""
    return {
        "setting": dict(setting),
        "status": "rejected",
        "stage": "screen",
        "error": f"{rejection.check}: {rejection.reason}",
        "curve": [],
        "metrics": {},
        "final": {},
        "cost": {"steps": 0, "seconds": 0.0},
    }


def data_sets(stages: Sequence[Stage]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """The arrays that the tasks of these stages read, by name."""
    names = dict.fromkeys(s.task.data_set for s in stages if s.task.data_set is not None)
    return {name: dict(data.load(name)) for name in names}


def prepare(sets: Mapping[str, Mapping[str, np.ndarray[Any, Any]]]) -> None:
    """Make a process ready to evaluate: one thread, and the data in place; nothing is read from
    disk."""
    prepare_process()
    for name, arrays in sets.items():
        data.install(name, dict(arrays))

"""The best training of a cell in a run, done once more so that its model can be taken home.

A run keeps results and no weights: a training is a pure function of cell, task, setting, budget and
seed, all of which the journal has, so that on the same kind of CPU the same model comes out, with
the same metric to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from evaluators import Settings, tasks
from evaluators.model import Model
from evaluators.saved import About, dump
from evaluators.train import prepare_process, trained
from search import funnel
from search.config import Config
from search.errors import SearchError
from search.funnel import Stage
from search.journal import Journal

#: Called with steps done and the steps of the whole training.
Say = Callable[[int, int], None]


@dataclass(frozen=True)
class Best:
    """The best training of a cell on one task of a run, as the journal has it."""

    directory: Path
    cell: CellGraph
    key: str
    config: Config
    stage: Stage
    setting: Settings
    value: float  # of the task's metric, on validation data


@dataclass(frozen=True)
class Retrained:
    """A model; its figures of the best evaluation; and whether they are those of the journal."""

    best: Best
    model: Model
    record: Mapping[str, Any]
    same: bool

    def dump(self) -> bytes:
        """The file of the model (`evaluators.saved`)."""
        best = self.best
        return dump(self.model, best.cell, best.stage.task, best.setting, self._about())

    def _about(self) -> About:
        best = self.best
        origin = {
            "run": best.directory.resolve().name,
            "key": best.key,
            "seed": best.config.seed,
            "setting": best.setting.to_dict(),
            "steps": best.stage.budget.steps,
        }
        return About.of(best.stage.task, self.record["metrics"], origin)


def best(directory: str | Path, key: str, task: str | None) -> Best:
    """The best training of the cell whose key begins so. `task`: its name, or a family (language,
    music, arithmetic); None where the run has one task. Raises SearchError, DataError,
    CellError."""
    directory = Path(directory)
    cell = cg.load(f"{directory}:{key}")
    whole = cell.key()
    with Journal.read(directory) as journal:
        config = Config.from_dict(json.loads(journal.meta["config"]), source=str(directory))
        stage = _stage(funnel.stages(config), task, directory)
        ids = {row.id for row in journal.candidates() if row.key == whole}
        units = {u.id for u in journal.units() if u.candidate in ids and u.stage == stage.name}
        results = [row for row in journal.results(curves=False) if row.unit in units]
    records = [record for row in results if row.status == "ok" for record in row.records]
    found = [(value, r) for r in records if (value := stage.metric(r)) is not None]
    if not found:
        raise SearchError(
            f"{directory} holds no training of {whole[:8]} on {stage.name} that ended well, "
            f"see: cellsearch inspect {directory}:{whole[:8]}"
        )
    value, record = (max if stage.task.maximise else min)(found, key=lambda pair: pair[0])
    setting = Settings.from_dict(record["setting"])
    return Best(directory, cell, whole, config, stage, setting, value)


def _stage(stages: Sequence[Stage], task: str | None, directory: Path) -> Stage:
    chosen = [stage for stage in stages if not stage.is_filter]
    if task is not None:
        named = [s for s in chosen if s.task.name == tasks.ALIASES.get(task, task)]
        chosen = named or [s for s in chosen if s.task.family == task]
    if len(chosen) != 1:
        known = ", ".join(f"{s.name} ({s.task.family})" for s in stages if not s.is_filter)
        what = f"no task {task!r}" if task is not None and not chosen else "several such tasks"
        raise SearchError(f"{directory} has {what}, expected one of: {known}")
    return chosen[0]


def retrain(found: Best, say: Say) -> Retrained:
    """Train it once more, in a process that is a worker's from then on. Raises SearchError where
    that does not end well."""
    prepare_process()
    total = found.stage.budget.steps
    record, model = trained(
        found.cell,
        found.stage.task,
        found.setting,
        found.stage.budget,
        found.config.seed,
        backend=found.config.backend,
        on_eval=lambda step, *_: say(step, total),
    )
    if model is None:
        raise SearchError(
            f"the training ended as {record['status']} ({record['error']}), which in the run had "
            "ended well; expected the run's kind of CPU and versions"
        )
    return Retrained(found, model, record, found.stage.metric(record) == found.value)

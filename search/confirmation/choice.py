"""How a confirmation begins, with the cells of a run as it stands, and how one goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cellgraph as cg
from search import funnel, launch
from search.config import Config
from search.confirmation.plan import BASELINES, Entrant, Options, Plan, retimed
from search.errors import SearchError
from search.funnel import Stage
from search.journal import CandidateRow, Journal, UnitRow
from search.progress import Silent


def choose(directory: Path, given: Mapping[str, Any]) -> Plan:
    """The plan for a run as it stands; nothing is trained or written. `given`: options by name,
    None for those that were not stated. Raises SearchError, DataError, CellError."""
    options = Options(**{name: value for name, value in given.items() if value is not None})
    with Journal.read(directory) as journal:
        candidates, units = journal.candidates(), journal.units()
    plans: list[launch.Plan] = []

    def keep(_: object, plan: launch.Plan) -> Silent:
        _tasks(options.tasks, _names(plan.stages), directory)  # wrong ones before the long part
        plans.append(plan)
        return Silent()

    algorithm, complete = launch.replay(directory, watch=keep, verify=False)
    run = plans[0]
    names = _names(run.stages)
    options = replace(options, tasks=_tasks(options.tasks, names, directory))
    stages, notes = retimed(run.stages, options)
    if not complete:
        notes.insert(0, "the run was not finished when its best cells were chosen")

    entrants = [Entrant(cg.load(name), baseline=True) for name in BASELINES]
    known = [cell.key() for cell in [*run.seeds, *(e.cell for e in entrants)]]
    best = [cell for _, cell in algorithm.best(options.top + len(known)) if cell.key() not in known]
    found = [Entrant(cell, rank=i) for i, cell in enumerate(best[: options.top], start=1)]
    if len(found) < options.top:
        notes.append(
            f"found cells: {options.top} asked for, the run has {len(found)} among its best"
        )
    passed = _passed(candidates, units, names, known)
    if len(passed) < options.random:
        notes.append(
            f"random cells: {options.random} asked for, {len(passed)} of the run passed the filter"
        )
    rng = random.Random(f"{run.config.seed}/confirm/random")
    drawn = {row.key: row for row in rng.sample(passed, min(options.random, len(passed)))}
    # A cell may be both among the best and drawn: the draw is from all that passed.
    found = [replace(e, random=drawn.pop(e.cell.key(), None) is not None) for e in found]
    others = [Entrant(cg.parse(row.cell), random=True) for row in drawn.values()]
    return Plan(run.config, options, stages, [*found, *entrants, *others], notes)


def restored(journal: Journal, given: Mapping[str, Any]) -> Plan:
    """The plan that a journal of a confirmation began with. Raises DataError, CellError, and
    SearchError where `given` differs from its options, or the data from those it began with."""
    directory = journal.directory
    try:
        about = json.loads(journal.meta["confirmation"])
        held = {**about["options"], "tasks": tuple(about["options"]["tasks"])}
        notes = [str(note) for note in about["notes"]]
        config = Config.from_dict(json.loads(journal.meta["config"]), source=str(directory))
        entrants = [Entrant.from_dict(data) for data in json.loads(journal.meta["entrants"])]
        before = json.loads(journal.meta["data"])
        options = Options(**held)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SearchError):
            raise
        raise SearchError(
            f"{directory}: its journal does not describe a confirmation ({error!r})"
        ) from None
    run_stages = funnel.stages(config)
    names = _names(run_stages)
    for field in fields(Options):
        value = given.get(field.name)
        if field.name == "tasks" and value is not None:
            value = _tasks(value, names, directory)
        if value is not None and value != held[field.name]:
            flag, was = field.name.replace("_", "-"), held[field.name]
            raise SearchError(
                f"{directory}: began with --{flag} {_shown(was)}, not {_shown(value)}; leave the "
                "option out to go on with it, or move the folder away to begin anew"
            )
    stages, _ = retimed(run_stages, options)
    for stage in stages:
        if stage.task.describe() != before.get(stage.name):
            raise SearchError(
                f"{directory}: the data of task {stage.name} are not those it began with"
            )
    return Plan(config, options, stages, entrants, notes)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _names(stages: Sequence[Stage]) -> list[str]:
    """Of the tasks, in the order of the run."""
    return [stage.name for stage in stages if not stage.is_filter]


def _tasks(wanted: Sequence[str] | None, names: Sequence[str], directory: Path) -> tuple[str, ...]:
    """The names that are wanted, in the order of the run."""
    for name in wanted or ():
        if name not in names:
            raise SearchError(
                f"{directory}: the run has no task {name!r}, expected some of {', '.join(names)}"
            )
    return tuple(name for name in names if wanted is None or name in wanted)


def _passed(
    candidates: Sequence[CandidateRow],
    units: Sequence[UnitRow],
    tasks: Sequence[str],
    known: Sequence[str],
) -> list[CandidateRow]:
    """The cells that passed whatever comes before the tasks, that is, that were trained on one; in
    the order of their proposals, without the seeds and baselines."""
    reached = frozenset(unit.candidate for unit in units if unit.stage in tasks)
    found: dict[str, CandidateRow] = {}
    for row in candidates:
        if row.id in reached and row.key not in known:
            found.setdefault(row.key, row)
    return list(found.values())

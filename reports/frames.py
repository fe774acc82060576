"""The data frames of a run; `collect.Run` says what they are for, and nothing here is formatted.

Missing numbers are NaN. A run that has only just begun gives empty frames with all their columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from reports.history import History, Stage, ratio
from reports.trainings import SCREEN, Training
from search.journal import CandidateRow, ResultRow, UnitRow

_NUMBERS = ("metric", "customary", "loss", "best_step", "seconds", "parameters", "hidden_size")
_FIELDS = tuple(f.name for f in fields(Training) if f.name not in ("setting", "curves"))
_RECORDS = (
    *("unit", "candidate", "key", "stage", "purpose", "index"),
    *("status", "error", "fallback", "rejected", "steps"),
)


def records(trainings: Sequence[Training]) -> pd.DataFrame:
    """The fields of `Training` but its curve, the setting spread out: lr, scale, clip, layers, …"""
    rows = []
    for training in trainings:
        rows.append({**training.setting, **{name: getattr(training, name) for name in _FIELDS}})
    numbers = [*_NUMBERS, "flops"]
    frame = pd.DataFrame(rows, columns=None if rows else [*_RECORDS, *numbers])
    # A column that holds nothing but None would otherwise be a column of objects.
    wholes = ("unit", "candidate", "index", "steps")
    return frame.astype({**dict.fromkeys(numbers, float), **dict.fromkeys(wholes, int)})


def cells(
    stages: Sequence[Stage],
    candidates: Sequence[CandidateRow],
    units: Sequence[UnitRow],
    results: Mapping[int, ResultRow],
    trainings: Sequence[Training],
    best: Mapping[tuple[str, str], Training],
    history: History,
) -> pd.DataFrame:
    """One row per key, in the order of first proposals.

    candidate   that brought it in; with its name, origin and parents (keys)
    proposals   how often it was proposed
    outcome     of the last proposal: seed, running, evaluated, or rejected at STAGE, where STAGE is
                screen for those that were never trained
    furthest    the last stage that it entered
    pooled      whether it is in the pool now
    score       the minimum over tasks of the ratios; NaN without a result on every task
    settings    trained on tasks (on the filter: tried.FILTER), without what a screen rejected
    seconds     of its units, wall time
    best.S, customary.S (of the same training), ratio.S (tasks only), tried.S for every stage S
    """
    keys = {row.id: row.key for row in candidates}
    tried = Counter((t.key, t.stage) for t in trainings if t.trained)
    order = {stage.name: number for number, stage in enumerate(stages)}
    seconds = dict.fromkeys(keys.values(), 0.0)
    furthest = dict.fromkeys(keys.values(), 0)
    for unit in units:
        key = keys[unit.candidate]
        furthest[key] = max(furthest[key], order[unit.stage])
        if unit.id in results:
            seconds[key] += results[unit.id].seconds
    proposals = Counter(row.key for row in candidates)
    outcomes = _outcomes(candidates, fates(stages, candidates, trainings, history))
    rows: dict[str, dict[str, Any]] = {}
    for row in candidates:
        if row.key in rows:
            continue
        per_stage, ratios = _per_stage(row.key, stages, best, history.baseline)
        known = [value for value in ratios if value is not None]
        rows[row.key] = {
            "key": row.key,
            "candidate": row.id,
            "proposals": proposals[row.key],
            "name": row.name,
            "origin": row.origin,
            "parents": tuple(keys[parent] for parent in row.parents),
            "outcome": outcomes[row.key],
            "furthest": stages[furthest[row.key]].name,
            "pooled": row.key in history.pool,
            "score": min(known) if len(known) == len(ratios) else None,
            "settings": sum(tried[row.key, s.name] for s in stages if not s.is_filter),
            "seconds": seconds[row.key],
            **per_stage,
            **{f"tried.{stage.name}": tried[row.key, stage.name] for stage in stages},
        }
    numbers, _ = _per_stage("", stages, {}, None)
    named = ("key", "candidate", "proposals", "name", "origin", "parents", "outcome", "furthest")
    columns = [*named, "pooled", "score", "settings", "seconds", *numbers]
    columns += [f"tried.{stage.name}" for stage in stages]
    frame = pd.DataFrame(list(rows.values()), columns=columns)
    return frame.astype({**dict.fromkeys(numbers, float), "score": float, "pooled": bool})


def _per_stage(
    key: str,
    stages: Sequence[Stage],
    best: Mapping[tuple[str, str], Training],
    baseline: str | None,
) -> tuple[dict[str, float | None], list[float | None]]:
    """The columns best.S, customary.S and ratio.S of a cell, and its ratios alone."""
    columns: dict[str, float | None] = {}
    ratios = []
    for stage in stages:
        mine = best.get((key, stage.name))
        base = best.get((baseline or "", stage.name))
        columns[f"best.{stage.name}"] = mine.metric if mine else None
        columns[f"customary.{stage.name}"] = mine.customary if mine else None
        if not stage.is_filter:
            relative = None
            if mine and base:
                relative = ratio(mine.metric, base.metric, stage.maximise)
            columns[f"ratio.{stage.name}"] = relative
            ratios.append(relative)
    return columns, ratios


def fates(
    stages: Sequence[Stage],
    candidates: Sequence[CandidateRow],
    trainings: Sequence[Training],
    history: History,
) -> dict[int, str]:
    """The outcome, as in `cells`, of every candidate by itself."""
    last = {decision.candidate: decision for decision in history.decisions}
    screened = _screened(trainings)
    found: dict[int, str] = {}
    for row in candidates:
        decision = last.get(row.id)
        if row.origin == "seed":
            found[row.id] = "seed"
        elif decision is None or (decision.passed and decision.stage != stages[-1].name):
            found[row.id] = "running"
        elif decision.passed:
            found[row.id] = "evaluated"
        else:
            found[row.id] = f"rejected at {SCREEN if row.id in screened else decision.stage}"
    return found


def _outcomes(candidates: Sequence[CandidateRow], fates: Mapping[int, str]) -> dict[str, str]:
    """By key."""
    outcomes: dict[str, str] = {}
    for row in candidates:
        if outcomes.get(row.key) != "seed":  # else it fell out of the pool and was found again
            outcomes[row.key] = fates[row.id]
    return outcomes


def _screened(trainings: Sequence[Training]) -> set[int]:
    """The candidates that a screen rejected before they were trained."""
    return {training.candidate for training in trainings if not training.trained}


def leaderboard(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that have a score, best first, equal ones by key; rank counts from 1."""
    ranked = cells[cells["score"].notna()]
    ranked = ranked.sort_values(["score", "key"], ascending=[False, True]).reset_index(drop=True)
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    return ranked


def funnel(
    stages: Sequence[Stage],
    units: Sequence[UnitRow],
    trainings: Sequence[Training],
    history: History,
) -> pd.DataFrame:
    """entered, finished and passed by stage; proposals, not cells: one made twice counts twice.

    Where a screen has rejected some, it comes first, and the first stage has only those it let
    through.
    """
    entered = Counter(unit.stage for unit in units if unit.payload["purpose"] == "candidate")
    finished = Counter(decision.stage for decision in history.decisions)
    passed = Counter(decision.stage for decision in history.decisions if decision.passed)
    rows = [(s.name, entered[s.name], finished[s.name], passed[s.name]) for s in stages]
    if screened := _screened(trainings):
        first = stages[0].name
        stopped = sum(d.stage == first and d.candidate in screened for d in history.decisions)
        name, begun, done, through = rows[0]
        rows[0] = (name, begun - stopped, done - stopped, through)
        rows.insert(0, (SCREEN, begun, done, done - stopped))
    return pd.DataFrame(rows, columns=["stage", "entered", "finished", "passed"])

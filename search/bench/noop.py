"""A search that trains nothing: the real funnel, with results that cost microseconds.

What a training would have brought is drawn from a hash of its payload, so that cells pass and fail
stages about as often as real ones do, rankings are stable, and every run gives the same. Records
have the shape and the size of real ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cellgraph import zoo
from evaluators import Rung
from evaluators.halving import Standing, compare
from search import config as configuration
from search.archive import name_in
from search.config import Config
from search.funnel import Stage

#: Of proposals: numerically hopeless, or able to memorise; of trainings: diverged.
HOPELESS, MEMORISE, DIVERGE = 0.1, 0.35, 0.03
SEED_QUALITY = 0.6  #: seeds are better than most children, and never fail


def config(candidates: int, seed: int) -> Config:
    """The bundled `standard` search, on the tasks among the real ones that read no data."""
    tree = configuration.load("standard").to_dict()
    tree |= {"name": "noop", "seed": seed, "backend": "eager"}  # nothing is compiled
    tree["search"]["candidates"] = candidates
    first, second = tree["tasks"][:2]
    tree["tasks"] = [
        {**first, "task": "arithmetic", "options": {}},
        {**second, "task": "xml", "options": {}},
    ]
    return Config.from_dict(tree, "standard")


@dataclass(frozen=True)
class Trained:
    """What the numbers of a stage's records depend on."""

    metric: str
    maximise: bool
    steps: int
    eval_every: int
    target: float | None
    is_filter: bool

    @classmethod
    def of(cls, stage: Stage) -> Trained:
        task, budget = stage.task, stage.budget
        steps, every, target = budget.steps, budget.eval_every, budget.target
        return cls(task.metric, task.maximise, steps, every, target, stage.is_filter)


@dataclass(frozen=True)
class NoOp:
    """In the place of `search.work.Evaluator`: payload in, records out, nothing in between."""

    stages: Mapping[str, Trained]

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> NoOp:
        return cls({stage.name: Trained.of(stage) for stage in stages})

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """`payload`: as of `search.work.Evaluator`. Returns {"records": one per setting}."""
        cell, stage = payload["cell"], self.stages[payload["stage"]]
        if payload["screen"] and fraction(cell, "screen") < HOPELESS:
            return {"records": [_screened(setting) for setting in payload["settings"]]}
        seed = name_in(cell) in zoo.names()
        records = [self._record(cell, payload["stage"], s, seed) for s in payload["settings"]]
        for number, rung in enumerate(payload["rungs"], start=1):
            _halve(records, stage, number, Rung(**rung))
        return {"records": records}

    def _record(
        self, cell: str, name: str, setting: Mapping[str, Any], seed: bool
    ) -> dict[str, Any]:
        stage, luck = self.stages[name], fraction(cell, name, sorted(setting.items()))
        if stage.is_filter:
            quality = 1.0 if seed or fraction(cell, name) < MEMORISE else 0.3 * luck
        else:
            own = SEED_QUALITY if seed else fraction(cell, name)
            quality = 0.4 + 0.2 * (0.7 * own + 0.3 * luck)
        diverged = not (seed or stage.is_filter) and luck < DIVERGE
        curve = [] if diverged else _curve(stage, quality)
        return {
            "setting": dict(setting),
            "seed": int(luck * 2**62),
            "status": "diverged" if diverged else "ok",
            "error": f"training loss {1e9 * luck:.3g} at step 7" if diverged else None,
            "at_rungs": [],
            **_ended(stage, curve),
        }


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the text of `parts` alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _curve(stage: Trained, quality: float) -> list[list[float]]:
    """Rows as `evaluators.evaluate` writes them: the metric rises (or falls) towards `quality`,
    and training ends where it reaches the target."""
    rows: list[list[float]] = []
    for step in range(stage.eval_every, stage.steps + 1, stage.eval_every):
        risen = quality * -math.expm1(-6 * step / stage.steps)
        value = risen if stage.maximise else 1.0 - risen
        rows.append([step, 3.2 - 2 * risen, 3.1 - 2 * risen, value])
        if stage.target is not None and not _better(stage.target, value, stage.maximise):
            break
    return rows


def _halve(records: list[dict[str, Any]], stage: Trained, number: int, rung: Rung) -> None:
    """Stop the trainings that do not go on after a rung, as `evaluators.train` does."""
    present = [i for i, record in enumerate(records) if record["status"] == "ok"]
    curves = [[row for row in records[i]["curve"] if row[0] <= rung.steps] for i in present]
    standings = [
        Standing(curve[-1][3], finished=len(curve) == len(records[index]["curve"]))
        for index, curve in zip(present, curves, strict=True)
    ]
    reasons = compare(number, rung, standings, stage.metric, stage.maximise)
    for index, curve, standing, reason in zip(present, curves, standings, reasons, strict=True):
        records[index]["at_rungs"].append(standing.value)
        if reason is not None:
            stopped = {"status": "rejected", "stage": "rung", "rung": number, "error": reason}
            records[index] |= {**stopped, **_ended(stage, curve)}


def _ended(stage: Trained, curve: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What a record says of how far a training came. The last evaluation is the best."""
    metrics: dict[str, float] = {}
    if curve:
        step, _, loss, value = curve[-1]
        metrics = {"loss": loss, stage.metric: value, "step": step}
    cost = {
        "steps": metrics.get("step", 7),
        "seconds": 0.0,
        "hidden_size": 64,
        "parameters": 25_000,
        "flops_per_step": 50_000,
    }
    return {"curve": [*curve], "metrics": metrics, "final": metrics, "cost": cost}


def _screened(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The record of what was not even trained."""
    why = "gradient: dead, 0 after 200 steps"
    head = {"setting": dict(setting), "status": "rejected", "stage": "screen", "error": why}
    return {**head, "curve": [], "metrics": {}, "final": {}, "cost": {"steps": 0, "seconds": 0.0}}


def _better(value: float, than: float, maximise: bool) -> bool:
    return value > than if maximise else value < than

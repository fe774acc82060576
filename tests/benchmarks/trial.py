"""A candidate as a trial of Ray Tune: the funnel, with cells as torch operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluators.train import prepare_process
from search.work import Evaluator


@dataclass(frozen=True)
class Step:
    """A stage of a candidate: what is trained (settings, rungs, target), and the metric to reach
    with the best."""

    stage: str
    metric: str
    maximise: bool
    plan: Mapping[str, Any]
    screen: bool
    bar: float


@dataclass(frozen=True)
class Course:
    """A candidate: its cell as text, and the stages that lie before it."""

    cell: str
    steps: Sequence[Step]


@dataclass
class Worker:
    """What a process keeps from trial to trial, as any user would: tasks and their data."""

    evaluator: Evaluator | None = field(default=None)


_WORKER = Worker()


def run(config: Mapping[str, Any], courses: Sequence[Course], evaluator: Evaluator) -> None:
    """The function that Tune trains: one candidate through the funnel, until it fails a stage."""
    from ray import tune

    if _WORKER.evaluator is None:
        prepare_process()
        _WORKER.evaluator = evaluator
    tune.report(climb(courses[config["candidate"]], _WORKER.evaluator))


def climb(course: Course, evaluator: Evaluator) -> dict[str, Any]:
    """passed: the number of stages; best: the best metric in each stage that was entered."""
    best: list[float | None] = []
    passed = 0
    for step in course.steps:
        payload = {
            "cell": course.cell,
            "stage": step.stage,
            **step.plan,
            "screen": step.screen,
        }
        records = evaluator(payload)["records"]
        values = [r["metrics"][step.metric] for r in records if r["status"] == "ok"]
        best.append((max if step.maximise else min)(values, default=None))
        if best[-1] is None or (best[-1] < step.bar if step.maximise else best[-1] > step.bar):
            break
        passed += 1
    return {"passed": passed, "best": best}

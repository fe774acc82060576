"""Training of one cell on one task, once for each of some settings.

One after the other, or, where the budget has rungs, in lockstep from rung to rung, where the worse
are stopped (halving.py); a setting's numbers are those it has alone either way. The loop itself is
in training.py. Nothing here knows of searches, journals or Ray; which cells and settings are worth
training is decided elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.backends import check_backend
from evaluators import tasks
from evaluators.budget import Budget, Rung
from evaluators.errors import unknown
from evaluators.halving import Standing, compare
from evaluators.model import Model
from evaluators.settings import Settings
from evaluators.task import Split, Task
from evaluators.training import Candidate, OnEval, Training, derive_seed

__all__ = ["OnEval", "derive_seed", "evaluate", "prepare_process", "trained"]


def evaluate(
    cell: CellGraph | str | Path,
    task: Task | str,
    settings: Settings | Mapping[str, Any] | Sequence[Settings | Mapping[str, Any]],
    budget: Budget | int,
    seed: int,
    *,
    backend: str = "auto",
    split_metrics: Sequence[str] = ("valid",),
    on_eval: OnEval | None = None,
) -> list[dict[str, Any]]:
    """Train `cell` on `task` once for each of `settings`; one JSON-able record each, in that order.

    cell           a cell, a zoo name, a path, or notation text
    task           a task, or the name of one with its default options
    budget         a `Budget`, or a number of steps (then evaluated ten times); with rungs all
                   settings are trained up to a rung, and those that go on up to the next
    seed           of the run; what a setting draws depends on (seed, cell, task, setting) alone
    split_metrics  add "test" to measure the best parameters on the test split as well

    A record holds

        setting  as `Settings.to_dict`
        seed     derived; it decides everything that this training draws
        status   ok | rejected | diverged | timeout | out_of_memory | crashed | invalid
        error    one line, or None
        stage    only where status is rejected: "rung"; then "rung" is its number, from 1
        curve    [[step, train_loss, valid_loss, valid_metric], ...], losses in nats per scored
                 step; train_loss is the mean since the row before
        metrics  of the best evaluation on validation (first of equals), with its "step"; empty when
                 training ended before the first
        final    the same of the last evaluation
        at_rungs only where the budget has rungs: the best of the task's metric until each of those
                 that it came to
        test     if asked for and status is ok: on the test split, of the best parameters
        fallback only where the compiler failed and torch did its work, so that numbers differ in
                 their last places: why
        cost     steps, seconds, hidden_size, parameters, flops_per_step (forward, one batch row)

    Raises for wrong arguments only: `CellError` for text that is no cell and unknown backends,
    `DataError` for unknown tasks, settings, budgets and splits, and for missing data.
    """
    cell, backend = _as_cell(cell), check_backend(backend)
    task = tasks.create(task) if isinstance(task, str) else task
    budget = Budget.of(budget)
    if isinstance(settings, (Settings, Mapping)):
        settings = [settings]
    chosen = [s if isinstance(s, Settings) else Settings.from_dict(s) for s in settings]
    for split in split_metrics:
        if split not in get_args(Split):
            raise unknown("split", split, get_args(Split))
    candidate = Candidate(cell, task, budget, seed, backend, "test" in split_metrics, on_eval)
    trainings = [Training(candidate, s) for s in chosen]
    for number, rung in enumerate(budget.rungs, start=1):
        for training in trainings:
            training.run_until(rung.steps)
        _stop_some(trainings, number, rung, task)
    for training in trainings:
        training.run_until(budget.steps)
    return [training.record for training in trainings]


def trained(
    cell: CellGraph | str | Path,
    task: Task | str,
    settings: Settings | Mapping[str, Any],
    budget: Budget | int,
    seed: int,
    *,
    backend: str = "auto",
    on_eval: OnEval | None = None,
) -> tuple[dict[str, Any], Model | None]:
    """As `evaluate` for one setting, whose numbers it has; and the model with the parameters of its
    best evaluation, ready to be used. None where the training did not end well: the record says
    why."""
    cell, backend = _as_cell(cell), check_backend(backend)
    task = tasks.create(task) if isinstance(task, str) else task
    chosen = settings if isinstance(settings, Settings) else Settings.from_dict(settings)
    candidate = Candidate(
        cell, task, Budget.of(budget), seed, backend, with_test=False, on_eval=on_eval, keep=True
    )
    training = Training(candidate, chosen)
    training.run_until(candidate.budget.steps)
    return training.record, None if training.model is None else training.model.eval()


def _stop_some(trainings: Sequence[Training], number: int, rung: Rung, task: Task) -> None:
    """Reject the trainings that end at this rung, and note in all how they stand there. Those that
    failed on the way take no part."""
    present = [t for t in trainings if t.record["status"] == "ok" and t.record["metrics"]]
    standings = [Standing(t.record["metrics"][task.metric], not t.running) for t in present]
    reasons = compare(number, rung, standings, task.metric, task.maximise)
    for training, standing, reason in zip(present, standings, reasons, strict=True):
        training.record.setdefault("at_rungs", []).append(standing.value)
        if reason is not None:
            training.reject(number, reason)


def prepare_process() -> None:
    """Settings of the whole process that training relies on; workers call it once, at their start.

    One thread: workers share the machine, and sums in another order have other last digits. With
    one thread the CPU kernels in use are deterministic without torch's slower deterministic mode.
    Denormals, which saturated gates produce in great numbers, are slow; they become zero.
    What did not compile stands in the records; warnings would run through the picture of a search.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", "cells run as torch operations", RuntimeWarning)


def _as_cell(cell: CellGraph | str | Path) -> CellGraph:
    if isinstance(cell, CellGraph):
        return cell
    return cg.parse(cell) if isinstance(cell, str) and "\n" in cell else cg.load(cell)

"""The training loop: truncated backpropagation for one cell, one task and each of some settings.

Failure is data: a setting that diverges, runs out of memory or crashes yields a record that says
so. Nothing here knows of searches, journals or Ray; which cells and settings are worth training is
decided elsewhere.

Letters for shapes: T time steps, B batch, V vocabulary, F frame width, H units.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import cellgraph as cg
from cellgraph import CellError, CellGraph
from cellgraph.backends import check_backend
from evaluators import tasks
from evaluators.errors import DataError, unknown
from evaluators.metrics import measure, uniform_loss
from evaluators.model import build, flops_per_step
from evaluators.schedule import Schedule
from evaluators.settings import Budget, Settings
from evaluators.step import Step
from evaluators.task import Split, Task

#: Called after each evaluation with the new row: step, train_loss, valid_loss, valid_metric.
OnEval = Callable[[int, float, float, float], None]

DIVERGED = 10.0  #: a loss above this many times the uniform predictor's is a divergence
CLOCK_EVERY = 8  #: steps between looks at the wall clock


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
    budget         a `Budget`, or a number of steps (then evaluated ten times)
    seed           of the run; what a setting draws depends on (seed, cell, task, setting) alone
    split_metrics  add "test" to measure the best parameters on the test split as well

    A record holds

        setting  as `Settings.to_dict`
        seed     derived; it decides everything that this training draws
        status   ok | diverged | timeout | out_of_memory | crashed | invalid
        error    one line, or None
        curve    [[step, train_loss, valid_loss, valid_metric], ...], losses in nats per scored
                 step; train_loss is the mean since the row before
        metrics  of the best evaluation on validation (first of equals), with its "step"; empty when
                 training ended before the first
        final    the same of the last evaluation
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
    candidate = _Candidate(cell, task, budget, seed, backend, "test" in split_metrics, on_eval)
    return [_evaluate(candidate, s) for s in chosen]


def prepare_process() -> None:
    """Settings of the whole process that training relies on; workers call it once, at their start.

    One thread: workers share the machine, and sums in another order have other last digits. With
    one thread the CPU kernels in use are deterministic without torch's slower deterministic mode.
    Denormals, which saturated gates produce in great numbers, are slow; they become zero.
    What did not compile stands in the records; warnings would run through the picture of a search.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", "cells run on the eager backend", RuntimeWarning)


def derive_seed(*parts: object) -> int:
    """63 bits from the text of `parts`: the same on every machine and Python."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _as_cell(cell: CellGraph | str | Path) -> CellGraph:
    if isinstance(cell, CellGraph):
        return cell
    return cg.parse(cell) if isinstance(cell, str) and "\n" in cell else cg.load(cell)


@dataclass
class _Candidate:
    """A cell, and what all its trainings share."""

    cell: CellGraph
    task: Task
    budget: Budget
    seed: int  # of the run
    backend: str
    with_test: bool
    on_eval: OnEval | None
    fallback: str | None = None  # why its backend has become eager


def _evaluate(candidate: _Candidate, settings: Settings) -> dict[str, Any]:
    cell, task = candidate.cell, candidate.task
    seed = derive_seed(candidate.seed, cell.key(), task.name, settings.id)
    cost = {"steps": 0, "seconds": 0.0, "hidden_size": 0, "parameters": 0, "flops_per_step": 0}
    record: dict[str, Any] = {"setting": settings.to_dict(), "seed": seed}
    record |= {"status": "ok", "error": None, "curve": [], "metrics": {}, "final": {}, "cost": cost}
    started = time.perf_counter()
    try:
        model = build(cell, task, settings, derive_seed(seed, "parameters"), candidate.backend)
        cost["hidden_size"] = model.hidden_size
        cost["parameters"] = sum(p.numel() for p in model.parameters())
        cost["flops_per_step"] = flops_per_step(cell, task, model.hidden_size, settings.layers)
        training = Step(model, task, settings)
        with torch.random.fork_rng(devices=[]):  # dropout can only draw from the global generator
            torch.manual_seed(derive_seed(seed, "dropout"))
            try:
                _train(training, settings, candidate, record)
            finally:
                if model.layers.fallback is not None:
                    # Not tried again for the next setting: a compiler that hangs takes 30 s.
                    candidate.backend, candidate.fallback = "eager", model.layers.fallback
                if reason := candidate.fallback or training.optimizer.fallback:
                    record["fallback"] = _one_line(reason)
    except _TrainingError as end:
        record |= {"status": end.status, "error": str(end)}
    except DataError:
        raise  # missing or corrupt data is no fault of the cell
    except CellError as error:
        record |= {"status": "invalid", "error": _one_line(error)}
    except Exception as error:  # failure is data: the next setting gets its turn
        status = "out_of_memory" if _is_out_of_memory(error) else "crashed"
        record |= {"status": status, "error": f"{type(error).__name__}: {_one_line(error)}"}
    cost["seconds"] = round(time.perf_counter() - started, 4)
    return record


class _TrainingError(Exception):
    """Training that stops before its time, for a reason that is a result."""

    def __init__(self, status: str, reason: str, step: int) -> None:
        super().__init__(f"{reason} at step {step}")
        self.status = status


def _train(
    training: Step, settings: Settings, candidate: _Candidate, record: dict[str, Any]
) -> None:
    """Fill in curve, metrics and cost of `record`; `_TrainingError` when it ends badly."""
    model, task, budget = training.model, candidate.task, candidate.budget
    schedule = Schedule(budget, settings.lr, task.maximise)
    limit = DIVERGED * uniform_loss(task)
    deadline = math.inf
    total, count = 0.0, 0  # loss and scored steps since the last evaluation
    best: Tensor | None = None  # parameters of the best evaluation, kept for the test split
    model.train()
    for step, batch in enumerate(task.train_batches(derive_seed(record["seed"], "data")), start=1):
        nats, scored = training.forward(batch)
        if step == 1 and budget.seconds is not None:  # not before: the first call may compile
            deadline = time.monotonic() + budget.seconds
        if not nats <= limit * scored:  # true for NaN too
            raise _TrainingError("diverged", f"training loss {nats / scored:.3g}", step)
        norm = training.backward()
        if not math.isfinite(norm):
            raise _TrainingError("diverged", f"gradient norm {norm}", step)
        training.update(schedule.rate(step - 1))
        record["cost"]["steps"] = step
        total, count = total + nats, count + scored

        if step % budget.eval_every == 0 or step == budget.steps:
            metrics = measure(model, task, "valid")
            if not metrics["loss"] <= limit:
                raise _TrainingError("diverged", f"validation loss {metrics['loss']:.3g}", step)
            value = metrics[task.metric]
            row = (step, total / max(count, 1), metrics["loss"], value)
            record["curve"].append(list(row))
            record["final"] = metrics | {"step": step}
            metrics = record["metrics"]
            if not metrics or _better(value, metrics[task.metric], task.maximise):
                record["metrics"] = record["final"]
                best = training.optimizer.copy() if candidate.with_test else None
            total, count = 0.0, 0
            if candidate.on_eval is not None:
                candidate.on_eval(*row)
            reached = budget.target is not None and not _better(budget.target, value, task.maximise)
            if not schedule.observe(value) or reached or step == budget.steps:
                break
        if step % CLOCK_EVERY == 0 and time.monotonic() > deadline:
            raise _TrainingError("timeout", f"more than {budget.seconds:g} seconds", step)
    if best is not None:
        training.optimizer.restore(best)
        record["test"] = measure(model, task, "test")


def _better(value: float, than: float, maximise: bool) -> bool:
    return value > than if maximise else value < than


def _is_out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())

"""One training: truncated backpropagation for one cell, one task and one setting.

It can be left waiting after any evaluation and goes on as if nothing had been in between, which is
what trains settings in lockstep (train.py). Failure is data: a training that diverges, runs out of
memory or crashes ends in a record that says so.

Letters for shapes: T time steps, B batch, V vocabulary, F frame width, H units.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cellgraph import CellError, CellGraph
from evaluators.budget import Budget
from evaluators.errors import DataError
from evaluators.metrics import measure, uniform_loss
from evaluators.model import Model, build, flops_per_step
from evaluators.schedule import Schedule
from evaluators.settings import Settings
from evaluators.step import Step
from evaluators.task import Task

#: Called after each evaluation with the new row: step, train_loss, valid_loss, valid_metric.
OnEval = Callable[[int, float, float, float], None]

DIVERGED = 10.0  #: a loss above this many times the uniform predictor's is a divergence
CLOCK_EVERY = 8  #: steps between looks at the wall clock
SIZES = ("hidden_size", "parameters", "flops_per_step")  #: of a record's cost


@dataclass
class Candidate:
    """A cell, and what all its trainings share."""

    cell: CellGraph
    task: Task
    budget: Budget
    seed: int  # of the run
    backend: str
    with_test: bool
    on_eval: OnEval | None
    keep: bool = False  # the model, with the parameters of its best evaluation
    fallback: str | None = None  # why its backend has become eager


class Training:
    """One setting of a candidate, trained as far as it is told; its `record` grows meanwhile.

    Whatever it draws and remembers is its own: model, optimiser, schedule, batches, the state of
    dropout, the clock. So its numbers do not depend on what runs between two of its calls. The
    model exists from the first call of `run_until` to the end of the training; `model` is what is
    kept of it, where the candidate says so and the training ends well.
    """

    def __init__(self, candidate: Candidate, settings: Settings) -> None:
        self.candidate, self.settings = candidate, settings
        self.running = True  # until it ends, well or not
        seed = derive_seed(candidate.seed, candidate.cell.key(), candidate.task.name, settings.id)
        self.record: dict[str, Any] = {"setting": settings.to_dict(), "seed": seed}
        self.record |= {"status": "ok", "error": None, "curve": [], "metrics": {}, "final": {}}
        self.record["cost"] = {"steps": 0, "seconds": 0.0} | dict.fromkeys(SIZES, 0)
        self._seconds = 0.0
        self._fallback: str | None = None  # why torch does what should be compiled
        self._learner: Step | None = None
        self._best: Tensor | None = None  # parameters of the best evaluation, where they are wanted
        self.model: Model | None = None
        self._evaluations = self._train()
        generator = torch.Generator().manual_seed(derive_seed(seed, "dropout"))
        self._random_state = generator.get_state()

    def run_until(self, step: int) -> None:
        """Go on to the evaluation after `step` updates, or to the end where that comes first.

        Does nothing once the training has ended. Raises `DataError` for missing data.
        """
        if not self.running:
            return
        started = time.perf_counter()
        try:
            with self._own_randomness():
                self.running = any(reached >= step for reached in self._evaluations)
        except _TrainingError as end:
            self._fail(end.status, str(end))
        except DataError:
            raise  # missing or corrupt data is no fault of the cell
        except CellError as error:
            self._fail("invalid", _one_line(error))
        except Exception as error:  # failure is data: the next setting gets its turn
            status = "out_of_memory" if _is_out_of_memory(error) else "crashed"
            self._fail(status, f"{type(error).__name__}: {_one_line(error)}")
        self._note_fallback()
        if not self.running:
            self._release()
        self._seconds += time.perf_counter() - started
        self.record["cost"]["seconds"] = round(self._seconds, 4)

    def reject(self, rung: int, reason: str) -> None:
        """End it at a rung, where it waits."""
        self._fail("rejected", reason)
        self.record |= {"stage": "rung", "rung": rung}
        self._release()

    def _fail(self, status: str, error: str) -> None:
        self.running = False
        self.record |= {"status": status, "error": error}

    def _release(self) -> None:
        """Give back the memory: other settings may be waiting for their turn."""
        self._evaluations.close()
        self._learner = self._best = None

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout can only draw from torch's global generator: lend it this training's state."""
        others = torch.get_rng_state()
        torch.set_rng_state(self._random_state)
        try:
            yield
        finally:
            self._random_state = torch.get_rng_state()
            torch.set_rng_state(others)

    def _build(self) -> Step:
        candidate, settings, cost = self.candidate, self.settings, self.record["cost"]
        cell, task, backend = candidate.cell, candidate.task, candidate.backend
        seed = derive_seed(self.record["seed"], "parameters")
        self._fallback = candidate.fallback
        model = build(cell, task, settings, seed, backend)
        cost["hidden_size"] = model.hidden_size
        cost["parameters"] = sum(p.numel() for p in model.parameters())
        cost["flops_per_step"] = flops_per_step(cell, task, model.hidden_size, settings.layers)
        return Step(model, task, settings)

    def _note_fallback(self) -> None:
        if self._learner is None:
            return
        if (why := self._learner.model.layers.fallback) is not None:
            # Not tried again for the next setting: a compiler that hangs takes 30 s.
            self.candidate.backend, self.candidate.fallback = "eager", why
            self._fallback = why
        if reason := self._fallback or self._learner.optimizer.fallback:
            self.record["fallback"] = _one_line(reason)

    def _train(self) -> Generator[int, None, None]:
        """The loop. Yields the step after every evaluation but the last, where it may be left
        waiting; `_TrainingError` when it ends badly."""
        task, budget, record = self.candidate.task, self.candidate.budget, self.record
        learner = self._learner = self._build()
        schedule = Schedule(budget, self.settings.lr, task.maximise)
        limit = DIVERGED * uniform_loss(task)
        deadline = math.inf
        total, count = 0.0, 0  # loss and scored steps since the last evaluation
        learner.model.train()
        for step, batch in enumerate(task.train_batches(derive_seed(record["seed"], "data")), 1):
            nats, scored = learner.forward(batch)
            if step == 1 and budget.seconds is not None:  # not before: the first call may compile
                deadline = time.monotonic() + budget.seconds
            if not nats <= limit * scored:  # true for NaN too
                raise _TrainingError("diverged", f"training loss {nats / scored:.3g}", step)
            norm = learner.backward()
            if not math.isfinite(norm):
                raise _TrainingError("diverged", f"gradient norm {norm}", step)
            learner.update(schedule.rate(step - 1))
            record["cost"]["steps"] = step
            total, count = total + nats, count + scored

            if step % budget.eval_every == 0 or step == budget.steps:
                value = self._evaluate(learner, step, total / max(count, 1), limit)
                total, count = 0.0, 0
                reached = budget.target is not None and not _better(
                    budget.target, value, task.maximise
                )
                if not schedule.observe(value) or reached or step == budget.steps:
                    break
                left = time.monotonic()
                yield step
                deadline += time.monotonic() - left  # the time of others
            if step % CLOCK_EVERY == 0 and time.monotonic() > deadline:
                raise _TrainingError("timeout", f"more than {budget.seconds:g} seconds", step)
        if self._best is not None:
            learner.optimizer.restore(self._best)
            if self.candidate.with_test:
                record["test"] = measure(learner.model, task, "test")
            if self.candidate.keep:
                self.model = learner.model

    def _evaluate(self, learner: Step, step: int, train_loss: float, limit: float) -> float:
        """One row of the curve; returns the validation metric."""
        candidate, task, record = self.candidate, self.candidate.task, self.record
        metrics = measure(learner.model, task, "valid")
        if not metrics["loss"] <= limit:
            raise _TrainingError("diverged", f"validation loss {metrics['loss']:.3g}", step)
        value = metrics[task.metric]
        row = (step, train_loss, metrics["loss"], value)
        record["curve"].append(list(row))
        record["final"] = metrics | {"step": step}
        best = record["metrics"]
        if not best or _better(value, best[task.metric], task.maximise):
            record["metrics"] = record["final"]
            wanted = candidate.with_test or candidate.keep
            self._best = learner.optimizer.copy() if wanted else None
        if candidate.on_eval is not None:
            candidate.on_eval(*row)
        return value


class _TrainingError(Exception):
    """Training that stops before its time, for a reason that is a result."""

    def __init__(self, status: str, reason: str, step: int) -> None:
        super().__init__(f"{reason} at step {step}")
        self.status = status


def derive_seed(*parts: object) -> int:
    """63 bits from the text of `parts`: the same on every machine and Python."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _better(value: float, than: float, maximise: bool) -> bool:
    return value > than if maximise else value < than


def _is_out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())

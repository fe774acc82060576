"""What a worker does with one training of a confirmation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import cellgraph as cg
from evaluators import Budget, evaluate, tasks
from evaluators.task import Batch, Task
from evaluators.train import derive_seed
from search.funnel import Stage


class Paired:
    """A task whose training batches come from a seed of its own, whichever training asks for them.

    In `evaluate` every cell draws other data. Here all cells see the same data under the same seed,
    so that a comparison of cells, seed by seed, is one of pairs.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._task, self._seed = task, seed

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """The batches of the pair; `seed`, that of one training, plays no part."""
        return self._task.train_batches(self._seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


@dataclass
class Trainer:
    """The function that executors call: payload in, records out. Pure, but for the tasks that it
    keeps."""

    specs: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]  # task, options, budget
    backend: str
    _tasks: dict[str, Task] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, stages: Sequence[Stage], backend: str) -> Trainer:
        specs = {s.name: (s.task.name, dict(s.options), s.budget.to_dict()) for s in stages}
        return cls(specs, backend)

    def __call__(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """`payload`: cell (notation), stage, settings (mappings), seed, and `test`: measure on the
        test split as well? Returns {"records": one per setting}."""
        name, options, budget = self.specs[payload["stage"]]
        if payload["stage"] not in self._tasks:
            self._tasks[payload["stage"]] = tasks.create(name, **options)
        task = Paired(self._tasks[payload["stage"]], derive_seed(payload["seed"], "data", name))
        records = evaluate(
            cg.parse(payload["cell"]),
            cast(Task, task),
            payload["settings"],
            Budget.of(budget),
            payload["seed"],
            backend=self.backend,
            split_metrics=("valid", "test") if payload["test"] else ("valid",),
        )
        return {"records": records}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tasks": {}}  # tasks hold data, which travels once, on its own

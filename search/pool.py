"""What is known of each architecture, and the pool of the best. State and arithmetic; no drawing,
no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from deap import base, tools

from cellgraph import CellGraph
from evaluators.fitness import score
from search.funnel import Stage


@dataclass
class Architecture:
    """A cell, by its key, with every setting it was trained on: stage -> index in the stage's grid
    -> metric.

    A setting that failed has the metric None: it counts as tried and improves nothing.
    """

    candidate: int
    cell: CellGraph
    tried: dict[str, dict[int, float | None]] = field(default_factory=dict)
    passed_filter: bool = False
    busy: bool = True  # units of it are under way
    pooled: bool = False

    @property
    def key(self) -> str:
        return self.cell.key()

    def on(self, stage: Stage) -> dict[int, float | None]:
        return self.tried.setdefault(stage.name, {})

    def best(self, stage: Stage) -> float | None:
        """The quality of an architecture is that of its best setting so far (Jozefowicz et al.
        2015, 3.1)."""
        return stage.best(list(self.on(stage).values()))

    def best_settings(self, stage: Stage, count: int) -> list[int]:
        """Indices of its `count` best settings in the stage's grid, best first; failures are left
        out."""
        sign = -1.0 if stage.task.maximise else 1.0
        ranked = sorted((sign * v, index) for index, v in self.on(stage).items() if v is not None)
        return [index for _, index in ranked[:count]]


class Fitness(base.Fitness):  # type: ignore[misc]  # DEAP has no types
    """A search score as DEAP's fitness: one objective, to be maximised."""

    weights = (1.0,)


class Pool:
    """The best `size` architectures. Scores are relative to the baseline's best so far, so they are
    computed anew."""

    def __init__(self, size: int, stages: Sequence[Stage], baseline: Architecture) -> None:
        self.size = size
        self.stages = [stage for stage in stages if not stage.is_filter]
        self.baseline = baseline
        self.members: list[Architecture] = []

    def score(self, architecture: Architecture) -> float:
        """The minimum over tasks of the ratio to the baseline's best; 0 when a task has no
        result."""
        return score(
            {stage.name: architecture.best(stage) for stage in self.stages},
            self._baseline(),
            {stage.name: stage.task.maximise for stage in self.stages},
        )

    def fitness(self, architecture: Architecture) -> Fitness:
        return Fitness((self.score(architecture),))

    def ranked(self) -> list[Architecture]:
        """The members, best first; of equals the older first."""
        return sorted(self.members, key=self.fitness, reverse=True)

    def statistics(self) -> dict[str, float]:
        """Best, mean and worst score of the members."""
        statistics = tools.Statistics(self.score)
        for name, reduce in (("best", max), ("mean", fmean), ("worst", min)):
            statistics.register(name, reduce)
        return dict(statistics.compile(self.members)) if self.members else {}

    def ratio(self, architecture: Architecture, stage: Stage) -> float:
        """The ratio to the baseline's best on one task."""
        return score(
            {stage.name: architecture.best(stage)},
            {stage.name: self._baseline()[stage.name]},
            {stage.name: stage.task.maximise},
        )

    def _baseline(self) -> Mapping[str, float]:
        best = {stage.name: self.baseline.best(stage) for stage in self.stages}
        return {name: value for name, value in best.items() if value is not None}

    def offer(self, architecture: Architecture) -> bool:
        """Take it in: as a new member while there is room, else in the place of the worst if it
        scores better.

        Of equals the older stays. The one displaced is marked as not pooled.
        """
        if len(self.members) < self.size:
            self.members.append(architecture)
        else:
            worst = self.ranked()[-1]
            if self.fitness(architecture) <= self.fitness(worst):
                return False
            worst.pooled = False
            self.members.remove(worst)
            self.members.append(architecture)
        architecture.pooled = True
        return True

"""What the search decided, and when: the funnel, the pool and the scores, result by result.

A search consumes results in the order of their virtual ends (see `search.loop`), so all that it
decided follows from the journal, without training and without torch. The rules are those of
`search.algorithms.funnelled`, `search.pool` and `evaluators.fitness`, which cannot be imported
here because they load torch; a test holds the two against each other. The pool is that of the best
cells, whatever the algorithm takes its parents from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.journal import UnitRow

TINY = 1e-12  # losses below this count as this, as in `evaluators.fitness`


@dataclass(frozen=True)
class Stage:
    """One step of the funnel, as the run wrote it down.

    `metric` is what the search compares, `unit` the number that papers print where that differs.
    """

    name: str
    metric: str
    maximise: bool
    unit: str | None
    family: str
    is_filter: bool
    threshold: float
    steps: int
    settings_in_grid: int
    relative: bool = False  # a filter whose threshold is a share of the baseline's best
    abandons: bool = False  # who can no longer enter the pool goes no further from here

    @property
    def customary(self) -> str:
        """The metric in which results of this task are usually given."""
        return self.unit or self.metric

    def better(self, value: float, than: float | None) -> bool:
        return than is None or (value > than if self.maximise else value < than)


def ratio(value: float | None, base: float | None, maximise: bool) -> float | None:
    """A result relative to the baseline's, above 1 is better (Jozefowicz et al. 2015, equation 1).

    No result, 0: it never improves on a trained cell. No usable baseline, None.
    """
    if base is None or not math.isfinite(base) or base <= 0:
        return None
    if value is None or not math.isfinite(value):
        return 0.0
    return value / base if maximise else base / max(value, TINY)


@dataclass(frozen=True)
class Decision:
    """A candidate came to the end of a stage."""

    candidate: int
    key: str
    stage: str
    passed: bool


@dataclass(frozen=True)
class Moment:
    """The pool after a candidate had left the funnel, with the baseline's best of that moment."""

    candidate: int
    key: str
    tried: int  # candidates that had left the funnel, this one included
    score: float | None  # of this candidate; None when it did not get through
    best: float
    worst: float
    members: int


@dataclass
class History:
    """Everything that was decided, in order. Empty until `follow` is called, once."""

    stages: Sequence[Stage]
    seeds: Sequence[str]  # keys
    baseline: str | None  # key
    pool_size: int
    decisions: list[Decision] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)  # keys
    tried: int = 0  # candidates that have left the funnel
    _best: dict[tuple[str, str], float] = field(default_factory=dict)  # by key and stage

    def follow(
        self,
        units: Sequence[UnitRow],
        keys: Mapping[int, str],
        values: Mapping[int, Sequence[float | None]],
    ) -> None:
        """Go through the results that the search has consumed.

        keys    of each candidate
        values  for each unit that has a result, what each of its settings counts for
        """
        by_name = {stage.name: stage for stage in self.stages}
        for unit in sorted(units, key=lambda u: (u.end, u.id)):
            if unit.id not in values:
                return  # what ends later has not been looked at, even if its result is there
            key, stage = keys[unit.candidate], by_name[unit.stage]
            purpose = unit.payload["purpose"]
            if purpose != "seed" and not self.pool:  # nothing starts before all seeds are known
                for seed in self.seeds:
                    self._offer(seed)
            for value in values[unit.id]:
                if value is not None and stage.better(value, self._best.get((key, stage.name))):
                    self._best[key, stage.name] = value
            if purpose == "candidate":
                self._decide(unit.candidate, key, stage)

    def score(self, key: str) -> float:
        """The minimum over tasks of the ratio to the baseline; 0 without a result or baseline."""
        tasks = [stage for stage in self.stages if not stage.is_filter]
        return min((self._ratio(key, stage) or 0.0 for stage in tasks), default=0.0)

    def _ratio(self, key: str, stage: Stage) -> float | None:
        base = None if self.baseline is None else self._best.get((self.baseline, stage.name))
        return ratio(self._best.get((key, stage.name)), base, stage.maximise)

    def _decide(self, candidate: int, key: str, stage: Stage) -> None:
        if stage.is_filter and stage.relative:
            passed = (self._ratio(key, stage) or 0.0) >= stage.threshold
        elif stage.is_filter:
            best = self._best.get((key, stage.name))
            passed = best is not None and best >= stage.threshold
        else:
            found = self._ratio(key, stage) or 0.0
            passed = found > stage.threshold
            if passed and stage.abandons and len(self.pool) >= self.pool_size:
                passed = found > min(map(self.score, self.pool))
        self.decisions.append(Decision(candidate, key, stage.name, passed))
        through = passed and stage == self.stages[-1]
        if through:
            self._offer(key)
        if through or not passed:
            self.tried += 1
            scores = [self.score(member) for member in self.pool] or [0.0]
            score = self.score(key) if through else None
            self.moments.append(
                Moment(candidate, key, self.tried, score, max(scores), min(scores), len(scores))
            )

    def _offer(self, key: str) -> None:
        """In the place of the worst if it scores better; of equals the older stays."""
        if key in self.pool:
            return
        if len(self.pool) < self.pool_size:
            self.pool.append(key)
            return
        worst = min(reversed(self.pool), key=self.score)
        if self.score(key) > self.score(worst):
            self.pool.remove(worst)
            self.pool.append(key)

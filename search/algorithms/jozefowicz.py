"""The search of Jozefowicz, Zaremba and Sutskever 2015 (sections 3.1 to 3.3): a pool of the best
100, and a funnel.

The pool starts with the seeds (LSTM and GRU in the paper), trained on many settings of every task.
Then each step either re-evaluates a random member of the pool with fresh settings, or mutates one
and sends the child through the funnel: memorisation on one setting, then task after task, as long
as its best result exceeds 90 % of the GRU's best.

Where the paper is silent: a step re-evaluates with probability `search.reevaluate`; settings of a
child are counted per task when "more than 420" is asked for; of equal scores the older member
stays; the tasks come in the order of the configuration.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from search.algorithms import Proposal
from search.algorithms.funnelled import Funnelled
from search.archive import Architecture
from search.funnel import Stage


class Jozefowicz(Funnelled):
    """Ask/tell state of the search; its population is the pool."""

    def __init__(self, *arguments: Any) -> None:
        self._best_of_seeds: dict[str, list[int]] = {}  # by stage, until a seed has a new result
        super().__init__(*arguments)

    def _parents(self, rng: random.Random) -> list[Architecture]:
        count = 2 if self.config.mutation.crossover else 1
        return [rng.choice(self.pool.members) for _ in range(count)]

    def _epoch(self) -> int:
        return self.pool.joined  # whoever is a member is as likely as any other

    def _survives(self, architecture: Architecture) -> None:
        """The pool has taken it already, if it is good enough."""

    def _noted(self, architecture: Architecture) -> None:
        super()._noted(architecture)
        if architecture in self.seeds:
            self._best_of_seeds.clear()

    def _seeds_best(self, stage: Stage) -> list[int]:
        """The settings that were best for seeds: the best of each, then the second best, …"""
        found = self._best_of_seeds.get(stage.name)
        if found is None:
            most = self.config.best_settings
            ranked = sorted(
                (rank, index)
                for seed in self.seeds
                for rank, index in enumerate(seed.best_settings(stage, most))
            )
            found = list(dict.fromkeys(index for _, index in ranked))[:most]
            self._best_of_seeds[stage.name] = found
        return found

    def _proposes(self, rng: random.Random) -> bool:
        return rng.random() >= self.config.reevaluate

    def _otherwise(self, rng: random.Random) -> bool:
        """Fresh random settings on every task for a random member; False when no member has any
        left."""
        member = rng.choice(self.pool.members)
        if member.busy:
            return False
        proposal = Proposal(member.candidate, member, "pool")
        works = []
        for stage in self.tasks:
            indices = stage.grid.sample(rng, self.config.settings, member.on(stage))
            if indices:
                works.append(self._work(proposal, stage, indices, "re-evaluation"))
        self._enqueue(works)
        member.busy = bool(works)
        return bool(works)

    def _inherit(
        self,
        stage: Stage,
        tried: Mapping[int, float | None],
        parent: Architecture,
        rng: random.Random,
    ) -> list[int]:
        """Settings for a child (section 3.3), none of which it has tried.

        From a well-known parent 80 % are drawn from its best; otherwise a third each is fresh, from
        the seeds' best, and from those tried on the parent.
        """
        mine, most = parent.on(stage), self.config.best_settings
        experienced = len(mine) > self.config.experienced_after
        own_best = parent.best_settings(stage, most) if experienced else []
        chosen: list[int] = []
        for _ in range(self.config.settings):
            if experienced:
                source = own_best if rng.random() < 0.8 else []
            else:
                source = rng.choice([[], self._seeds_best(stage), list(mine)])
            left = [index for index in source if index not in tried and index not in chosen]
            if left:
                chosen.append(rng.choice(left))
            else:
                chosen += stage.grid.sample(rng, 1, [*tried, *chosen])
        return chosen

"""Regularised evolution (Real et al. 2019, arXiv 1802.01548, algorithm 1): a population from which
the oldest leaves, however good it is.

A parent is the best of a random sample of the population. In the paper every child enters the
population; here one that the funnel rejects does not, because it has no score on all tasks. Where
the paper fills the population with random cells first, this one begins with the seeds and grows.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from search.algorithms.funnelled import Funnelled
from search.archive import Architecture


class Aging(Funnelled):
    """Ask/tell state of regularised evolution."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.population: deque[Architecture] = deque()  # the oldest first

    def _parents(self, rng: random.Random) -> list[Architecture]:
        return [self._winner(rng)] + ([self._winner(rng)] if self.config.mutation.crossover else [])

    def _winner(self, rng: random.Random) -> Architecture:
        count = min(self.config.tournament, len(self.population))
        sample = rng.sample(range(len(self.population)), count)
        # Of equals the younger one: the other has had its chances.
        return self.population[
            max(sample, key=lambda at: (self.scores.score(self.population[at]), at))
        ]

    def _survives(self, architecture: Architecture) -> None:
        self.population.append(architecture)
        architecture.alive += 1
        if len(self.population) > self.config.pool:
            self.population.popleft().leave()

"""NSGA-II (Deb et al. 2002) over score, parameters and the time of a step, with DEAP's selection.

The time is the planned one (`search.funnel`), a function of the graph alone, so that a run stays
exact. Parents win a tournament by rank and crowding distance. It is a steady state: each candidate
that comes through the funnel joins the population, and the selection that NSGA-II makes once a
generation removes one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from deap import base, tools

import cellgraph as cg
from search.algorithms.funnelled import Funnelled
from search.archive import Architecture

WIDTH = 64  #: H and X at which parameters are counted


class Objectives(base.Fitness):  # type: ignore[misc]  # DEAP has no types
    """Score up, parameters and seconds of a step down."""

    weights = (1.0, -1.0, -1.0)


@dataclass(eq=False)
class Member:
    """An architecture as DEAP selects it."""

    architecture: Architecture
    parameters: int
    seconds: float
    fitness: Objectives


class Nsga2(Funnelled):
    """Ask/tell state of NSGA-II."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.population: list[Member] = []

    def _parents(self, rng: random.Random) -> list[Architecture]:
        self._rate()
        count = 2 if self.config.mutation.crossover else 1
        return [self._winner(rng).architecture for _ in range(count)]

    def _winner(self, rng: random.Random) -> Member:
        """Of two random members the one that dominates, else the one with more room around it."""
        first, second = rng.choice(self.population), rng.choice(self.population)
        if second.fitness.dominates(first.fitness):
            return second
        if first.fitness.dominates(second.fitness):
            return first
        roomier = second.fitness.crowding_dist > first.fitness.crowding_dist
        return second if roomier else first

    def _survives(self, architecture: Architecture) -> None:
        cell = architecture.cell
        setting = self.tasks[0].grid[0]
        seconds = self.tasks[0].cost(cell, [setting]) / self.tasks[0].budget.steps
        parameters = cg.count_parameters(cell, WIDTH, WIDTH)
        self.population.append(Member(architecture, parameters, seconds, Objectives()))
        architecture.alive += 1
        self._rate()
        if len(self.population) > self.config.pool:
            kept = tools.selNSGA2(self.population, self.config.pool)
            (gone,) = (m for m in self.population if not any(m is other for other in kept))
            self.population.remove(gone)
            gone.architecture.leave()

    def _rate(self) -> None:
        """The members' objectives now, as scores move with the baseline's best, and the room that
        each has in its front."""
        for member in self.population:
            member.fitness.values = (
                self.scores.score(member.architecture),
                member.parameters,
                member.seconds,
            )
        for front in tools.sortNondominated(self.population, len(self.population)):
            tools.emo.assignCrowdingDist(front)

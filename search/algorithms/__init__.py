"""Search algorithms, one a file, each an ask/tell object over explicit state. Nothing here trains
or stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cellgraph import CellGraph
from evaluators import Settings
from search.config import Config
from search.errors import SearchError
from search.funnel import Stage


@dataclass(frozen=True)
class Proposal:
    """A cell to be tried, under an id of its own; the same cell may be proposed again later."""

    id: int
    cell: CellGraph
    origin: str  # seed, mutation, crossover
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Work:
    """A unit of work: some settings of one stage for one proposal. `new` is set on the first of a
    proposal."""

    proposal: Proposal
    stage: Stage
    indices: tuple[int, ...]  # of the settings in the stage's grid
    purpose: str  # seed, candidate, re-evaluation
    new: bool = False

    @property
    def settings(self) -> list[Settings]:
        return [self.stage.grid[index] for index in self.indices]

    @property
    def cost(self) -> float:
        return self.stage.cost(self.proposal.cell, self.settings)


@dataclass(frozen=True)
class Progress:
    """How far a search is: first through the units of its seeds, then through its candidates."""

    phase: str  # seeds, candidates
    done: int
    total: int


class Algorithm(Protocol):
    """What the loop drives. `ask` may depend only on what was told; it is never given the time."""

    def ask(self) -> Work | None:
        """The next unit, or None when nothing can be started before something is told, or at the
        end."""

    def tell(self, work: Work, records: Sequence[Mapping[str, Any]]) -> None:
        """The result of a unit: one record per setting, in order."""

    def progress(self) -> Progress:
        """How far the search is."""

    def funnel(self) -> list[tuple[str, int, int]]:
        """(stage, candidates that finished it, candidates that passed it), in order."""

    def standing(self) -> list[tuple[float, str]]:
        """(score, name) of the pool, best first."""

    def statistics(self) -> dict[str, float]:
        """Best, mean and worst score of the pool; empty before it has members."""


def create(config: Config, stages: Sequence[Stage], seeds: Sequence[CellGraph]) -> Algorithm:
    """The algorithm that the configuration names. Raises SearchError."""
    from search.algorithms.jozefowicz import Jozefowicz

    known: dict[str, Callable[..., Algorithm]] = {"jozefowicz": Jozefowicz}
    name = config.search.algorithm
    if name not in known:
        raise SearchError(f"search.algorithm is {name!r}, expected one of {', '.join(known)}")
    return known[name](config, stages, seeds)

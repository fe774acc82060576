"""Search algorithms, one a file, each an ask/tell object over explicit state. Nothing here trains
or stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from cellgraph import CellGraph
from evaluators import Rung, Settings
from search.archive import Architecture
from search.config import Config
from search.errors import SearchError
from search.funnel import Stage
from search.journal import CandidateRow


@dataclass(frozen=True)
class Proposal:
    """A cell to be tried, under an id of its own; the same cell may be proposed again later.

    detail: how it came about, as it goes into the journal: `draws` that it took, how many of them
    gave no valid cell, a duplicate by key, or one by its values, and its own fingerprint.
    """

    id: int
    architecture: Architecture
    origin: str  # seed, mutation, crossover, walk
    parents: tuple[int, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> CellGraph:
        return self.architecture.cell


@dataclass(frozen=True)
class Work:
    """A unit of work: some settings of one stage for one proposal. `new` is set on the first of a
    proposal."""

    proposal: Proposal
    stage: Stage
    indices: tuple[int, ...]  # of the settings in the stage's grid
    purpose: str  # seed, candidate, re-evaluation
    rungs: tuple[Rung, ...] = ()
    new: bool = False
    target: float | None = None  # training ends here; None: as the stage has it

    @cached_property
    def settings(self) -> list[Settings]:
        return [self.stage.grid[index] for index in self.indices]

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What is trained, as plain data for the journal and the workers; not to be changed."""
        settings = [setting.to_dict() for setting in self.settings]
        plan = {"settings": settings, "rungs": [rung.to_dict() for rung in self.rungs]}
        return plan if self.target is None else {**plan, "target": self.target}

    @property
    def screen(self) -> bool:
        """Is the cell looked at before it is trained?"""
        return self.stage.screen and self.purpose == "candidate"

    @property
    def cost(self) -> float:
        return self.stage.cost(self.proposal.cell, self.settings, self.rungs)


@dataclass(frozen=True)
class Progress:
    """How far a search is: first through the units of its seeds, then through its candidates."""

    phase: str  # seeds, candidates
    done: int
    total: int


#: What a journal already holds of a proposal, by its id: a search that is resumed takes it from
#: there and does not draw it again. None: it has not been made yet.
Recall = Callable[[int], CandidateRow | None]


def nothing(proposal: int) -> CandidateRow | None:
    """The recollection of a search that starts, or that is to be checked draw by draw."""
    return None


class Algorithm(Protocol):
    """What the loop drives. `ask` may depend only on what was told; it is never given the time."""

    def prepare(self) -> bool:
        """Work ahead while there is nothing else to do; False when there is nothing to work at.

        It changes no answer: what comes to be told makes void what was prepared without it.
        """

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
        """(score, name) of the best, best first."""

    def best(self, count: int) -> list[tuple[float, CellGraph]]:
        """The best `count` cells with their scores, best first."""

    def statistics(self) -> dict[str, float]:
        """Best, mean and worst score of the best cells; empty before there are any."""

    def draws(self) -> dict[str, int]:
        """What was drawn until now: `draws` in all, of which `invalid` gave no valid cell,
        `duplicates` one that was known by its key, `equal` one that was known by its values."""


def create(
    config: Config,
    stages: Sequence[Stage],
    seeds: Sequence[CellGraph],
    recall: Recall = nothing,
) -> Algorithm:
    """The algorithm that the configuration names. Raises SearchError."""
    from search.algorithms.aging import Aging
    from search.algorithms.jozefowicz import Jozefowicz
    from search.algorithms.nsga2 import Nsga2
    from search.algorithms.random_walk import RandomWalk

    known: dict[str, Callable[..., Algorithm]] = {
        "jozefowicz": Jozefowicz,
        "aging": Aging,
        "nsga2": Nsga2,
        "random": RandomWalk,
    }
    name = config.search.algorithm
    if name not in known:
        raise SearchError(f"search.algorithm is {name!r}, expected one of {', '.join(known)}")
    return known[name](config, stages, seeds, recall)

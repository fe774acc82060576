"""What all algorithms share: seeds that are trained first, proposals that are never known cells,
and the funnel that a candidate passes through, stage by stage.

An algorithm adds who the parents are, and who survives. Everything is drawn from generators that
are seeded by (run seed, step) or (run seed, proposal, stage), so that a proposal that a journal
already holds need not be drawn again.
"""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from evaluators import Rung
from search.algorithms import Progress, Proposal, Recall, Work, nothing
from search.algorithms.draws import Draw, Step
from search.archive import Architecture, Archive, Scores
from search.config import Config
from search.errors import SearchError
from search.funnel import Stage
from search.journal import CandidateRow
from search.pool import Pool

#: Times that parents are drawn for one proposal before the search gives up: the space around them
#: is exhausted.
PARENTS = 100

#: Steps that are prepared while there is nothing else to do, at most: what a wait for a worker has
#: time for. What more there were would often be void before its turn comes.
AHEAD = 4

#: What a draw can come to, beside a cell that is tried.
WASTED = ("invalid", "duplicates", "equal")


class Funnelled(ABC):
    """Ask/tell state of a search; `_parents` and `_survives` are an algorithm's own."""

    def __init__(
        self,
        config: Config,
        stages: Sequence[Stage],
        seeds: Sequence[CellGraph],
        recall: Recall = nothing,
    ) -> None:
        self.config = config.search
        self.seed = config.seed
        self.recall = recall
        self.filter = stages[0] if stages[0].is_filter else None
        self.tasks = [stage for stage in stages if not stage.is_filter]
        self.archive = Archive()
        self.first: dict[int, Architecture] = {}  # by the proposal that brought it in
        self.origins: list[Proposal] = []  # of the seeds
        self.queue: deque[Work] = deque()  # units that are already decided
        self.waiting: dict[int, int] = {}  # proposal -> units of it under way or queued
        self.counts = {stage.name: [0, 0] for stage in stages}  # finished, passed
        self.drawn: Counter[str] = Counter()
        self.steps = self.proposals = self.tried = self.finished = 0
        # The baseline's best after each rung, by stage.
        self.levels: dict[str, list[float | None]] = {
            stage.name: [None] * len(stage.rungs) for stage in stages
        }
        self._rungs: dict[tuple[str, bool], tuple[Rung, ...]] = {}  # of units, at these levels
        self.seeds = [self._enter_seed(cell) for cell in seeds]
        self.baseline = self.seeds[config.search.seeds.index(config.search.baseline)]
        self.scores = Scores(stages, self.baseline)
        self.pool = Pool(self.config.pool, self.scores)
        self.changes = 0  # in the population, or in the scores of its members
        self._ahead: dict[int, Step] = {}  # steps that have been prepared, by their numbers
        self.seeded = False  # are all seeds known?
        self._plan_seeds()
        self.seed_units = len(self.queue)

    # -- an algorithm's own

    @abstractmethod
    def _parents(self, rng: random.Random) -> list[Architecture]:
        """Who the next proposal is made from: one, or two where there is crossover."""

    @abstractmethod
    def _survives(self, architecture: Architecture) -> None:
        """A seed, or a candidate that has come through the funnel, enters the population."""

    def _epoch(self) -> int:
        """Changes with everything that `_parents` depends on."""
        return self.changes

    def _proposes(self, rng: random.Random) -> bool:
        """Is it the business of this step to propose a cell? It depends on `rng` alone."""
        return True

    def _otherwise(self, rng: random.Random) -> bool:
        """Queue what else a step may do; False when there is nothing of it to do."""
        return False

    # -- ask

    def ask(self) -> Work | None:
        while not self.queue and self.seeded and self.tried < self.config.candidates:
            step = self._ahead.pop(self.steps, None)
            if step is None or step.epoch != self._epoch():
                step = self._start(self.steps)
            self.steps += 1
            if step.proposes or not self._otherwise(step.rng):
                self._propose(step.draws)
        return self.queue.popleft() if self.queue else None

    def prepare(self) -> bool:
        left = self.config.candidates - self.tried if self.seeded else 0
        for number in range(self.steps, self.steps + min(AHEAD, left)):
            step = self._ahead.get(number)
            if step is None or step.epoch != self._epoch():
                step = self._ahead[number] = self._start(number)
                if step.proposes:
                    first = next(step.draws)
                    step.draws = itertools.chain([first], step.draws)
                    if not self.config.retry:
                        first.inspect()
                return True
        return False

    def _start(self, number: int) -> Step:
        rng = random.Random(f"{self.seed}/step/{number}")  # text is hashed by SHA-512
        return Step(self._epoch(), rng, self._proposes(rng), self._draws(rng))

    def _draws(self, rng: random.Random) -> Iterator[Draw]:
        """Children, until the space around the parents is exhausted."""
        for _ in range(PARENTS):
            parents = self._parents(rng)
            for _ in range(self.config.mutation.attempts):
                used, origin, child = self._vary(parents, rng)
                if child is not None and len(child.nodes) > self.config.mutation.max_nodes:
                    child = None
                yield Draw.of(used, origin, child)

    def _propose(self, draws: Iterator[Draw]) -> None:
        """Draw children until one appears that may be tried now, and send it into the funnel."""
        row = self.recall(self.proposals)
        if row is not None:
            self._remember(row)
            return
        wasted = Counter(dict.fromkeys(WASTED, 0))
        for draw in draws:
            if self._admit(draw, wasted):
                return
        raise SearchError(
            f"no new cell within {PARENTS} × {self.config.mutation.attempts} draws, "
            "expected a larger search.mutation.max_nodes or other search.seeds"
        )

    def _vary(
        self, parents: Sequence[Architecture], rng: random.Random
    ) -> tuple[Sequence[Architecture], str, CellGraph | None]:
        """The parents that were used, the origin, and the child."""
        crossing = self.config.mutation.crossover
        if crossing and rng.random() < crossing:
            mother, father = parents[0], parents[-1]
            return (mother, father), "crossover", cg.crossover(mother.cell, father.cell, rng)
        return parents[:1], "mutation", self._mutate(parents[0].cell, rng)

    def _mutate(self, cell: CellGraph, rng: random.Random) -> CellGraph | None:
        """A child, as the configuration wants it."""
        edits = self.config.mutation.edits
        return cg.mutate(cell, rng, edits=None if isinstance(edits, str) else edits)

    def _admit(self, draw: Draw, wasted: Counter[str]) -> bool:
        """Start the child, unless it is known; then the archive has its results already."""
        child = draw.child
        if child is None:
            wasted["invalid"] += 1
            return False
        key = child.key()
        known, fingerprint = self.archive.get(key), None
        if known is None and not self.config.retry:
            fingerprint = draw.fingerprint
            known = self.archive.equal(child, fingerprint)
            if known is not None:
                wasted["equal"] += 1
                return False
        if known is not None and not self._again(known):
            wasted["duplicates"] += 1
            return False
        detail: dict[str, Any] = {"draws": 1 + wasted.total(), **wasted}
        if fingerprint is not None:
            detail["fingerprint"] = fingerprint
        architecture = known or Architecture(self.proposals, key, child)
        ids = tuple(parent.candidate for parent in draw.parents)
        proposal = Proposal(self.proposals, architecture, draw.origin, ids, detail)
        return self._begin(proposal, draw.parents[0])

    def _remember(self, row: CandidateRow) -> None:
        """Start a proposal as the journal has it."""
        known = self.archive.get(row.key)
        architecture = known or Architecture(row.id, row.key, row.cell)
        parent = self.first[row.parents[0]]
        proposal = Proposal(row.id, architecture, row.origin, row.parents, row.detail)
        if not self._begin(proposal, parent):
            raise SearchError(f"the journal holds a candidate {row.id} that could not be tried")

    def _again(self, known: Architecture) -> bool:
        """May a cell be tried again, on other settings (Jozefowicz et al. 2015, section 3.1)?"""
        return self.config.retry and not (known.busy or known.alive)

    def _begin(self, proposal: Proposal, parent: Architecture) -> bool:
        """Queue the first unit of a proposal; False when it has no setting left to be tried on.

        A cell that passed the filter skips it.
        """
        architecture = proposal.architecture
        first = self.tasks[0]
        if self.filter is not None and not architecture.passed_filter:
            first = self.filter
        indices = self._draw_settings(proposal, first, parent)
        if not indices:
            return False
        self._enter(proposal)
        self.drawn.update({name: int(proposal.detail.get(name, 0)) for name in ("draws", *WASTED)})
        self.tried += 1
        self._enqueue([self._work(proposal, first, indices, "candidate", new=True)])
        return True

    def _draw_settings(self, proposal: Proposal, stage: Stage, parent: Architecture) -> list[int]:
        """Settings that the cell has not been trained on; the filter is one random setting.

        Drawn from the proposal's own generator, so that it does not matter what else was told
        meanwhile.
        """
        rng = random.Random(f"{self.seed}/{proposal.id}/{stage.name}")
        tried = proposal.architecture.on(stage)
        if stage.is_filter:
            return stage.grid.sample(rng, 1, tried)
        return self._inherit(stage, tried, parent, rng)

    def _inherit(
        self,
        stage: Stage,
        tried: Mapping[int, float | None],
        parent: Architecture,
        rng: random.Random,
    ) -> list[int]:
        """Settings for a child on a task: random ones."""
        return stage.grid.sample(rng, self.config.settings, tried)

    # -- tell

    def tell(self, work: Work, records: Sequence[Mapping[str, Any]]) -> None:
        architecture, stage = work.proposal.architecture, work.stage
        for index, record in zip(work.indices, records, strict=True):
            architecture.note(stage, index, stage.metric(record))
            self._noted(architecture)
            if architecture.alive or architecture is self.baseline:
                self.changes += 1
            if architecture is self.baseline and stage.rungs:
                self._level(stage, record)
        self.waiting[work.proposal.id] -= 1
        if work.purpose == "candidate":
            self._advance(work)
        if self.waiting[work.proposal.id] == 0:
            del self.waiting[work.proposal.id]
            architecture.rest()
            self.finished += work.purpose == "candidate"
            if work.purpose == "seed" and not any(seed.busy for seed in self.seeds):
                self._seeds_done()

    def _noted(self, architecture: Architecture) -> None:
        """There is a new result of it."""
        self.pool.told(architecture)

    def _level(self, stage: Stage, record: Mapping[str, Any]) -> None:
        """What the baseline had reached after each rung."""
        levels = self.levels[stage.name]
        for number, value in enumerate(record.get("at_rungs", ())[: len(levels)]):
            if value is not None and stage.better(value, levels[number]):
                levels[number] = value
                self._rungs.clear()

    def _advance(self, work: Work) -> None:
        """On to the next stage, into the population, or out."""
        stage, architecture = work.stage, work.proposal.architecture
        if stage.is_filter:
            passed = architecture.passed_filter = self._passes_filter(architecture, stage)
            following = self.tasks[0]
        else:
            ratio = self.scores.ratio(architecture, stage)
            passed = ratio > stage.threshold
            if passed and stage.abandons:
                passed = self.pool.admits(ratio)
            following = self.tasks[min(self.tasks.index(stage) + 1, len(self.tasks) - 1)]
        self.counts[stage.name][0] += 1
        self.counts[stage.name][1] += passed
        if passed and following is stage:
            self.pool.offer(architecture)
            self._survives(architecture)
            self.changes += 1
        elif passed:
            parent = self.first[work.proposal.parents[0]]
            indices = self._draw_settings(work.proposal, following, parent)
            self._enqueue([self._work(work.proposal, following, indices, "candidate")])

    def _passes_filter(self, architecture: Architecture, stage: Stage) -> bool:
        if stage.relative:
            return self.scores.ratio(architecture, stage) >= stage.threshold
        best = architecture.best(stage)
        return best is not None and best >= stage.threshold

    # -- what is shown

    def progress(self) -> Progress:
        if not self.seeded:
            left = sum(self.waiting.get(seed.candidate, 0) for seed in self.seeds)
            return Progress("seeds", self.seed_units - left, self.seed_units)
        return Progress("candidates", self.finished, self.config.candidates)

    def funnel(self) -> list[tuple[str, int, int]]:
        return [(name, finished, passed) for name, (finished, passed) in self.counts.items()]

    def standing(self) -> list[tuple[float, str]]:
        return [(self.pool.score(member), member.name) for member in self.pool.ranked()]

    def best(self, count: int) -> list[tuple[float, CellGraph]]:
        ranked = self.pool.ranked()[:count]
        return [(self.pool.score(member), member.cell) for member in ranked]

    def statistics(self) -> dict[str, float]:
        return self.pool.statistics()

    def draws(self) -> dict[str, int]:
        return {name: self.drawn[name] for name in ("draws", *WASTED)}

    # -- bookkeeping

    def _enter(self, proposal: Proposal) -> None:
        """Count a proposal, and take a cell that is new into the archive."""
        self.proposals += 1
        architecture = proposal.architecture
        architecture.busy = True
        if self.archive.get(architecture.key) is None:
            self.archive.add(architecture, proposal.detail.get("fingerprint"))
            self.first[proposal.id] = architecture

    def _work(
        self,
        proposal: Proposal,
        stage: Stage,
        indices: Sequence[int],
        purpose: str,
        *,
        new: bool = False,
    ) -> Work:
        halving = purpose == "candidate"
        rungs = self._rungs.get((stage.name, halving))
        if rungs is None:
            rungs = stage.bars(self.levels[stage.name], halving=halving)
            self._rungs[stage.name, halving] = rungs
        target = self._target(stage) if halving else None
        return Work(proposal, stage, tuple(indices), purpose, rungs, new, target)

    def _target(self, stage: Stage) -> float | None:
        """Where a filter has seen enough: at the metric that passes it, when that is a share of the
        baseline's."""
        if not (stage.is_filter and stage.relative):
            return None
        bar = stage.bar(stage.threshold, self.baseline.best(stage))
        # A ratio is rounded: what stops here must not turn out a last digit short of the threshold.
        return None if bar is None else bar * (1 + 1e-12)

    def _enqueue(self, works: Sequence[Work]) -> None:
        for work in works:
            self.queue.append(work)
            self.waiting[work.proposal.id] = self.waiting.get(work.proposal.id, 0) + 1

    # -- seeds

    def _enter_seed(self, cell: CellGraph) -> Architecture:
        fingerprint = None if self.config.retry else cg.fingerprint(cell)
        detail = {} if fingerprint is None else {"fingerprint": fingerprint}
        proposal = Proposal(
            self.proposals, Architecture(self.proposals, cell.key(), cell), "seed", (), detail
        )
        self._enter(proposal)
        self.origins.append(proposal)
        return proposal.architecture

    def _plan_seeds(self) -> None:
        """Every seed on every task (and on a filter whose threshold is relative), `seed_settings`
        settings in units of `settings`."""
        filters = [self.filter] if self.filter is not None and self.filter.relative else []
        for proposal in self.origins:
            new = True
            for stage in [*filters, *self.tasks]:
                wanted = self.config.seed_settings
                # The same settings for every seed: their comparison does not depend on the draw.
                rng = random.Random(f"{self.seed}/seeds/{stage.name}")
                count = len(stage.grid) if isinstance(wanted, str) else min(wanted, len(stage.grid))
                indices = stage.grid.sample(rng, count)
                for start in range(0, count, self.config.settings):
                    some = indices[start : start + self.config.settings]
                    self._enqueue([self._work(proposal, stage, some, "seed", new=new)])
                    new = False

    def _seeds_done(self) -> None:
        relative = [self.filter] if self.filter is not None and self.filter.relative else []
        for stage in [*relative, *self.tasks]:
            best = self.baseline.best(stage)
            if best is None or best <= 0:
                raise SearchError(
                    f"the baseline {self.baseline.name} has no usable result on "
                    f"{stage.name} ({best}), expected at least one setting that learns: "
                    "give it more settings, steps or another grid"
                )
        self.seeded = True
        for seed in self.seeds:
            seed.passed_filter = True
            self.pool.offer(seed)
            self._survives(seed)

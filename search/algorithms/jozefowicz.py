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
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from search.algorithms import Progress, Proposal, Work
from search.config import Config
from search.errors import SearchError
from search.funnel import Stage
from search.pool import Architecture, Pool

#: Parents that are tried for one proposal before the search gives up: the space around the pool is
#: exhausted.
PARENTS = 100


class Jozefowicz:
    """Ask/tell state of the search. Everything it draws comes from generators seeded by (run seed,
    step)."""

    def __init__(self, config: Config, stages: Sequence[Stage], seeds: Sequence[CellGraph]) -> None:
        self.config = config.search
        self.seed = config.seed
        self.filter = stages[0] if stages[0].is_filter else None
        self.tasks = [stage for stage in stages if not stage.is_filter]
        self.architectures: dict[str, Architecture] = {}  # by key
        self.first: dict[int, Architecture] = {}  # by the proposal that brought it in
        self.seeds: list[Architecture] = []
        self.queue: deque[Work] = deque()  # units that are already decided
        self.waiting: dict[int, int] = {}  # proposal -> units of it under way or queued
        self.counts = {stage.name: [0, 0] for stage in stages}  # finished, passed
        self.steps = self.proposals = self.tried = self.finished = 0
        for cell in seeds:
            self.seeds.append(self._start(cell, "seed")[0])
        baseline = self.seeds[config.search.seeds.index(config.search.baseline)]
        self.pool = Pool(self.config.pool, stages, baseline)
        self._plan_seeds()
        self.seed_units = len(self.queue)

    # -- ask

    def ask(self) -> Work | None:
        if not self.queue and self.pool.members:  # it has some once every seed is done
            while not self.queue and self.tried < self.config.candidates:
                self._step()
        return self.queue.popleft() if self.queue else None

    def _step(self) -> None:
        rng = random.Random(f"{self.seed}/step/{self.steps}")  # a text seed is hashed by SHA-512
        self.steps += 1
        if rng.random() >= self.config.reevaluate or not self._reevaluate(rng):
            self._propose(rng)

    def _reevaluate(self, rng: random.Random) -> bool:
        """Fresh random settings on every task for a random member; False when no member has any
        left."""
        member = rng.choice(self.pool.members)
        if member.busy:
            return False
        proposal = Proposal(member.candidate, member.cell, "pool")
        works = []
        for stage in self.tasks:
            indices = stage.grid.sample(rng, self.config.settings, member.on(stage))
            if indices:
                works.append(Work(proposal, stage, tuple(indices), "re-evaluation"))
        self._enqueue(member, works)
        return bool(works)

    def _propose(self, rng: random.Random) -> None:
        """Mutate random members until a child appears that may be tried now, and send it into the
        funnel."""
        for _ in range(PARENTS):
            parent = rng.choice(self.pool.members)
            for _ in range(self.config.mutation.attempts):
                parents, origin, child = self._vary(parent, rng)
                if child is not None and len(child.nodes) <= self.config.mutation.max_nodes:
                    known = self.architectures.get(child.key())
                    if self._admit(child, known, origin, parents, rng):
                        self.tried += 1
                        return
        raise SearchError(
            f"no new cell within {PARENTS} × {self.config.mutation.attempts} draws, "
            "expected a larger search.mutation.max_nodes or other search.seeds"
        )

    def _vary(
        self, parent: Architecture, rng: random.Random
    ) -> tuple[tuple[Architecture, ...], str, CellGraph | None]:
        edits = self.config.mutation.edits
        between = None if isinstance(edits, str) else edits
        if self.config.mutation.crossover and rng.random() < self.config.mutation.crossover:
            other = rng.choice(self.pool.members)
            return (parent, other), "crossover", cg.crossover(parent.cell, other.cell, rng)
        return (parent,), "mutation", cg.mutate(parent.cell, rng, edits=between)

    def _admit(
        self,
        child: CellGraph,
        known: Architecture | None,
        origin: str,
        parents: tuple[Architecture, ...],
        rng: random.Random,
    ) -> bool:
        """Start the child, unless it is under way, in the pool, or has no untried setting left.

        A cell that failed the filter may be tried again on another setting; one that passed it
        skips it.
        """
        if known is not None and (known.busy or known.pooled):
            return False
        stage = (
            self.tasks[0] if self.filter is None or (known and known.passed_filter) else self.filter
        )
        count = 1 if stage.is_filter else self.config.settings
        tried = known.on(stage) if known else {}
        indices = self._inherit(stage, tried, parents[0], count, rng)
        if not indices:
            return False
        architecture, proposal = self._start(child, origin, tuple(p.candidate for p in parents))
        self._enqueue(architecture, [Work(proposal, stage, tuple(indices), "candidate", new=True)])
        return True

    def _inherit(
        self,
        stage: Stage,
        tried: Mapping[int, float | None],
        parent: Architecture,
        count: int,
        rng: random.Random,
    ) -> list[int]:
        """Settings for a child (section 3.3), none of which it has tried.

        From a well-known parent 80 % are drawn from its best; otherwise a third each is fresh, from
        the seeds' best, and from those tried on the parent. The filter is one random setting
        (section 3.1).
        """
        if stage.is_filter:
            return stage.grid.sample(rng, count, tried)
        mine = parent.on(stage)
        own_best = parent.best_settings(stage, self.config.best_settings)
        seeds_best = [
            index
            for _, index in sorted(
                (rank, index)
                for seed in self.seeds
                for rank, index in enumerate(seed.best_settings(stage, self.config.best_settings))
            )
        ]
        chosen: list[int] = []
        for _ in range(count):
            if len(mine) > self.config.experienced_after:
                source = own_best if rng.random() < 0.8 else []
            else:
                source = rng.choice(
                    [[], list(dict.fromkeys(seeds_best))[: self.config.best_settings], list(mine)]
                )
            left = [index for index in source if index not in tried and index not in chosen]
            if left:
                chosen.append(rng.choice(left))
            else:
                chosen += stage.grid.sample(rng, 1, [*tried, *chosen])
        return chosen

    # -- tell

    def tell(self, work: Work, records: Sequence[Mapping[str, Any]]) -> None:
        architecture = self.architectures[work.proposal.cell.key()]
        for index, record in zip(work.indices, records, strict=True):
            architecture.on(work.stage)[index] = work.stage.metric(record)
        self.waiting[work.proposal.id] -= 1
        if work.purpose == "candidate":
            self._advance(architecture, work)
        if self.waiting[work.proposal.id] == 0:
            del self.waiting[work.proposal.id]
            architecture.busy = False
            self.finished += work.purpose == "candidate"
            if work.purpose == "seed" and not any(a.busy for a in self.seeds):
                self._seeds_done()

    def _advance(self, architecture: Architecture, work: Work) -> None:
        """On to the next stage, into the pool, or out."""
        stage = work.stage
        if stage.is_filter:
            best = architecture.best(stage)
            passed = architecture.passed_filter = best is not None and best >= stage.threshold
            following = self.tasks[0]
        else:
            passed = self.pool.ratio(architecture, stage) > stage.threshold
            following = self.tasks[min(self.tasks.index(stage) + 1, len(self.tasks) - 1)]
        self.counts[stage.name][0] += 1
        self.counts[stage.name][1] += passed
        if passed and following is stage:
            self.pool.offer(architecture)
        elif passed:
            # Drawn from the proposal's own generator, so that it does not matter what else was told
            # meanwhile.
            rng = random.Random(f"{self.seed}/{work.proposal.id}/{following.name}")
            parent = self.first[work.proposal.parents[0]]
            indices = self._inherit(
                following, architecture.on(following), parent, self.config.settings, rng
            )
            self._enqueue(
                architecture, [Work(work.proposal, following, tuple(indices), "candidate")]
            )

    def progress(self) -> Progress:
        if not self.pool.members:
            left = sum(self.waiting.get(seed.candidate, 0) for seed in self.seeds)
            return Progress("seeds", self.seed_units - left, self.seed_units)
        return Progress("candidates", self.finished, self.config.candidates)

    def funnel(self) -> list[tuple[str, int, int]]:
        return [(name, finished, passed) for name, (finished, passed) in self.counts.items()]

    def standing(self) -> list[tuple[float, str]]:
        return [(self.pool.score(member), member.cell.name) for member in self.pool.ranked()]

    def statistics(self) -> dict[str, float]:
        return self.pool.statistics()

    # -- bookkeeping

    def _start(
        self, cell: CellGraph, origin: str, parents: tuple[int, ...] = ()
    ) -> tuple[Architecture, Proposal]:
        """A new proposal of this cell, with the architecture's earlier record where there is
        one."""
        proposal = Proposal(self.proposals, cell, origin, parents)
        self.proposals += 1
        known = self.architectures.get(cell.key())
        if known is None:
            known = self.architectures[cell.key()] = Architecture(proposal.id, cell)
            self.first[proposal.id] = known
        return known, proposal

    def _enqueue(self, architecture: Architecture, works: Sequence[Work]) -> None:
        for work in works:
            self.queue.append(work)
            self.waiting[work.proposal.id] = self.waiting.get(work.proposal.id, 0) + 1
            architecture.busy = True

    def _plan_seeds(self) -> None:
        """Every seed on every task, `seed_settings` settings in units of `settings`."""
        for seed in self.seeds:
            proposal = Proposal(seed.candidate, seed.cell, "seed")
            new = True
            for stage in self.tasks:
                wanted = self.config.seed_settings
                # The same settings for every seed: their comparison does not depend on the draw.
                rng = random.Random(f"{self.seed}/seeds/{stage.name}")
                count = len(stage.grid) if isinstance(wanted, str) else min(wanted, len(stage.grid))
                indices = stage.grid.sample(rng, count)
                for start in range(0, count, self.config.settings):
                    some = tuple(indices[start : start + self.config.settings])
                    self._enqueue(seed, [Work(proposal, stage, some, "seed", new=new)])
                    new = False

    def _seeds_done(self) -> None:
        for stage in self.tasks:
            best = self.pool.baseline.best(stage)
            if best is None or best <= 0:
                raise SearchError(
                    f"the baseline {self.pool.baseline.cell.name} has no usable result on "
                    f"{stage.name} ({best}), expected at least one setting that learns: "
                    "give it more settings, steps or another grid"
                )
        for seed in self.seeds:
            seed.passed_filter = True
            self.pool.offer(seed)

"""The stages that a cell passes through, cheapest first, and what a unit of work in each is planned
to cost.

A stage joins a task, the grid its settings are drawn from, a budget and the bar for going on. Which
cell enters which stage with which settings is the algorithm's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cellgraph as cg
from cellgraph import CellError, CellGraph
from evaluators import Budget, Grid, Rung, Settings, tasks
from evaluators.task import Task
from search.config import TAG, Config, FilterConfig, GridConfig, RungConfig, StageConfig
from search.errors import SearchError
from search.typed import FieldError

#: Planned seconds of one elementwise or matrix call, forward and backward together, and of one
#: floating-point operation. Only ratios between units matter, and only for how busy the workers
#: are.
CALL_SECONDS, FLOP_SECONDS = 10e-6, 5e-11


@dataclass(frozen=True)
class Stage:
    """One step of the funnel. `threshold` is a share of the baseline's best; in a filter that is
    not `relative`, an accuracy. `screen`: cells are looked at before they are trained here.
    `abandons`: who can no longer enter the pool goes no further from here."""

    name: str
    task: Task
    options: Mapping[str, Any]
    grid: Grid
    budget: Budget
    threshold: float
    is_filter: bool
    rungs: tuple[RungConfig, ...] = ()
    relative: bool = True
    screen: bool = False
    abandons: bool = False

    def metric(self, record: Mapping[str, Any]) -> float | None:
        """What a training counts for: its metric when it ended well, else None. Failures improve
        nothing."""
        if record["status"] != "ok":
            return None
        value = record["metrics"].get(self.task.metric)
        return None if value is None else float(value)

    def better(self, value: float, than: float | None) -> bool:
        return than is None or (value > than if self.task.maximise else value < than)

    def best(self, values: Sequence[float | None]) -> float | None:
        """The best of some metrics, None when there is none."""
        found: float | None = None
        for value in values:
            if value is not None and self.better(value, found):
                found = value
        return found

    def bars(self, baseline: Sequence[float | None], *, halving: bool) -> tuple[Rung, ...]:
        """The rungs of a unit. baseline: the baseline's best at each of them, None where it is not
        known. Without halving nobody is stopped: the values there are only measured."""
        if not halving:
            return tuple(Rung(steps=rung.steps) for rung in self.rungs)
        return tuple(
            Rung(steps=rung.steps, keep=rung.keep, bar=self.bar(rung.bar, base))
            for rung, base in zip(self.rungs, baseline, strict=True)
        )

    def bar(self, share: float | None, base: float | None) -> float | None:
        """The metric at which the ratio to the baseline's is `share`."""
        if not share or base is None:
            return None
        return share * base if self.task.maximise else base / share

    def cost(
        self, cell: CellGraph, settings: Sequence[Settings], rungs: Sequence[Rung] = ()
    ) -> float:
        """Planned seconds, a pure function of cell, settings and budget, whatever early stopping
        does later: of the settings that may go on, the dearest do."""
        seconds = sorted((self._step_cost(cell, setting) for setting in settings), reverse=True)
        total, begin = 0.0, 0
        for rung in rungs:
            total += (rung.steps - begin) * sum(seconds)
            begin, seconds = rung.steps, seconds[: rung.keep]
        return total + (self.budget.steps - begin) * sum(seconds)

    def _step_cost(self, cell: CellGraph, setting: Settings) -> float:
        """Planned seconds of one training step."""
        inner = sum(1 for node in cell.nodes if node.args)
        # Parameters of a model are used once a step and row, and about twice more in the backward
        # pass.
        flops = 6.0 * setting.params * self.task.unroll * self.task.batch_size
        calls = inner * setting.layers * self.task.unroll
        return calls * CALL_SECONDS + flops * FLOP_SECONDS


def stages(config: Config) -> list[Stage]:
    """The filter, when there is one, then the tasks in order. Loads their data. Raises DataError,
    SearchError."""
    entries: list[FilterConfig | StageConfig] = list(config.tasks)
    if config.filter is not None:
        entries.insert(0, config.filter)
    made = [_stage(entry, config) for entry in entries]
    names = [stage.name for stage in made]
    for name in names:
        if names.count(name) > 1:
            raise SearchError(
                f"task {name} stands {names.count(name)} times in the configuration, expected once"
            )
    return made


def _stage(entry: FilterConfig | StageConfig, config: Config) -> Stage:
    task = tasks.create(entry.task, **entry.options)
    is_filter = isinstance(entry, FilterConfig)
    if is_filter and task.metric != "accuracy":
        raise SearchError(
            f"filter.task is {entry.task}, which is not scored by accuracy, expected memorisation"
        )
    return Stage(
        name=task.name,
        task=task,
        options=entry.options,
        grid=_grid(entry.grid or config.grid, entry.params),
        budget=Budget(
            steps=entry.steps,
            eval_every=entry.eval_every,
            schedule="constant" if isinstance(entry, FilterConfig) else entry.schedule,
            target=entry.threshold if isinstance(entry, FilterConfig) else None,
            seconds=config.timeout,
        ),
        threshold=entry.threshold if isinstance(entry, FilterConfig) else config.search.threshold,
        is_filter=is_filter,
        rungs=entry.rungs,
        relative=entry.relative if isinstance(entry, FilterConfig) else True,
        screen=isinstance(entry, FilterConfig) and entry.screen,
        abandons=config.search.abandons and not is_filter and entry is not config.tasks[-1],
    )


def _grid(values: GridConfig, params: tuple[int, ...]) -> Grid:
    return Grid(
        optimizer=values.optimizer,
        scale=values.scale,
        lr=values.lr,
        clip=values.clip,
        layers=values.layers,
        dropout=values.dropout,
        params=params,
    )


def resolved(config: Config) -> Config:
    """The configuration with the names of cells in the place of `tag:TAG`. A cell of a tag whose
    key another seed has is left out, and one that a search cannot start from: states of several
    widths. Raises CellError, SearchError."""
    given = config.search.seeds
    if not any(seed.startswith(TAG) for seed in given):
        return config
    taken = {cg.load(seed).key() for seed in given if not seed.startswith(TAG)}
    names: list[str] = []
    for seed in given:
        if not seed.startswith(TAG):
            names.append(seed)
            continue
        for name in _tagged(seed):
            cell = cg.zoo.get(name)
            if cell.key() not in taken and len(cell.widths) == 1:
                taken.add(cell.key())
                names.append(name)
    try:
        return replace(config, search=replace(config.search, seeds=tuple(names)))
    except FieldError as error:
        raise SearchError(f"search.{error}") from None


def _tagged(seed: str) -> list[str]:
    try:
        return cg.zoo.tagged(seed.removeprefix(TAG))
    except CellError as error:
        raise SearchError(f"search.seeds: {error}") from None


def seeds(config: Config) -> list[CellGraph]:
    """The cells the pool starts with, the baseline among them; of a resolved configuration. Raises
    CellError, SearchError."""
    cells = [cg.load(name) for name in config.search.seeds]
    keys = [cell.key() for cell in cells]
    for name, key in zip(config.search.seeds, keys, strict=True):
        if keys.count(key) > 1:
            raise SearchError(
                f"search.seeds: {name} is the same cell as another seed, expected different cells"
            )
    return cells

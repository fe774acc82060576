"""A run, read from its journal at one moment: `read` gives a `Run`, the source of every report.

Scores here are search scores: the best of the settings that happened to be tried, on validation
data. They say what the search saw, not how good a cell is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from reports import frames
from reports.history import History, Stage
from reports.trainings import RUNG, SCREEN, Training, best_trainings, trainings
from reports.wording import clean
from search.errors import SearchError
from search.journal import CandidateRow, EventRow, Journal, PackedCurves, ResultRow, UnitRow

_STATES = ("launched", "resumed", "finished", "interrupted")


@dataclass(frozen=True, eq=False)
class Run:
    """One run, finished or not. `reports.frames` describes the columns of its frames.

    records      one row per trained setting
    cells        one row per key, in the order of first proposals
    leaderboard  the cells that have a result on every task, best first, equal ones by key
    funnel       entered, finished and passed, by stage
    """

    directory: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    created: str
    stages: tuple[Stage, ...]
    seeds: tuple[str, ...]  # keys of those that were started, in the order of the configuration
    baseline: str | None  # key
    candidates: tuple[CandidateRow, ...]
    units: tuple[UnitRow, ...]
    results: Mapping[int, ResultRow]  # by unit, without their records
    events: tuple[EventRow, ...]
    trainings: tuple[Training, ...]
    best: Mapping[tuple[str, str], Training]  # by key and stage
    history: History
    cells: pd.DataFrame
    leaderboard: pd.DataFrame
    funnel: pd.DataFrame

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def tasks(self) -> tuple[Stage, ...]:
        """The stages that make up the score."""
        return tuple(stage for stage in self.stages if not stage.is_filter)

    @property
    def baseline_name(self) -> str:
        return str(self.config["search"]["baseline"])

    @property
    def state(self) -> str:
        """finished, interrupted or unfinished: still running, or its driver was killed."""
        last = next((e.kind for e in reversed(self.events) if e.kind in _STATES), "launched")
        return last if last in ("finished", "interrupted") else "unfinished"

    @cached_property
    def records(self) -> pd.DataFrame:
        """See above; made when it is asked for, no report needs it."""
        return frames.records(self.trainings)

    @cached_property
    def first(self) -> dict[str, CandidateRow]:
        """The candidate that brought each cell in, by key, in that order."""
        found: dict[str, CandidateRow] = {}
        for row in self.candidates:
            found.setdefault(row.key, row)
        return found

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Plain counts.

        candidates  proposals beside the seeds; planned, started, and decided: out of the funnel
        trainings   settings; all those of a unit that was lost count, with steps unknown as 0
        rejections  those that ended at the screen, untrained, and at a rung
        draws       children that were drawn for the proposals; of those invalid (no valid cell),
                    duplicates (known by key) and equal (known by their values)
        seconds     the sum over units of the wall time of their last attempt
        busy        share of their time that workers worked, of all drivers that were not killed;
                    None before one has come to an end
        retries     attempts beyond the first
        fallbacks   units for which the compiler failed; torch did its work
        """
        statuses = Counter(training.status for training in self.trainings)
        rejections = Counter(training.rejected for training in self.trainings)
        kinds = Counter(event.kind for event in self.events)
        return {
            "candidates_planned": int(self.config["search"]["candidates"]),
            "candidates": sum(row.origin != "seed" for row in self.candidates),
            "candidates_decided": self.history.tried,
            "cells": len(self.first),
            "units": len(self.units),
            "units_done": len(self.results),
            "trainings": len(self.trainings),
            "steps": sum(training.steps for training in self.trainings),
            "seconds": float(sum(result.seconds for result in self.results.values())),
            "statuses": {name: statuses[name] for name in sorted(statuses)},
            "rejections": {name: rejections[name] for name in (SCREEN, RUNG)},
            "busy": self._busy(),
            **self._draws(),
            "retries": sum(result.attempts - 1 for result in self.results.values()),
            "fallbacks": len({training.unit for training in self.trainings if training.fallback}),
            "workers_lost": kinds["worker_lost"],
            "resumed": kinds["resumed"],
        }

    def _draws(self) -> dict[str, int]:
        names = ("draws", "invalid", "duplicates", "equal")
        return {n: sum(int(row.detail.get(n, 0)) for row in self.candidates) for n in names}

    def _busy(self) -> float | None:
        uses = [e.detail for e in self.events if e.kind in ("finished", "interrupted")]
        worked, offered = (
            sum(u[name] for u in uses if isinstance(u, Mapping) and isinstance(u.get(name), float))
            for name in ("worked", "offered")
        )
        return worked / offered if offered else None

    @cached_property
    def fallbacks(self) -> dict[str, int]:
        """How many units each reason of a fallback befell, the most frequent first."""
        met = dict.fromkeys((str(t.fallback), t.unit) for t in self.trainings if t.fallback)
        return dict(Counter(reason for reason, _ in met).most_common())

    def find(self, prefix: str) -> str:
        """The key that begins with these hexadecimal digits; SearchError for none or several."""
        if not prefix or any(c not in "0123456789abcdef" for c in prefix):
            raise SearchError(
                f"key {clean(prefix)!r}, expected the first hexadecimal digits of a cell's key"
            )
        keys = [key for key in self.first if key.startswith(prefix)]
        if not keys:
            raise SearchError(
                f"{self.directory} holds no cell whose key begins with {prefix}, "
                f"see: cellsearch inspect {self.directory}"
            )
        if len(keys) > 1:
            raise SearchError(
                f"{len(keys)} cells of {self.directory} have keys beginning with {prefix}, "
                "expected more digits"
            )
        return keys[0]

    def parents(self, key: str) -> tuple[str, ...]:
        """The keys of the cells that this one was made from; none for a seed."""
        known = {candidate.id: candidate.key for candidate in self.candidates}
        return tuple(known[parent] for parent in self.first[key].parents)

    def lineage(self, key: str) -> list[str]:
        """Keys from the cell itself up to a seed; of two parents the first is followed."""
        line = [key]
        while parents := self.parents(line[-1]):
            line.append(parents[0])
        return line

    def curves(self, key: str) -> pd.DataFrame:
        """Every learning curve of a cell: a row per evaluation on validation data.

        Columns: stage, unit, index, status, step, train_loss, loss (nats per scored step), metric.
        """
        rows = [
            (t.stage, t.unit, t.index, t.status, *point)
            for t in self.trainings
            if t.key == key
            for point in t.curve
        ]
        names = ["stage", "unit", "index", "status", "step", "train_loss", "loss", "metric"]
        frame = pd.DataFrame(rows, columns=names)
        return frame.astype(dict.fromkeys(("train_loss", "loss", "metric"), float))


def read(directory: str | Path) -> Run:
    """The run in `directory` as it is now. Raises SearchError when it holds none."""
    directory = Path(directory)
    try:
        return _read(directory)
    except (AttributeError, KeyError, TypeError) as error:
        # Rows that are JSON, but not of the form that the search writes.
        raise SearchError(
            f"{directory}: its journal holds rows that cellsearch did not write "
            f"({type(error).__name__}: {error})"
        ) from error


def _read(directory: Path) -> Run:
    with Journal.read(directory) as journal:
        meta = dict(journal.meta)
        candidates, units = tuple(journal.candidates()), tuple(journal.units())
        events = tuple(journal.events())
        try:
            config, environment = json.loads(meta["config"]), json.loads(meta["environment"])
            stages = tuple(_stage(about) for about in json.loads(meta["stages"]))
            texts = json.loads(meta["seeds"])
            baseline_text = texts[config["search"]["seeds"].index(config["search"]["baseline"])]
            pool_size, created = int(config["search"]["pool"]), meta["created"]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise SearchError(
                f"{directory}: its journal does not describe a run "
                f"({type(error).__name__}: {error}), expected one that cellsearch launched"
            ) from None
        _check(directory, stages, candidates, units)
        keys = {row.id: row.key for row in candidates}
        by_id = {row.id: row for row in units}
        results: dict[int, ResultRow] = {}

        def pairs() -> Iterator[tuple[ResultRow, PackedCurves]]:
            for row, curves in journal.packed():
                results[row.unit] = replace(row, records=())  # what they say, a Training says
                yield row, curves

        trained = tuple(trainings(directory, by_id, pairs(), keys, stages))
    # A seed is a candidate from the moment at which its first unit of work is handed out.
    started = {row.cell: row.key for row in candidates if row.origin == "seed"}
    seeds = tuple(started[text] for text in texts if text in started)
    values: dict[int, list[float | None]] = {unit: [] for unit in results}
    for training in trained:
        values[training.unit].append(training.metric)
    history = History(stages, seeds, started.get(baseline_text), pool_size)
    history.follow(units, keys, values)
    best = best_trainings(trained, stages)
    cells = frames.cells(stages, candidates, units, results, trained, best, history)
    return Run(
        directory=directory,
        config=config,
        environment=environment,
        created=created,
        stages=stages,
        seeds=seeds,
        baseline=history.baseline,
        candidates=candidates,
        units=units,
        results=results,
        events=events,
        trainings=trained,
        best=best,
        history=history,
        cells=cells,
        leaderboard=frames.leaderboard(cells),
        funnel=frames.funnel(stages, units, trained, history),
    )


def leaderboard_text(run: Run) -> str:
    """The leaderboard as tab-separated lines with every digit: runs agree when these texts do.

    Nothing in it depends on time, machine or the number of workers.
    """
    head = ["rank", "score", "key", "name", "origin", "settings"]
    lines = ["\t".join([*head, *(f"{clean(s.name)}:{clean(s.metric)}" for s in run.tasks)])]
    for row in run.leaderboard.to_dict("records"):
        values = [row["rank"], row["score"], row["key"], row["name"], row["origin"]]
        values += [row["settings"], *(row[f"best.{stage.name}"] for stage in run.tasks)]
        lines.append("\t".join(clean(value) for value in values))
    return "\n".join(lines) + "\n"


def _stage(about: Mapping[str, Any]) -> Stage:
    return Stage(**{"is_filter" if name == "filter" else name: v for name, v in about.items()})


def _check(
    directory: Path,
    stages: tuple[Stage, ...],
    candidates: tuple[CandidateRow, ...],
    units: tuple[UnitRow, ...],
) -> None:
    """Parents come before their children, so that every lineage ends; units are of known stages."""
    known: dict[int, None] = {}
    for row in candidates:
        for parent in row.parents:
            if parent not in known:
                raise SearchError(
                    f"{directory}: candidate {row.id} names the parent {parent}, "
                    "expected an earlier candidate"
                )
        known[row.id] = None
    names = [stage.name for stage in stages]
    for unit in units:
        if unit.stage not in names:
            raise SearchError(
                f"{directory}: unit {unit.id} is of stage {clean(unit.stage)}, "
                f"expected one of {', '.join(names)}"
            )

"""The page of a run: one HTML file without scripts that opens offline, on any screen and on paper.

The same journal gives the same page. What it says is chosen here; how it looks is in `templates/`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

import cellgraph as cg
from cellgraph import CellError
from reports import confirmed, wording
from reports.collect import Run
from reports.equations import aligned, inherited, lines
from reports.facts import NOTE, leaderboard_data, status_data
from reports.figures import Figure, Point, Series, bars, chart
from reports.history import Stage
from reports.trainings import Training
from search.errors import SearchError

RANKS = 30  #: rows of the leaderboard
CARDS = 5  #: discovered cells that are shown with their equations
ANCESTORS = 20  #: of each of them


def write(run: Run, path: str | Path) -> Path:
    """Write the page, or replace it, as a whole; returns its path.

    Raises SearchError when the file cannot be written; an older page then stays as it was.
    """
    path = Path(path)
    text = render(run)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise SearchError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def render(run: Run) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "whole": wording.whole,
        "decimal": wording.decimal,
        "duration": wording.duration,
        "heading": wording.heading,
        "settings": wording.settings,
        "clean": wording.clean,
    }
    environment.globals |= {"quantity": wording.quantity, "labelled": wording.labelled}
    return environment.get_template("page.html").render(context(run))


def context(run: Run) -> dict[str, Any]:
    """What the template is given."""
    return {
        "run": run,
        "status": status_data(run),
        "note": NOTE,
        "search": run.config["search"],
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
        "environment": run.environment,
        "stages": [_stage(run, stage) for stage in run.stages],
        "funnel": _funnel(run),
        "board": leaderboard_data(run, RANKS),
        "shown": _shown(run),
        "cards": [_card(run, key) for key in _shown(run)],
        "curves": [_curves(run, stage) for stage in run.tasks],
        "progress": _progress(run),
        "failures": _failures(run),
        "confirmed": confirmed.fragment(run.directory),
    }


def _stage(run: Run, stage: Stage) -> dict[str, Any]:
    mine = [training for training in run.trainings if training.stage == stage.name]
    units = [unit.id for unit in run.units if unit.stage == stage.name]
    described = run.environment["data"].get(stage.name, {})
    return {
        "stage": stage,
        "trainings": len(mine),
        "failed": sum(training.status not in ("ok", "rejected") for training in mine),
        "seconds": sum(run.results[unit].seconds for unit in units if unit in run.results),
        "options": wording.settings(described.get("options", {})),
        "data": described.get("data"),
    }


def _funnel(run: Run) -> Figure | None:
    rows = [(row["stage"], row["finished"], row["passed"]) for row in run.funnel.to_dict("records")]
    if not any(finished for _, finished, _ in rows):
        return None
    return bars("Candidates by stage", rows, ("finished", "passed"))


def _shown(run: Run) -> list[str]:
    """The best discovered cells."""
    found = run.leaderboard[run.leaderboard["origin"] != "seed"]
    return [str(key) for key in found["key"].head(CARDS)]


def _card(run: Run, key: str) -> dict[str, Any]:
    row = run.leaderboard[run.leaderboard["key"] == key].to_dict("records")[0]
    line = run.lineage(key)
    return {
        "key": key,
        "row": row,
        "equations": _equations(run.first[key].cell),
        "results": [
            (stage, training)
            for stage in run.tasks
            if (training := run.best.get((key, stage.name))) is not None
        ],
        "lineage": [
            (run.first[ancestor], inherited(run, ancestor)) for ancestor in line[:ANCESTORS]
        ],
        "older": max(0, len(line) - ANCESTORS),
    }


def _equations(text: str) -> str:
    """A journal outlives versions: notation that no longer parses is shown as it stands."""
    try:
        return aligned(lines(cg.parse(text)))
    except CellError:
        return text


def _curves(run: Run, stage: Stage) -> Figure | None:
    """The best setting of the best discovered cell and of every seed."""
    coloured = [(0, key) for key in _shown(run)[:1]] + list(enumerate(run.seeds, start=1))
    shown = [
        _learning(run.first[key].name, stage, training, colour)
        for colour, key in coloured
        if (training := run.best.get((key, stage.name))) is not None and training.curve
    ]
    if not shown:
        return None
    return chart(stage.name, "training steps", wording.heading(stage.metric), shown)


def _learning(name: str, stage: Stage, training: Training, colour: int) -> Series:
    points = [
        (float(step), wording.plotted(stage.metric, metric))
        if step is not None and wording.present(metric)
        else None
        for step, _, _, metric in training.curve
    ]
    best = wording.quantity(stage.metric, training.metric)
    return Series(f"{name} (best {best})", points, colour)


def _progress(run: Run) -> Figure | None:
    """The pool, and the cells that got through, over the candidates that left the funnel."""
    moments = run.history.moments
    if not moments:
        return None
    through = [(m, m.score) for m in moments if m.score is not None]
    return chart(
        "Search score",
        "candidates tried",
        f"minimum over tasks of the ratio to {run.baseline_name}",
        [
            Series("best of the pool", _stairs([(m.tried, m.best) for m in moments]), 0),
            Series(
                "a candidate that passed every stage",
                [(moment.tried, score) for moment, score in through],
                1,
                line=False,
                dots=True,
                notes=[f"{run.first[m.key].name} {m.key[:8]}: {s:.4f}" for m, s in through],
            ),
        ],
        band=(
            _stairs([(m.tried, m.worst) for m in moments]),
            _stairs([(m.tried, m.best) for m in moments]),
        ),
        level=(1.0, f"{run.baseline_name} = 1"),
    )


def _stairs(points: Sequence[Point]) -> list[Point]:
    """The pool stays as it is until the next candidate: a level up to it, then a step."""
    corners = [(after[0], before[1]) for before, after in pairwise(points)]
    return [points[0], *(point for pair in zip(corners, points[1:], strict=True) for point in pair)]


def _failures(run: Run) -> list[dict[str, Any]]:
    """By stage and status: how many trainings of how many cells did not come to their end, those
    that were rejected among them, and the first as an example."""
    groups: dict[tuple[str, str], list[Training]] = {}
    for stage in run.stages:
        for training in run.trainings:
            if training.stage == stage.name and training.status != "ok":
                groups.setdefault((stage.name, training.status), []).append(training)
    return [
        {
            "stage": stage,
            "status": status,
            "trainings": len(found),
            "cells": len(Counter(training.key for training in found)),
            "error": found[0].error or "no message",
            "example": run.first[found[0].key],
        }
        for (stage, status), found in groups.items()
    ]

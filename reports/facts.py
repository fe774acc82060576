"""What the tables say, as JSON-able data: the documents of `--json`.

No NaN and no numpy numbers in here: what is missing is None.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.zoo import Info
from reports import structure
from reports.collect import Run
from reports.equations import inherited, lines, sizes
from reports.history import Stage
from reports.wording import present

NOTE = (
    "search scores: the best of the settings tried, on validation data, relative to the best of "
    "the baseline; not results on test data"
)


def leaderboard_data(run: Run, limit: int | None = None) -> dict[str, Any]:
    """The first `limit` rows of the leaderboard, all by default."""
    rows = run.leaderboard if limit is None else run.leaderboard.head(limit)
    return {
        "run": run.name,
        "state": run.state,
        "baseline": run.baseline_name,
        "note": NOTE,
        "ranked": len(run.leaderboard),
        "cells": [
            {
                "rank": int(row["rank"]),
                "key": row["key"],
                "name": row["name"],
                "origin": row["origin"],
                "seed": row["origin"] == "seed",
                "baseline": row["key"] == run.baseline,
                "pooled": bool(row["pooled"]),
                "outcome": row["outcome"],
                "score": float(row["score"]),
                "settings": int(row["settings"]),
                "results": {stage.name: _result(row, stage) for stage in run.tasks},
            }
            for row in rows.to_dict("records")
        ],
    }


def _result(row: dict[Any, Any], stage: Stage) -> dict[str, Any]:
    return {
        "metric": stage.metric,
        "value": _number(row[f"best.{stage.name}"]),
        "ratio": _number(row[f"ratio.{stage.name}"]),
        "customary": {
            "metric": stage.customary,
            "value": _number(row[f"customary.{stage.name}"]),
        },
        "settings": int(row[f"tried.{stage.name}"]),
    }


def cell_data(run: Run, prefix: str) -> dict[str, Any]:
    """Everything about one cell of a run. Raises SearchError for an unknown or ambiguous key."""
    key = run.find(prefix)
    first = run.first[key]
    cell = cg.parse(first.cell)
    row = run.cells[run.cells["key"] == key].to_dict("records")[0]
    place = run.leaderboard.index[run.leaderboard["key"] == key]
    return {
        "run": run.name,
        "note": NOTE,
        "key": key,
        "name": first.name,
        "origin": first.origin,
        "outcome": row["outcome"],
        "proposals": int(row["proposals"]),
        "pooled": bool(row["pooled"]),
        "score": _number(row["score"]),
        "rank": int(place[0]) + 1 if len(place) else None,
        "baseline": run.baseline_name,
        **_structure(cell),
        "lineage": [_ancestor(run, ancestor) for ancestor in run.lineage(key)],
        "stages": [_stage(run, key, stage, row) for stage in run.stages],
    }


def _ancestor(run: Run, key: str) -> dict[str, Any]:
    first = run.first[key]
    return {
        "key": key,
        "name": first.name,
        "origin": first.origin,
        "parents": list(run.parents(key)),
        "changes": inherited(run, key),
    }


def _stage(run: Run, key: str, stage: Stage, row: dict[Any, Any]) -> dict[str, Any]:
    mine = [t for t in run.trainings if t.key == key and t.stage == stage.name]
    statuses = Counter(training.status for training in mine)
    best = run.best.get((key, stage.name))
    return {
        "name": stage.name,
        "filter": stage.is_filter,
        "metric": stage.metric,
        "maximise": stage.maximise,
        "settings": len(mine),
        "statuses": {name: statuses[name] for name in sorted(statuses)},
        "errors": list(dict.fromkeys(t.error for t in mine if t.error)),
        "ratio": None if stage.is_filter else _number(row[f"ratio.{stage.name}"]),
        "best": None
        if best is None
        else {
            "value": best.metric,
            "customary": {"metric": stage.customary, "value": best.customary},
            "loss": best.loss,
            "step": best.best_step,
            "setting": dict(best.setting),
            "hidden_size": best.hidden_size,
            "parameters": best.parameters,
            "flops_per_step": best.flops,
            "curve": [list(point) for point in best.curve],
        },
    }


def named_cell_data(cell: CellGraph, info: Info | None) -> dict[str, Any]:
    """A cell of the zoo or of a file; without `info` its comment stands for the title."""
    return {
        "name": cell.name,
        "key": cell.key(),
        "title": info.title if info else " ".join(cell.doc.split()),
        "reference": info.reference if info else "",
        "tags": list(info.tags) if info else [],
        "aliases": list(info.aliases) if info else [],
        "notes": info.notes if info else "",
        "constants": dict(info.constants) if info else {},
        **_structure(cell),
    }


def _structure(cell: CellGraph) -> dict[str, Any]:
    return {
        "notation": str(cell),
        "equations": [list(line) for line in lines(cell)],
        "states": [{"name": state.name, "width": state.width} for state in cell.states],
        "parameters": [
            {"name": p.name, "kind": p.kind, "rows": p.rows, "cols": p.cols} for p in cell.params
        ],
        "sizes": sizes(cell),
        "structure": structure.data(cell),
    }


def status_data(run: Run) -> dict[str, Any]:
    """How far a run is."""
    last = run.events[-1] if run.events else None
    seed_units = [u for u in run.units if u.payload["purpose"] == "seed"]
    return {
        "run": run.name,
        "directory": str(run.directory),
        "state": run.state,
        "created": run.created,
        "last_event": {"kind": last.kind, "at": _time(last.at)} if last else None,
        "seed_units": {
            "planned": _planned_seed_units(run),
            "done": sum(unit.id in run.results for unit in seed_units),
        },
        **run.totals,
        "fallback_reasons": run.fallbacks,
        "funnel": run.funnel.to_dict("records"),
        "best": leaderboard_data(run, 3)["cells"],
    }


def _planned_seed_units(run: Run) -> int:
    """Every seed on every task, `seed_settings` settings in units of `settings`."""
    search = run.config["search"]
    wanted, share = search["seed_settings"], int(search["settings"])
    settings = [
        s.settings_in_grid if wanted == "all" else min(int(wanted), s.settings_in_grid)
        for s in run.tasks
    ]
    return len(search["seeds"]) * sum(math.ceil(count / share) for count in settings)


def _time(seconds: float) -> str:
    """UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _number(value: float | None) -> float | None:
    return float(value) if present(value) else None

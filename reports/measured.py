"""What a confirmation has shown, as data, from RUN/confirm/journal.sqlite.

Everything here is measured on test data under fresh seeds; no score of the search comes near it.
Nothing is compared before the last training is in: a look half way through, and stopping when it
pleases, would make every p wrong.

A training that failed is a result too. It counts as the predictor that knows nothing (each outcome
as likely as any other), in the mean, the interval and the tests, and is counted beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from reports import inference
from search.errors import SearchError
from search.journal import FILE, CandidateRow, Journal, ResultRow, UnitRow

FOLDER = "confirm"


def holds_run(directory: str | Path) -> bool:
    """Is it the directory of a run?"""
    return (Path(directory) / FILE).is_file()


def begun(directory: str | Path) -> bool:
    """Is there a confirmation of the run?"""
    return (Path(directory) / FOLDER / FILE).is_file()


def read(directory: str | Path) -> dict[str, Any]:
    """The confirmation of a run as a JSON-able document.

    run, state (finished or unfinished), trainings (done, planned), options, notes
    tasks   name, metric, maximise, steps, parameters (the budget), settings (how many), uninformed
            (what a failure counts for), references (names), cells: best mean first
      cells key, name, role (baseline, found, random), rank, random, setting, tuning_failed, failed,
            values, statuses and errors by seed, mean, half (of the width of the interval),
            parameters, against: by reference difference, half, p, p_holm, verdict
    comparisons  how many tests Holm's correction is over
    claims  by cell: key, name, role, text

    `tasks` and `claims` are empty unless the state is finished. Raises SearchError, also when none
    was begun.
    """
    folder = Path(directory) / FOLDER
    try:
        return _document(Path(directory), folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SearchError):
            raise
        # Rows that are JSON, but not of the form that a confirmation writes.
        raise SearchError(
            f"{folder}: its journal holds rows that cellsearch did not write "
            f"({type(error).__name__}: {error})"
        ) from error


@dataclass(frozen=True)
class _Entry:
    """One cell on one task: its units, each with its result if there is one."""

    candidate: CandidateRow
    tuning: list[tuple[UnitRow, ResultRow | None]]
    measured: list[tuple[UnitRow, ResultRow | None]]

    @property
    def tuning_failed(self) -> int:
        return sum(row is not None and _fate(row)[0] != "ok" for _, row in self.tuning)

    def missing(self, settings: int, seeds: int) -> int:
        """Trainings that are still to come."""
        tuned = sum(row is not None for _, row in self.tuning)
        if tuned == self.tuning_failed == settings:
            return 0  # nothing worked, so nothing is measured
        return settings - tuned + seeds - sum(row is not None for _, row in self.measured)


def _document(directory: Path, folder: Path) -> dict[str, Any]:
    with Journal.read(folder) as journal:
        about, created = json.loads(journal.meta["confirmation"]), journal.meta["created"]
        entrants = len(json.loads(journal.meta["entrants"]))
        candidates, units = journal.candidates(), journal.units()
        results = {row.unit: row for row in journal.results()}
    tasks, seeds = about["tasks"], int(about["options"]["seeds"])
    entries = {(c.id, task["name"]): _Entry(c, [], []) for c in candidates for task in tasks}
    for unit in units:
        entry = entries[unit.candidate, unit.stage]
        kind = entry.tuning if unit.payload["phase"] == "tune" else entry.measured
        kind.append((unit, results.get(unit.id)))
    missing = sum(
        entries[i, task["name"]].missing(task["settings"], seeds)
        if i < len(candidates)
        else task["settings"] + seeds
        for i in range(entrants)
        for task in tasks
    )
    document: dict[str, Any] = {
        "run": str(directory),
        "state": "unfinished" if missing else "finished",
        "created": created,
        "trainings": {"done": len(results), "planned": len(results) + missing},
        "options": about["options"],
        "notes": about["notes"],
        "comparisons": 0,
        "tasks": [],
        "claims": [],
    }
    if not missing:
        for task in tasks:
            mine = [entries[candidate.id, task["name"]] for candidate in candidates]
            cells = [_cell(entry, task, about["options"]) for entry in mine]
            document["tasks"].append({**task, "cells": cells})
        document["comparisons"] = _compare(document["tasks"], about)
        document["notes"] += _untrainable(document["tasks"], list(about["references"]))
        document["claims"] = [_claim(candidate, document["tasks"]) for candidate in candidates]
        for task in document["tasks"]:
            sign = -1 if task["maximise"] else 1
            task["cells"].sort(key=lambda cell: (sign * cell["mean"], cell["name"], cell["key"]))
    return document


def _fate(row: ResultRow) -> tuple[str, str | None]:
    """Status and error of a training, whether it or its worker failed."""
    record: Mapping[str, Any] = row.records[0] if row.records else {}
    status = record["status"] if row.status == "ok" else row.status
    return str(status), record.get("error")


def _cell(entry: _Entry, task: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    values, statuses, errors, parameters = [], [], [], None
    for row in (row for _, row in entry.measured if row is not None):
        status, error = _fate(row)
        value = task["uninformed"]
        if status == "ok":
            parameters = row.records[0]["cost"]["parameters"]
            value = row.records[0]["test"][task["metric"]]
            if value is None:  # JSON has no NaN and no infinity
                status, error = "diverged", "no finite value on test data"
                value = task["uninformed"]
        values.append(float(value))
        statuses.append(status)
        errors.append(error)
    if not entry.measured:
        seeds = int(options["seeds"])
        values = [task["uninformed"]] * seeds
        statuses, errors = ["untrainable"] * seeds, ["every setting failed"] * seeds
    return {
        **_names(entry.candidate),
        "setting": entry.measured[0][0].payload["settings"][0] if entry.measured else None,
        "tuning_failed": entry.tuning_failed,
        "failed": sum(status != "ok" for status in statuses),
        "values": values,
        "statuses": statuses,
        "errors": errors,
        "mean": fmean(values),
        "half": inference.interval(values, 1 - options["alpha"]),
        "parameters": parameters,
        "against": {},
    }


def _names(candidate: CandidateRow) -> dict[str, Any]:
    return {
        "key": candidate.key,
        "name": candidate.name,
        "role": candidate.origin,
        "rank": candidate.detail["rank"],
        "random": candidate.detail["random"],
    }


def _compare(tasks: list[dict[str, Any]], about: Mapping[str, Any]) -> int:
    """Test every cell against every reference on every task; returns how many tests that were.

    The references against each other are one test, told twice.
    """
    alpha = about["options"]["alpha"]
    tests: dict[tuple[str, frozenset[str]], float] = {}
    rows = []
    for task in tasks:
        by_key = {cell["key"]: cell for cell in task["cells"]}
        # A reference that no setting could train says nothing about anybody else.
        usable = {
            name: key
            for name, key in about["references"].items()
            if by_key[key]["setting"] is not None
        }
        task["references"] = list(usable)
        for cell in task["cells"]:
            for name, key in usable.items():
                if cell["key"] != key:
                    test = (task["name"], frozenset((cell["key"], key)))
                    tests[test] = inference.paired(cell["values"], by_key[key]["values"])
                    rows.append((task, cell, name, by_key[key], test))
    adjusted = dict(zip(tests, inference.holm(list(tests.values())), strict=True))
    for task, cell, name, reference, test in rows:
        differences = [a - b for a, b in zip(cell["values"], reference["values"], strict=True)]
        mean = fmean(differences)
        verdict = "no difference shown"
        if adjusted[test] <= alpha:
            verdict = "better" if (mean > 0) == task["maximise"] else "worse"
        cell["against"][name] = {
            "difference": mean,
            "half": inference.interval(differences, 1 - alpha),
            "p": tests[test],
            "p_holm": adjusted[test],
            "verdict": verdict,
        }
    return len(tests)


def _untrainable(tasks: list[dict[str, Any]], names: list[str]) -> list[str]:
    """References that are left out, which readers must know."""
    return [
        f"{name} failed with every setting on {task['name']}: nothing is compared with it there"
        for task in tasks
        for name in names
        if name not in task["references"]
    ]


def _claim(candidate: CandidateRow, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """What can be said of a cell, in words."""
    said: dict[str, list[str]] = {"better": [], "worse": []}
    silent = False
    for task in tasks:
        cell = next(cell for cell in task["cells"] if cell["key"] == candidate.key)
        for name, test in cell["against"].items():
            if test["verdict"] in said:
                shown = probability(test["p_holm"])
                shown = f"p < {shown[1:]}" if shown.startswith("<") else f"p = {shown}"
                said[test["verdict"]].append(f"{name} on {task['name']} ({shown})")
            else:
                silent = True
    parts = [f"{word} than {', '.join(found)}" for word, found in said.items() if found]
    if silent or not parts:
        parts.append("no difference shown elsewhere" if parts else "no difference shown")
    return {**_names(candidate), "text": "; ".join(parts)}


def probability(value: float) -> str:
    """With three digits and without the zero in front: .012, <.001, 1."""
    if value < 0.001:
        return "<.001"
    return "1" if value >= 0.9995 else f"{value:.3f}".removeprefix("0")

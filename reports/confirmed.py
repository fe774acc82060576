"""The table of a confirmation (`reports.measured`): as text, and for the page of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reports import measured
from reports.measured import probability
from reports.wording import clean, plotted
from reports.wording import heading as metric_heading

WIDTH = 100  # of the text


def text(document: Mapping[str, Any]) -> str:
    """The tables and what they allow to claim, for a terminal or a file."""
    file = io.StringIO()
    out = Console(file=file, width=WIDTH, color_system=None)
    for line in introduction(document):
        out.print(clean(line), markup=False, highlight=False)
    for task in document["tasks"]:
        _print_task(out, task)
    if document["claims"]:
        level = f"{document['options']['alpha']:g}"
        out.print(f"\nWhat can be claimed, at the level {level} for all of it together:")
        for claim in document["claims"]:
            line = f"  {claim['name']} {claim['key'][:8]} ({role(claim)}): {claim['text']}"
            out.print(clean(line), markup=False, highlight=False, soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def introduction(document: Mapping[str, Any]) -> list[str]:
    """What was done, and how to read the numbers: one sentence or two a line."""
    options, trainings = document["options"], document["trainings"]
    lines = [f"Confirmation of {document['run']}, begun {document['created']}"]
    lines += [f"Note: {note}" for note in document["notes"]]
    if document["state"] != "finished":
        at = f"{trainings['done']:,} of {trainings['planned']:,} trainings"
        return [*lines, f"Not finished ({at}); go on with: cellsearch confirm {document['run']}"]
    return [
        *lines,
        "All cells: equal parameter budgets, trained from scratch with the same settings; of each "
        f"the best on validation data, then {options['seeds']} fresh seeds, measured on test data.",
        f"Means with {100 * (1 - options['alpha']):g} % confidence intervals over the seeds "
        f"(t, {options['seeds'] - 1} degrees of freedom). Differences: paired t-tests, the p after "
        f"Holm's correction over all {document['comparisons']:,} comparisons.",
        "A training that failed counts as the predictor that knows nothing.",
    ]


def role(cell: Mapping[str, Any]) -> str:
    """baseline, found 3, random, or found 3, random."""
    if cell["role"] != "found":
        return str(cell["role"])
    return f"found {cell['rank']}" + (", random" if cell["random"] else "")


def heading(task: Mapping[str, Any]) -> str:
    """A task, what is measured there, and on which terms."""
    metric, more = task["metric"], "more" if task["maximise"] else "less"
    return (
        f"{task['name']}: {metric_heading(metric)} on test data, {more} is better; "
        f"{task['steps']:,} steps, {task['parameters']:,} parameters, {task['settings']} settings; "
        f"a failure counts as {number(metric, task['uninformed'])}"
    )


def number(metric: str, value: float) -> str:
    """As many digits as a few seeds can tell apart."""
    return f"{plotted(metric, value):.{2 if metric == 'accuracy' else 3}f}"


def columns(task: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    """The cells of a row, in the order of `headings`."""
    metric = task["metric"]
    row = [
        clean(cell["name"]),
        cell["key"][:8],
        role(cell),
        number(metric, cell["mean"]),
        f"± {number(metric, cell['half'])}",
        f"{cell['tuning_failed']}/{task['settings']}",
        f"{cell['failed']}/{len(cell['values'])}",
    ]
    for reference in task["references"]:
        test = cell["against"].get(reference)
        row += (
            [_signed(metric, test["difference"]), probability(test["p_holm"])] if test else ["", ""]
        )
    return row


def headings(task: Mapping[str, Any]) -> list[str]:
    """Of the columns of a task's table."""
    names = ["cell", "key", "is", "mean", "", "tuning\nfailed", "seeds\nfailed"]
    return names + [text for name in task["references"] for text in (f"vs {name}", "p")]


def _signed(metric: str, value: float) -> str:
    return ("+" if value >= 0 else "-") + number(metric, abs(value))


def _print_task(out: Console, task: Mapping[str, Any]) -> None:
    out.print()
    out.print(heading(task), markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(headings(task)):
        table.add_column(name, justify="left" if index < 3 else "right", overflow="fold")
    for cell in task["cells"]:
        table.add_row(*columns(task, cell))
    out.print(table, highlight=False, markup=False)


def fragment(directory: str | Path) -> dict[str, Any] | None:
    """What `templates/confirmed.html` is given; None where a run has no confirmation."""
    if not measured.begun(directory):
        return None
    document = measured.read(directory)
    return {
        "lines": introduction(document),
        "tasks": [
            {
                "heading": heading(task),
                "headings": headings(task),
                "rows": [
                    {"baseline": cell["role"] == "baseline", "texts": columns(task, cell)}
                    for cell in task["cells"]
                ],
            }
            for task in document["tasks"]
        ],
        "claims": [{**claim, "role": role(claim)} for claim in document["claims"]],
    }

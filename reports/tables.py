"""Tables on the terminal; each has a twin in `reports.facts` that gives the same as data.

Without a terminal the text is plain and as wide as $COLUMNS says, 100 otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellgraph import CellGraph
from cellgraph.zoo import Info
from reports import facts, structure
from reports.collect import Run
from reports.equations import aligned
from reports.facts import cell_data, leaderboard_data, named_cell_data, status_data
from reports.wording import (
    clean,
    counts,
    decimal,
    duration,
    heading,
    labelled,
    quantity,
    settings,
    sparkline,
    whole,
)

__all__ = [
    "cell_data",
    "cell_page",
    "leaderboard",
    "leaderboard_data",
    "named_cell_data",
    "named_cell_page",
    "status",
    "status_data",
]

PLAIN_WIDTH = 100
#: Columns for a name in a table; those of the zoo and of found cells are shorter.
LONGEST_NAME = 20
#: Lines of a lineage or of changes that are shown; the rest is counted.
MOST = 12


def leaderboard(run: Run, limit: int = 20, console: Console | None = None) -> None:
    """Print the best cells, the seeds among them."""
    out = console or _console()
    data = leaderboard_data(run, limit)
    _print(out, f"{data['run']}: best of {data['ranked']} cells with a result on every task")
    if not data["cells"]:
        _print(out, f"none yet ({_progress(run)})")
        return
    _print(out, _note(run), style="dim")
    tasks = [f"{stage.name}\n{heading(stage.customary)}" for stage in run.tasks]
    table = _table(["", "cell", "key", "score", *tasks, "settings", "origin"], left=(1, 2))
    for cell in data["cells"]:
        table.add_row(
            *_texts(
                cell["rank"],
                cell["name"],
                cell["key"][:8],
                decimal(cell["score"]),
                *(_customary(result) for result in cell["results"].values()),
                whole(cell["settings"]),
                _origin(cell),
            ),
            style="bold" if cell["seed"] else None,
        )
    out.print(table)
    if data["ranked"] > len(data["cells"]):
        _print(out, f"and {data['ranked'] - len(data['cells'])} more")


def cell_page(run: Run, key: str, console: Console | None = None) -> None:
    """Print everything about one cell of a run. Raises SearchError as `Run.find` does."""
    out = console or _console()
    data = cell_data(run, key)
    _print(out, f"{data['name']} of {data['run']}: {data['outcome']}", style="bold")
    _print(out, f"key {data['key']}")
    if data["score"] is not None:
        place = f"rank {data['rank']} of {len(run.leaderboard)}"
        _print(out, f"search score {decimal(data['score'])}, {place}")
    _print(out, _note(run), style="dim")
    _structure(out, data)

    _title(out, "Lineage")
    for ancestor in data["lineage"][:MOST]:
        also = "".join(f" and {parent[:8]}" for parent in ancestor["parents"][1:])
        line = f"{ancestor['name']} {ancestor['key'][:8]}, {ancestor['origin']}{also}"
        changed = "; ".join(ancestor["changes"])
        _line(out, f"{line}: {changed}" if changed else line)
    if len(data["lineage"]) > MOST:
        _print(out, f"and {len(data['lineage']) - MOST} older ancestors")

    for stage in data["stages"]:
        _title(out, f"{stage['name']}{' (filter)' if stage['filter'] else ''}")
        _stage(out, stage)


def _stage(out: Console, stage: dict[str, Any]) -> None:
    best = stage["best"]
    if not stage["settings"]:
        _print(out, "not tried")
        return
    _print(out, f"settings tried: {stage['settings']} ({counts(stage['statuses'])})")
    if best is not None:
        results = dict.fromkeys([stage["metric"], best["customary"]["metric"]])
        values = {stage["metric"]: best["value"]}
        values[best["customary"]["metric"]] = best["customary"]["value"]
        shown = [labelled(name, values[name]) for name in results]
        if stage["ratio"] is not None:
            shown.append(f"ratio to the baseline {decimal(stage['ratio'])}")
        _print(out, f"best of them: {'; '.join(shown)}; at step {whole(best['step'])}")
        _print(out, f"with {settings(best['setting'])}")
        size = f"H = {whole(best['hidden_size'])}, {whole(best['parameters'])} parameters"
        _print(out, f"{size}, {whole(best['flops_per_step'])} flops a step and row")
        curve = [point[3] for point in best["curve"]]
        if curve:
            ends = [quantity(stage["metric"], value) for value in (curve[0], curve[-1])]
            steps = f"steps {whole(best['curve'][0][0])} to {whole(best['curve'][-1][0])}"
            caption = f"{heading(stage['metric'])}, {steps}"
            _print(out, f"{ends[0]} {sparkline(curve)} {ends[1]}  {caption}")
    for error in stage["errors"][:MOST]:
        _line(out, f"failed: {error}")
    if len(stage["errors"]) > MOST:
        _print(out, f"and {len(stage['errors']) - MOST} other errors")


def named_cell_page(cell: CellGraph, info: Info | None, console: Console | None = None) -> None:
    """Print a cell of the zoo or of a file."""
    out = console or _console()
    data = named_cell_data(cell, info)
    _print(out, f"{data['name']}: {data['title']}" if data["title"] else data["name"], "bold")
    for name in ("reference", "notes"):
        if data[name]:
            _print(out, f"{name}: {data[name]}")
    for name in ("tags", "aliases"):
        if data[name]:
            _print(out, f"{name}: {', '.join(data[name])}")
    if data["constants"]:
        defaults = ", ".join(f"{name} = {value:g}" for name, value in data["constants"].items())
        _print(out, f"constants: {defaults}")
    _print(out, f"key {data['key']}")
    _structure(out, data)


def status(run: Run, console: Console | None = None) -> None:
    """Print how far a run is."""
    out = console or _console()
    data = status_data(run)
    state = data["state"]
    if state == "unfinished":
        state = f"unfinished: running, or stopped ({_resume(run)})"
    elif state == "interrupted":
        state = f"interrupted ({_resume(run)})"
    _print(out, f"{data['run']}: {state}", style="bold")
    rows = [
        ("created", data["created"]),
        ("progress", _progress(run)),
        ("units", f"{data['units_done']:,} of {data['units']:,} handed out are back"),
        ("trainings", f"{data['trainings']:,}: {counts(data['statuses'])}"),
        ("spent", f"{data['steps']:,} steps, {duration(data['seconds'])} of evaluation"),
    ]
    if data["busy"] is not None:
        rows.append(("workers", f"busy {data['busy']:.1%} of the time"))
    if data["last_event"]:
        rows.insert(1, ("last event", f"{data['last_event']['kind']} {data['last_event']['at']}"))
    if data["draws"]:
        repeated = data["duplicates"] + data["equal"]
        rows.append(
            (
                "drawn",
                f"{data['draws']:,} children: {data['invalid']:,} invalid, {repeated:,} known "
                f"({repeated / max(data['draws'] - data['invalid'], 1):.0%} of the valid ones; "
                f"{data['equal']:,} by their values)",
            )
        )
    trouble = {"workers lost": "workers_lost", "units tried again": "retries", "resumed": "resumed"}
    rows += [(name, f"{data[field]:,}") for name, field in trouble.items() if data[field]]
    if data["fallbacks"]:
        rows.append(("units not compiled", _fallbacks(data)))
    table = _table(["", ""], left=(0, 1), head=False)
    for name, text in rows:
        table.add_row(*_texts(name, text))
    out.print(table)

    funnel = _table(["stage", "entered", "finished", "passed"], left=(0,))
    for row in data["funnel"]:
        funnel.add_row(*_texts(*(row[name] for name in ("stage", "entered", "finished", "passed"))))
    _title(out, "Funnel")
    out.print(funnel)
    if data["best"]:
        _title(out, "Best so far, by search score")
        best = _table(["", "cell", "key", "score", "origin"], left=(1, 2, 4))
        for cell in data["best"]:
            key, score = cell["key"][:8], decimal(cell["score"])
            best.add_row(*_texts(cell["rank"], cell["name"], key, score, _origin(cell)))
        out.print(best)


def _fallbacks(data: dict[str, Any]) -> str:
    reason, *others = data["fallback_reasons"]
    more = f" (and {counts({'other reasons': len(others)})})" if others else ""
    return f"{data['fallbacks']:,}, left to torch: {reason}{more}"


def _structure(out: Console, data: dict[str, Any]) -> None:
    _title(out, "Equations")
    _line(out, data["notation"].rstrip().splitlines()[_header(data["notation"])])
    for line in aligned(data["equations"]).splitlines():
        _line(out, f"  {line}", wrap=True)
    sizes = dict(data["sizes"])
    parameters, flops = sizes.pop("parameters"), sizes.pop("flops_per_step")
    names = {"input_size": "X", "hidden_size": "H"}
    at = ", ".join(f"{names.get(name, name)} = {size}" for name, size in sizes.items())
    states = ", ".join(f"{s['name']} of width {s['width']}" for s in data["states"])
    _print(out, f"states: {states}")
    _print(out, f"at {at}: {parameters:,} parameters, {flops:,} flops a step and row")
    _title(out, "Structure")
    for line in structure.lines(data["structure"]):
        _print(out, line)


def _header(notation: str) -> int:
    """The line of the header: the first that is no comment."""
    return next(i for i, line in enumerate(notation.splitlines()) if not line.startswith("#"))


def _customary(result: dict[str, Any]) -> str:
    return quantity(result["customary"]["metric"], result["customary"]["value"])


def _origin(cell: dict[str, Any]) -> str:
    return "baseline" if cell["baseline"] else str(cell["origin"])


def _note(run: Run) -> str:
    return facts.NOTE.replace("the baseline", run.baseline_name, 1)


def _progress(run: Run) -> str:
    totals = run.totals
    seeds = status_data(run)["seed_units"]
    if seeds["done"] < seeds["planned"]:
        return f"training the seeds: {seeds['done']} of {seeds['planned']} units"
    return (
        f"{totals['candidates_decided']} of {totals['candidates_planned']} candidates decided, "
        f"{totals['candidates'] - totals['candidates_decided']} under way"
    )


def _resume(run: Run) -> str:
    return f"go on with: cellsearch resume {run.directory}"


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    return console


def _table(names: Sequence[str], left: Iterable[int], head: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, show_header=head, header_style="dim")
    for number, name in enumerate(names):
        last = number == len(names) - 1
        justify: Any = "left" if number in left or (last and name == "origin") else "right"
        title = "\n".join(clean(line) for line in name.split("\n"))
        # Names and keys are what one types next: whatever else is wrapped, they are not.
        fixed = name in ("cell", "key")
        table.add_column(
            Text(title),
            justify=justify,
            overflow="ellipsis",
            no_wrap=fixed,
            max_width=LONGEST_NAME if fixed else None,
        )
    return table


def _texts(*values: object) -> list[Text]:
    """Cells of a table as they are: a name with brackets in it is no markup."""
    return [Text(clean(value)) for value in values]


def _title(out: Console, text: str) -> None:
    out.print()
    _print(out, text, style="bold")


def _print(out: Console, text: str, style: str = "") -> None:
    out.print(Text(clean(text), style=style))


def _line(out: Console, text: str, wrap: bool = False) -> None:
    """One line, cut to the width unless it may wrap."""
    shown = Text(clean(text))
    if not wrap:
        shown.truncate(out.width, overflow="ellipsis")
    out.print(shown, soft_wrap=wrap)

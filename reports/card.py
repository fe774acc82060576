"""The card of an exported cell, in Markdown: what it is, where it comes from, on which data and how
well it did, how far the file is from the interpreter, and the command that makes it again.

Figures of a search and results of a confirmation stand apart; without a run there are neither.
Names and comments are other people's: all text is escaped, and nothing here depends on the clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.exporters import Difference
from reports import confirmed, facts, measured, structure
from reports.collect import Run, read
from reports.wording import clean, decimal, heading, labelled, settings, whole

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Export:
    """What the one who exports knows.

    file        the name of the file, without folders
    about       what its format is, in words
    sizes       of the exported layer, constructor arguments by name; none for a mere description
    difference  from the interpreter, None where the file computes nothing
    command     the command that made it
    versions    of packages, by name
    licence     of the file; None where nobody has said
    weights     what is in the file as weights, in words; None where it has none
    licences    of data sets, by name
    """

    file: str
    about: str
    sizes: Mapping[str, int | float | bool]
    difference: Difference | None
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    weights: str | None = None
    licences: Mapping[str, str] = field(default_factory=dict)


def origin(target: str | Path) -> tuple[Run, str] | None:
    """The run and the key behind RUN:KEY; None for a cell that is of no run. Raises SearchError."""
    directory, colon, prefix = str(target).rpartition(":")
    if not colon or not measured.holds_run(directory):
        return None
    run = read(directory)
    return run, run.find(prefix)


def card(cell: CellGraph, export: Export, found: tuple[Run, str] | None = None) -> str:
    """The card as text. `found`: the run and the key of a cell that a search found."""
    licence = export.licence or NOT_STATED
    lines = ["---", f"license: {json.dumps(clean(licence))}", "---", ""]
    lines += [f"# {_text(cell.name)}", ""]
    lines += [f"`{_name(export.file)}`: {_text(export.about)}.", ""]
    lines += [*_equations(cell), *_sizes(cell, export), "## Origin", ""]
    if found is None:
        lines += _named(cell)
    else:
        lines += _found(*found)
    lines += ["", "## Weights and training data", "", *_data(export, found), ""]
    if found is not None:
        lines += [*_scores(*found), *_results(*found)]
    lines += ["## Check", "", _check(export), "", "## Licence", "", _licence(export), ""]
    versions = ", ".join(f"{name} {number}" for name, number in export.versions.items())
    lines += ["## Made with", "", *_block(export.command, "sh"), ""]
    lines += [f"{_text(versions)}."] if versions else []
    return "\n".join(lines).rstrip() + "\n"


# -- what it is ------------------------------------------------------------------------------------


def _equations(cell: CellGraph) -> list[str]:
    facts_of = structure.lines(structure.data(cell))
    listed = [f"- {_text(line)}" for line in (f"key: {cell.key()}", *facts_of)]
    return ["## Equations", "", *_block(str(cell).rstrip()), "", *listed, ""]


def _sizes(cell: CellGraph, export: Export) -> list[str]:
    if not export.sizes:
        return []
    sizes = dict(export.sizes)
    parameters = cg.count_parameters(
        cell,
        int(sizes["input_size"]),
        int(sizes["hidden_size"]),
        int(sizes.get("num_layers", 1)),
        widths=dict.fromkeys(cell.widths[1:], int(sizes["hidden_size"])),
        bidirectional=bool(sizes.get("bidirectional", False)),
    )
    return [f"Layer: {_text(settings(sizes))}; {whole(parameters)} parameters.", ""]


# -- where it comes from ---------------------------------------------------------------------------


def _named(cell: CellGraph) -> list[str]:
    """A cell of the zoo, or of a file or of somebody's hand."""
    if cell.name not in cg.zoo.names() or cg.zoo.get(cell.name) != cell:
        return ["Neither a named cell nor one of a search's run."]
    info = cg.zoo.info(cell.name)
    lines = [f"A named cell: {_text(info.title)}"]
    for name, value in (("reference", info.reference), ("notes", info.notes)):
        lines += [f"- {name}: {_text(value)}"] if value else []
    return [lines[0], "", *lines[1:]] if lines[1:] else lines


def _found(run: Run, key: str) -> list[str]:
    search, first = run.config["search"], run.first[key]
    versions = ", ".join(f"{n} {v}" for n, v in run.environment.get("versions", {}).items())
    lines = [
        f"{_text(first.name)} of the search {_text(run.name)} ({_text(first.origin)}).",
        "",
        f"- run: {_text(run.directory.name)}, begun {_text(run.created)}, {run.state}",
        f"- seed {_text(run.config.get('seed'))}, algorithm {_text(search.get('algorithm'))}, "
        f"{whole(search['candidates'])} candidates, baseline {_text(run.baseline_name)}",
    ]
    lines += [f"- made with {_text(versions)}"] if versions else []
    lines += [
        "",
        "Lineage, from the cell up to a seed, each with what it changed:",
        "",
    ]
    for number, ancestor in enumerate(facts.cell_data(run, key)["lineage"], start=1):
        named = f"{_text(ancestor['name'])} {ancestor['key'][:8]}, {_text(ancestor['origin'])}"
        lines.append(f"{number}. {named}")
        lines += [f"   - {_text(change)}" for change in ancestor["changes"]]
    return lines


# -- data and figures ------------------------------------------------------------------------------


def _data(export: Export, found: tuple[Run, str] | None) -> list[str]:
    weights = export.weights or (
        "No trained weights: parameters are what a new layer starts with."
        if export.sizes
        else "No weights: the file says what the cell is."
    )
    lines = [_text(weights)]
    if found is None:
        return lines
    run, _ = found
    lines += ["", "The search trained the cell on:", ""]
    for stage in run.stages:
        described = run.environment.get("data", {}).get(stage.name) or {}
        data = described.get("data")
        options = settings(described.get("options") or {})
        shown = f"- {_text(stage.name)}{f' ({_text(options)})' if options else ''}"
        if not data:
            lines.append(f"{shown}: generated, no data set")
            continue
        licence = export.licences.get(str(data.get("name")))
        lines.append(f"{shown}: data set {_text(data.get('name'))}")
        lines.append(f"  - SHA-256 {_text(data.get('sha256'))}")
        lines += [f"  - read from {_text(source)}" for source in data.get("source", ())]
        lines += [f"  - licence of the data: {_text(licence)}"] if licence else []
    return lines


def _scores(run: Run, key: str) -> list[str]:
    data = facts.cell_data(run, key)
    lines = ["## Search scores", "", f"Note: {_text(facts.NOTE)}.", ""]
    if data["score"] is not None:
        place = f"rank {data['rank']} of {len(run.leaderboard)}"
        lines += [f"Score {decimal(data['score'])} against {_text(data['baseline'])}, {place}.", ""]
    rows = []
    for stage in data["stages"]:
        best = stage["best"]
        value = "none" if best is None else labelled(stage["metric"], best["value"])
        parameters = whole(best["parameters"]) if best else ""
        ratio = "" if stage["ratio"] is None else decimal(stage["ratio"])
        rows.append([stage["name"], value, ratio, str(stage["settings"]), parameters])
    heads = ["task", "best on validation data", "ratio to the baseline", "settings", "parameters"]
    return [*lines, *_table(heads, rows), ""]


def _results(run: Run, key: str) -> list[str]:
    """What a confirmation measured on test data, with its intervals."""
    lines = ["## Results on test data", ""]
    if not measured.begun(run.directory):
        return [*lines, "None: no confirmation of this run has been made.", ""]
    document = measured.read(run.directory)
    mine = [
        (task, cell) for task in document["tasks"] for cell in task["cells"] if cell["key"] == key
    ]
    if document["state"] != "finished":
        return [*lines, "None yet: the confirmation of this run is not finished.", ""]
    if not mine:
        return [*lines, "None: this cell was not among those confirmed.", ""]
    told = confirmed.introduction(document)[1:]
    rows = []
    for task, cell in mine:
        metric, direction = task["metric"], "more" if task["maximise"] else "less"
        mean, half = (confirmed.number(metric, cell[name]) for name in ("mean", "half"))
        against = "; ".join(
            f"{reference}: {test['verdict']} (p {measured.probability(test['p_holm'])})"
            for reference, test in cell["against"].items()
        )
        what = f"{heading(metric)}, {direction} is better"
        seeds = f"{cell['failed']} of {len(cell['values'])}"
        rows.append([task["name"], what, f"{mean} ± {half}", seeds, against])
    heads = ["task", "measured", "mean and interval", "seeds that failed", "compared with"]
    lines += [*(f"{_text(line)}" for line in told), "", *_table(heads, rows), ""]
    claims = [claim["text"] for claim in document["claims"] if claim["key"] == key]
    level = document["options"]["alpha"]
    lines += [f"At the level {level:g} for all of it together: {_text(c)}." for c in claims]
    return [*lines, ""]


# -- the rest --------------------------------------------------------------------------------------


def _check(export: Export) -> str:
    if export.difference is None:
        return "The file computes nothing that could be compared."
    return (
        "Before the file appeared it was compared with the interpreter: 1, 7 and 50 steps of 1 and "
        "3 rows, and single steps from where the long ones lead. Of values above 1 relative to "
        f"them: {export.difference}."
    )


def _licence(export: Export) -> str:
    if export.licence:
        return f"{_text(export.licence)}."
    return f"{NOT_STATED.capitalize()}; `cellsearch export --licence TEXT` states it."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    texts = [heads, ["---"] * len(heads), *([_text(text) for text in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in texts]


def _block(text: str, language: str = "") -> list[str]:
    """Text as it stands, between fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *(clean(line) for line in text.split("\n")), fence]


def _text(value: Any) -> str:
    """One line in which nothing is markup, neither of Markdown nor of HTML."""
    escaped = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", clean(value))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _name(file: str) -> str:
    """The name of a file within backticks."""
    return clean(file).replace("`", "'")

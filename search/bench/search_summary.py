"""What `cellsearch bench search` has measured, in tables, and beside what it should be."""

from __future__ import annotations

import statistics
from typing import Any

from search.bench.search import INLINE, RAY, Findings, Run
from search.bench.tables import Target, aligned, number, targets_table

RESUMED = 100_000  #: candidates of the run whose resumption has a bound in seconds


def targets(found: Findings) -> list[Target]:
    """What grows with a search is judged by the largest. Bounds of overhead are for two workers."""
    runs = found.loops.get(RAY, []) if found.request.workers == 2 else []
    largest = runs[-1] if runs else None
    growth, sizes = None, "many / few"
    if len(runs) > 1:
        growth = runs[-1].steady_ms / runs[0].steady_ms
        sizes = f"{runs[-1].candidates:,} / {runs[0].candidates:,}"
    resumed = [run.seconds for run in found.resumed if run.candidates >= RESUMED]
    children = None
    if found.keys is not None:
        children = min(_children(kind) for kind in found.keys["proposals"].values())
    return [
        Target(
            "distinct valid children a second, one core", ">= 1000", children, lambda v: v >= 1000
        ),
        Target(
            "ms of overhead a candidate, most of all sizes",
            "<= 2",
            max((run.ms for run in runs), default=None),
            lambda v: v <= 2,
        ),
        Target(f"overhead of {sizes} candidates", "<= 1.3", growth, lambda v: v <= 1.3),
        Target(
            "bytes that the driver's memory grows by a candidate",
            "< 2048",
            largest.growth if largest else None,
            lambda v: v < 2048,
        ),
        Target(
            f"seconds to resume {RESUMED:,} candidates",
            "< 20",
            max(resumed, default=None),
            lambda v: v < 20,
        ),
    ]


def data(found: Findings) -> dict[str, Any]:
    """The JSON document."""
    summary = {"targets": [target.data() for target in targets(found)]}
    return {**found.data(), "summary": summary}


def text(found: Findings) -> str:
    """The tables."""
    about = found.machine
    lines = [f"{about['cpu']}, {about['cores']} cores; Python {about['python']}"]
    parts = [_keys(found), _ledger(found)]
    if found.loops:
        parts.append(_loops(found))
        parts.append(_tenths(found))
        parts.append(_calls(found))
    parts += [_resumed(found), targets_table(targets(found))]
    for part in filter(None, parts):
        lines += ["", *part]
    return "\n".join(lines)


def _children(kind: dict[str, Any]) -> float:
    return float(statistics.median(kind["rounds"]))


def _keys(found: Findings) -> list[str]:
    if found.keys is None:
        return []
    rows = [["distinct valid children", "a second", "best round", "draws each"]]
    for kind, made in found.keys["proposals"].items():
        best, draws = max(made["rounds"]), made["draws_per_child"]
        rows.append([kind, number(_children(made), 0), number(best, 0), number(draws)])
    steps = [["of a cell", "a second"]]
    steps += [[name, number(rate, 0)] for name, rate in found.keys["steps"].items()]
    return [*aligned(rows), "", *aligned(steps)]


def _ledger(found: Findings) -> list[str]:
    made = found.ledger
    if made is None:
        return []
    rows = [["ledger; ms of a transaction", "median", "99 %", "rows a second"]]
    labels = {"sync": "4 KiB of a plain file, synced", "proposal": "a candidate and a unit"}
    rows += [[label, *_spread(made[name]), ""] for name, label in labels.items()]
    for drain in made["drains"]:
        label = f"{drain['results']} result{'s' * (drain['results'] > 1)}"
        rows.append([label, *_spread(drain), number(drain["rows_per_second"], 0)])
    return aligned(rows)


def _spread(made: dict[str, float]) -> list[str]:
    return [number(made["median"], 3), number(made["p99"], 3)]


def _loops(found: Findings) -> list[str]:
    """A line for each size and kind of workers."""
    head = ["a candidate of a search without training", "ms", "CPU ms", "after 10 %", "CPU"]
    rows = [[*head, "units", "bytes", "peak MB"]]
    for kind, runs in found.loops.items():
        label = {INLINE: "in one process", RAY: f"{found.request.workers} Ray workers"}[kind]
        for run in runs:
            times = (run.ms, run.cpu_ms, run.steady_ms, run.steady_cpu_ms)
            rows.append(
                [
                    f"{run.candidates:,}, {label}",
                    *(number(time, 3) for time in times),
                    number(run.units),
                    number(run.growth, 0),
                    number(run.peak / 1e6, 0),
                ]
            )
    return aligned(rows)


def _tenths(found: Findings) -> list[str]:
    largest = max((runs[-1] for runs in found.loops.values()), key=lambda run: run.candidates)
    funnel = ", ".join(f"{name} {passed:,}/{tried:,}" for name, tried, passed in largest.funnel)
    lines = [f"passed of {largest.candidates:,}: {funnel}"]
    for kind, runs in found.loops.items():
        tenths = " ".join(number(ms) for ms in runs[-1].tenths)
        lines.append(f"ms in each tenth of {runs[-1].candidates:,}, {kind}: {tenths}")
    return lines


def _calls(found: Findings) -> list[str]:
    """What is left of a unit when search and journal are taken away."""
    calls = found.calls
    if calls is None:
        return []
    ways = {
        "called in the same process": calls.direct,
        "Python's process pool": calls.processes,
        "our Ray workers": calls.ray,
    }
    for kind, label in ((INLINE, "search in one process"), (RAY, "search on Ray workers")):
        run = _nearest(found.loops[kind], calls.units)
        ways[f"{label}, {run.candidates:,} candidates"] = run.ms / run.units
    rows = [[f"a unit; {calls.units:,} calls", "ms", "/ process pool", "/ Ray workers"]]
    for label, ms in ways.items():
        rows.append([label, number(ms, 3), number(ms / calls.processes), number(ms / calls.ray)])
    return aligned(rows)


def _nearest(runs: list[Run], units: int) -> Run:
    return min(runs, key=lambda run: abs(run.candidates - units))


def _resumed(found: Findings) -> list[str]:
    if not found.resumed:
        return []
    rows = [["resuming a finished run", "s", "ms a candidate", "bytes", "peak MB"]]
    for run in found.resumed:
        numbers = (number(run.seconds), number(run.ms, 3), number(run.growth, 0))
        rows.append([f"{run.candidates:,} candidates", *numbers, number(run.peak / 1e6, 0)])
    return aligned(rows)

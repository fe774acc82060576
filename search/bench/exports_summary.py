"""What `cellsearch bench export` has measured, in tables, and beside what it should be."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from typing import Any

from cellgraph.exporters import TOLERANCE
from search.bench.exports import EAGER, ONNX, SPEED, C, Findings
from search.bench.tables import Target, aligned, number, targets_table

SHOWN = 20  #: failures


def targets(found: Findings) -> list[Target]:
    """The largest difference is that of named cells after a single step: with every further one a
    cell may make more of each rounding, and a random cell may in the first."""
    rows, over = found.rows, found.over
    steps = [row.step for row in rows if row.step is not None and not row.mutant]
    failed = float(sum(row.error is not None for row in rows)) if rows else None
    behind = None if C not in over or ONNX not in over else over[C] / over[ONNX]
    return [
        Target("exports that fail", "0", failed, lambda v: v == 0),
        Target(
            "largest difference of a step, named cells",
            f"<= {TOLERANCE:g}",
            max(steps, default=None),
            lambda v: v <= TOLERANCE,
        ),
        Target("eager / onnxruntime, LSTM", ">= 2", over.get(ONNX), lambda v: v >= 2),
        Target("onnxruntime / C, LSTM", ">= 1", behind, lambda v: v >= 1),
    ]


def data(found: Findings) -> dict[str, Any]:
    """The JSON document."""
    summary = {"targets": [target.data() for target in targets(found)]}
    return {**found.data(), "summary": summary}


def text(found: Findings) -> str:
    """The tables."""
    about = found.machine
    lines = [f"{about['cpu']}, 1 thread of {about['cores']} cores; torch {about['torch']}"]
    for part in filter(None, (_exports(found), _speed(found), targets_table(targets(found)))):
        lines += ["", *part]
    return "\n".join(lines)


def _exports(found: Findings) -> list[str]:
    if not found.rows:
        return []
    head = ["format", "cells", "failed", "step: named", "all", "above 1e-5"]
    head += ["sequence: named", "above 1e-5", "seconds each"]
    table = [head]
    for kind in dict.fromkeys(row.format for row in found.rows):
        rows = [row for row in found.rows if row.format == kind]
        steps, sequences = [row.step for row in rows], [row.difference for row in rows]
        named = [not row.mutant for row in rows]
        table.append(
            [
                kind,
                str(len(rows)),
                str(sum(row.error is not None for row in rows)),
                _largest(compress(steps, named)),
                _largest(steps),
                _above(steps),
                _largest(compress(sequences, named)),
                _above(sequences),
                number(sum(row.seconds for row in rows) / len(rows)),
            ]
        )
    failures = [f"{row.cell} as {row.format}: {row.error}" for row in found.rows if row.error]
    more = len(failures) - SHOWN
    lines = [*aligned(table), *failures[:SHOWN]]
    return [*lines, f"and {more} more"] if more > 0 else lines


def _largest(differences: Iterable[float | None]) -> str:
    values = [value for value in differences if value is not None]
    return f"{max(values):.1e}" if values else ""


def _above(differences: Iterable[float | None]) -> str:
    return str(sum((value or 0.0) > TOLERANCE for value in differences))


def _speed(found: Findings) -> list[str]:
    if not found.ms:
        return []
    table = [[f"LSTM, {SPEED}, without gradients", "ms", f"{EAGER} /"]]
    table += [[way, number(ms, 3), number(found.over.get(way))] for way, ms in found.ms.items()]
    return aligned(table)

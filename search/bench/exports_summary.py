"""What `cellsearch bench export` has measured, in tables, and beside what it should be."""

from __future__ import annotations

from typing import Any

from cellgraph.exporters.check import TOLERANCE
from search.bench.exports import EAGER, ONNX, SPEED, C, Findings, Row
from search.bench.tables import Target, aligned, number, targets_table

SHOWN = 20  #: failures


def targets(found: Findings) -> list[Target]:
    """The largest difference is that of named cells; a random one may amplify rounding at will."""
    rows, over = found.rows, found.over
    failed = float(sum(row.error is not None for row in rows)) if rows else None
    behind = None if C not in over or ONNX not in over else over[C] / over[ONNX]
    return [
        Target("exports that fail", "0", failed, lambda v: v == 0),
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
    head = ["format", "cells", "failed", "above 1e-5", "largest, named", "largest", "seconds each"]
    table = [head]
    for kind in dict.fromkeys(row.format for row in found.rows):
        rows = [row for row in found.rows if row.format == kind]
        named = [row for row in rows if not row.mutant]
        table.append(
            [
                kind,
                str(len(rows)),
                str(sum(row.error is not None for row in rows)),
                str(sum((row.difference or 0.0) > TOLERANCE for row in rows)),
                _largest(named),
                _largest(rows),
                number(sum(row.seconds for row in rows) / len(rows)),
            ]
        )
    failures = [f"{row.cell} as {row.format}: {row.error}" for row in found.rows if row.error]
    more = len(failures) - SHOWN
    lines = [*aligned(table), *failures[:SHOWN]]
    return [*lines, f"and {more} more"] if more > 0 else lines


def _largest(rows: list[Row]) -> str:
    values = [row.difference for row in rows if row.difference is not None]
    return f"{max(values):.1e}" if values else ""


def _speed(found: Findings) -> list[str]:
    if not found.ms:
        return []
    table = [[f"LSTM, {SPEED}, without gradients", "ms", f"{EAGER} /"]]
    table += [[way, number(ms, 3), number(found.over.get(way))] for way, ms in found.ms.items()]
    return aligned(table)

"""What was measured, in tables for people, and beside what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search.bench.cells import EAGER, INTERPRETER, LSTM, NATIVE, Row
from search.bench.kernels import Findings
from search.bench.request import LONG_SHAPES, Shape
from search.bench.scans import SCAN
from search.bench.tables import Target, aligned, number, targets_table
from search.bench.timing import geometric_mean


def targets(found: Findings) -> list[Target]:
    """They are about float32; none otherwise."""
    if found.request.dtype != "float32":
        return []
    lstm = _over(LSTM, [row for row in found.cells if row.cell == "lstm"])
    shares = [
        row.of_best
        for row in found.cells
        if row.cell in ("lstm", "gru") and row.shape.hidden >= 200 and row.of_best is not None
    ]

    def eager(hidden: int) -> float | None:
        rows = [row for row in found.cells if row.shape.hidden == hidden]
        return geometric_mean(_over(EAGER, rows))

    slower = float(sum(ratio < 1 for ratio in _over(EAGER, found.cells)))
    long = [row for row in found.scans if row.cell == "min_gru" and row.shape == LONG_SHAPES[-1]]
    build = found.building
    memorisation = [row.ratio for row in found.steps if row.task == "memorisation"]
    return [
        Target("nn.LSTM / lstm, least", "> 1", min(lstm, default=None), lambda v: v > 1),
        Target(
            "nn.LSTM / lstm, geometric mean", ">= 1.25", geometric_mean(lstm), lambda v: v >= 1.25
        ),
        Target("eager / native, all cells, H 64", ">= 4", eager(64), lambda v: v >= 4),
        Target("eager / native, all cells, H 128", ">= 2.5", eager(128), lambda v: v >= 2.5),
        Target("cells slower than eager", "0", slower if found.cells else None, lambda v: v == 0),
        Target(
            "lstm and gru of the best rate, H >= 200, least",
            ">= 0.8",
            min(shares, default=None),
            lambda v: v >= 0.8,
        ),
        Target(
            f"nn.LSTM / min_gru by scan, {LONG_SHAPES[-1]}",
            ">= 3",
            min((row.over_scan[LSTM] for row in long), default=None),
            lambda v: v >= 3,
        ),
        Target(
            "scan and loop, largest difference",
            "<= 1e-5",
            max((row.difference for row in found.scans), default=None),
            lambda v: v <= 1e-5,
        ),
        Target(
            "seconds to compile a cell, median",
            "<= 0.15",
            build.compiled.median if build else None,
            lambda v: v <= 0.15,
        ),
        Target(
            "seconds to load a cached cell, median",
            "< 0.005",
            build.cached.median if build else None,
            lambda v: v < 0.005,
        ),
        Target(
            "memorisation step / nn.LSTM's",
            "<= 0.7",
            min(memorisation, default=None),
            lambda v: v <= 0.7,
        ),
    ]


def data(found: Findings) -> dict[str, Any]:
    """The JSON document of `cellsearch bench kernels`."""
    shapes = [
        {"shape": list(shape), **_spread(rows), "not_finite": _not_finite(rows)}
        for shape, rows in _by_shape(found.cells).items()
    ]
    summary = {"shapes": shapes, "targets": [target.data() for target in targets(found)]}
    return {**found.data(), "summary": summary}


def text(found: Findings) -> str:
    """The tables."""
    machine = found.machine
    lines = [
        f"{machine['cpu']}, 1 thread of {machine['cores']} cores; torch {machine['torch']}; "
        f"{machine['compiler']}; {found.request.dtype}"
    ]
    parts = [_rates(found)]
    parts += [_cells(shape, rows) for shape, rows in _by_shape(found.cells).items()]
    parts += [_scans(found), _building(found), _steps(found), targets_table(targets(found))]
    for part in filter(None, parts):
        lines += ["", *part]
    return "\n".join(lines)


# -- numbers


def _over(name: str, rows: Sequence[Row]) -> list[float]:
    return [row.over_native[name] for row in rows if name in row.over_native]


def _by_shape(rows: Sequence[Row]) -> dict[Shape, list[Row]]:
    return {
        shape: [row for row in rows if row.shape == shape]
        for shape in dict.fromkeys(row.shape for row in rows)
    }


def _spread(rows: Sequence[Row]) -> dict[str, Any]:
    """Eager / native over the cells of one shape."""
    ratios = _over(EAGER, rows)
    return {
        "cells": len(rows),
        "eager_over_native": geometric_mean(ratios),
        "least": min(ratios, default=None),
        "largest": max(ratios, default=None),
        "slower": sum(ratio < 1 for ratio in ratios),
    }


def _not_finite(rows: Sequence[Row]) -> int:
    return sum(not row.finite for row in rows)


# -- tables


def _rates(found: Findings) -> list[str]:
    best = found.best
    if best is None:
        return []
    shapes = list(dict.fromkeys(rate.shape for rate in found.rates))
    rows = [["matrix products, GFLOP/s", *("×".join(map(str, shape)) for shape in shapes)]]
    for library in dict.fromkeys(rate.library for rate in found.rates):
        of = {rate.shape: rate.gflops for rate in found.rates if rate.library == library}
        rows.append([library, *(number(of[shape], 0) for shape in shapes)])
    return [*aligned(rows), f"best: {best.gflops:.0f} GFLOP/s, {best.library}"]


def _cells(shape: Shape, rows: list[Row]) -> list[str]:
    """One shape: a line for each named cell, and for all mutants together."""
    head = [NATIVE, EAGER, INTERPRETER, LSTM]
    over = [f"{name} /" for name in head[1:]]
    table = [[f"{shape}; ms", *head, *over, "GFLOP/s", "of best", "code"]]
    for row in rows:
        if not row.mutant:
            shares = ("" if v is None else f"{v:.0%}" for v in (row.of_best, row.code_of_best))
            table.append(
                [
                    row.cell,
                    *(number(row.ms.get(name)) for name in head),
                    *(number(row.over_native.get(name)) for name in head[1:]),
                    number(row.gflops(NATIVE), 0),
                    *shares,
                ]
            )
    lines = aligned(table)
    bred = [row for row in rows if row.mutant]
    for label, some in (("mutants", bred), ("all cells", rows)):
        if some:
            spread = _spread(some)
            lines.append(
                f"{label} ({len(some)}): eager / native {number(spread['eager_over_native'])} "
                f"({number(spread['least'])} to {number(spread['largest'])}), "
                f"{spread['slower']} slower than eager, {_not_finite(some)} with NaN or infinity"
            )
    return lines


def _scans(found: Findings) -> list[str]:
    if not found.scans:
        return []
    head = [SCAN, NATIVE, EAGER, LSTM]
    title = f"scans, {found.machine['cores']} threads; ms"
    table = [[title, "T", *head, *(f"{name} /" for name in head[1:]), "difference"]]
    for row in found.scans:
        times = [number(row.ms[name]) for name in head]
        over = [number(row.over_scan[name]) for name in head[1:]]
        table.append([row.cell, str(row.shape.steps), *times, *over, f"{row.difference:.1e}"])
    shape = found.scans[0].shape
    return [*aligned(table), f"B {shape.rows}, H {shape.hidden}; native and eager loop over time"]


def _building(found: Findings) -> list[str]:
    if found.building is None:
        return []
    made = found.building.data()
    rows = [
        [f"until a cell can run; {made['cells']} random cells", "median s", "90 %"],
        ["compiled", number(made["median"], 4), number(made["p90"], 4)],
        ["from the cache", number(made["cached_median"], 4), number(made["cached_p90"], 4)],
        ["lowering, part of both", number(made["lowering_median"], 4), ""],
        [f"compiled, {made['cells_a_batch']} in one run", number(made["batched_median"], 4), ""],
        ["matrix kernels, once", number(made["matrix_kernels"], 4), ""],
    ]
    return aligned(rows)


def _steps(found: Findings) -> list[str]:
    if not found.steps:
        return []
    rows = [["training step, LSTM, H 64; ms", "inputs", "ours", "nn.LSTM", "ours /"]]
    for row in found.steps:
        inputs = "×".join(map(str, row.inputs))
        numbers = (row.native, row.plain, row.ratio)
        rows.append([row.task, inputs, *(number(ms) for ms in numbers)])
    return aligned(rows)

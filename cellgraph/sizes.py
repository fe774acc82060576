"""Sizes without building anything: concrete widths, parameter counts, floating-point operations of
a step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from math import prod

from cellgraph.errors import CellError
from cellgraph.graph import MATMUL, CellGraph
from cellgraph.widths import node_widths


def whole(label: str, value: object) -> int:
    """A size as an int; NumPy's whole numbers are taken too. Raises `CellError` below 1."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1:
        raise CellError(f"{label} is {value!r}, expected a whole number of at least 1")
    return number


def concrete_widths(
    cell: CellGraph, input_size: int, hidden_size: int, widths: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Every width name of the cell with its size. A cell that uses raw x sees x at the hidden
    width.

    Raises `CellError` for sizes below 1, and for a declared width that is missing or unknown in
    `widths`.
    """
    given = {label: whole(label, size) for label, size in (widths or {}).items()}
    input_size = whole("input_size", input_size)
    sizes = {"H": whole("hidden_size", hidden_size)}
    for name in cell.widths[1:]:
        if name not in given:
            raise CellError(
                f"cell {cell.name} declares the width {name}, expected widths={{'{name}': …}}"
            )
        sizes[name] = given.pop(name)
    if given:
        raise CellError(
            f"cell {cell.name} has no width {next(iter(given))}, expected {', '.join(cell.widths)}"
        )
    sizes["X"] = sizes[cell.raw_x] if cell.raw_x else input_size
    return sizes


def output_width(cell: CellGraph) -> str:
    """The name of the width that the layer emits."""
    return node_widths(cell)[cell.outputs[0]] or "H"


def _over_layers(
    cell: CellGraph,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    widths: Mapping[str, int] | None,
    bidirectional: bool,
    one: Callable[[dict[str, int], int], int],
) -> int:
    directions, total, entering = (2 if bidirectional else 1), 0, input_size
    for _ in range(whole("num_layers", num_layers)):
        sizes = concrete_widths(cell, entering, hidden_size, widths)
        total += directions * one(sizes, entering)
        entering = directions * sizes[output_width(cell)]
    return total


def count_parameters(
    cell: CellGraph,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    *,
    widths: Mapping[str, int] | None = None,
    bidirectional: bool = False,
) -> int:
    """The number of parameters of the layer that `cellgraph.compile` builds with the same
    arguments."""

    def one(sizes: dict[str, int], entering: int) -> int:
        projection = entering * sizes["X"] if entering != sizes["X"] else 0
        return projection + sum(prod(p.shape(sizes)) for p in cell.params)

    return _over_layers(cell, input_size, hidden_size, num_layers, widths, bidirectional, one)


def flops_per_step(
    cell: CellGraph,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    *,
    widths: Mapping[str, int] | None = None,
    bidirectional: bool = False,
) -> int:
    """Forward floating-point operations of one time step of one batch row; a multiply-add counts as
    two, an elementwise op as one per element."""
    node_width = node_widths(cell)
    params = {p.name: p for p in cell.params}

    def one(sizes: dict[str, int], entering: int) -> int:
        total = 2 * entering * sizes["X"] if entering != sizes["X"] else 0
        for node in cell.nodes:
            if node.op == MATMUL:
                total += 2 * prod(params[str(node.args[0].attr)].shape(sizes))
            elif node.args:
                width = node_width[node]
                total += sizes[width] if width else 1
        return total

    return _over_layers(cell, input_size, hidden_size, num_layers, widths, bidirectional, one)


def hidden_size_for(count: Callable[[int], int], budget: int) -> int:
    """The largest hidden size whose `count(hidden_size)` parameters stay within `budget`, by
    bisection.

    `count` must not decrease. Raises `CellError` when even one unit exceeds the budget, and when
    a unit costs less than a parameter, so that no hidden size would exceed it.
    """
    if count(1) > budget:
        raise CellError(
            f"one hidden unit already takes {count(1)} parameters, expected a budget above {budget}"
        )
    low, high = 1, budget + 1
    if count(high) <= budget:
        raise CellError(
            f"{high} hidden units take {count(high)} parameters, expected one or more for each unit"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low

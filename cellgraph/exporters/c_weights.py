"""The numbers of an exported C file: stacks of matrices, static values, and matrices as int8.

A matrix is stored transposed, column by column of the stack: the product of the file walks along
it, and one column is added to all sums at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cellgraph.errors import CellError
from cellgraph.exporters import check
from cellgraph.graph import CellGraph, Node, topological
from cellgraph.interpret import values
from cellgraph.layer import CellLayer
from cellgraph.parameters import Cell

#: Parts on each side of zero that int8 has of the largest weight of a row.
LEVELS = 127


@dataclass(frozen=True, slots=True)
class Array:
    """A constant array of the file, for one member of the weights of one layer."""

    member: str
    values: np.ndarray[Any, np.dtype[Any]]  # float32 or int8, of one dimension


@torch.no_grad()
def arrays(
    cell: Cell,
    stacks: Mapping[tuple[str, ...], str],
    statics: Mapping[Node, str],
    projection: str,
    int8: bool,
) -> tuple[list[Array], dict[str, float]]:
    """The arrays of a layer in one direction, and its scalars, by the members that they are for.

    stacks: matrices on top of each other, with their member. statics: nodes of the cell that need
    neither x nor a state.
    """
    tensors = cell.tensors()
    matrices = [
        (member, torch.cat([tensors[m] for m in names])) for names, member in stacks.items()
    ]
    if cell.input_projection is not None:
        matrices.insert(0, (projection, cell.input_projection))
    found: list[Array] = []
    for member, matrix in matrices:
        if int8:
            whole, scale = _quantised(matrix)
            found += [Array(member, _flat(whole.t())), Array(f"{member}_scale", _flat(scale))]
        else:
            found.append(Array(member, _flat(matrix.t())))
    scalars: dict[str, float] = {}
    for member, value in _values(cell, tensors, statics):
        if value.dim() == 0:
            scalars[member] = float(value)
        else:
            found.append(Array(member, _flat(value)))
    return found, scalars


def _values(
    cell: Cell, tensors: Mapping[str, Tensor], statics: Mapping[Node, str]
) -> Iterator[tuple[str, Tensor]]:
    """The static values, computed by the interpreter."""
    value = values(topological(statics), tensors, torch.empty(0), {})
    for node, member in statics.items():
        yield member, value[node]


def _flat(value: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    return cast("np.ndarray[Any, np.dtype[Any]]", value.detach().reshape(-1).numpy())


def _quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (rows, cols) and the scale of every row, of which its largest weight is 127.

    A scale has 17 bits, so that all its multiples are floats: what is rounded twice stays the same,
    and the interpreter has the very weights of the file.
    """
    fraction, exponent = torch.frexp(matrix.abs().amax(dim=1) / LEVELS)
    scale = torch.ldexp((fraction * 2**17).ceil() / 2**17, exponent)
    parts = torch.where(scale > 0, scale, 1.0).unsqueeze(1)  # a row of zeros stays one
    return (matrix / parts).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


@torch.no_grad()
def dequantised(layer: CellLayer, names: Iterable[str]) -> CellLayer:
    """The layer whose matrices of these names are what int8 makes of them, for the interpreter.

    Raises `CellError` where one of them has a number that is not finite.
    """
    made = check.concrete(_plain(layer.cell), _sizes(layer), layer.widths, None)
    rounded = frozenset(names)
    for index, (to, cell) in enumerate(zip(_cells(made), _cells(layer), strict=True)):
        given = {**cell.tensors(), "input_projection": cell.input_projection}
        for name, value in given.items():
            if value is None:
                continue
            if name in rounded and not value.isfinite().all():
                raise CellError(
                    f"cells[{index}].{name} has weights that are not finite, "
                    "expected finite ones for int8"
                )
            to.get_parameter(name).copy_(_rounded(value) if name in rounded else value)
    return made


def _cells(layer: CellLayer) -> Iterable[Cell]:
    return cast("Iterable[Cell]", layer.cells)


def _rounded(matrix: Tensor) -> Tensor:
    whole, scale = _quantised(matrix)
    return whole * scale.unsqueeze(1)


def _plain(cell: CellGraph) -> CellGraph:
    """The cell whose matrices are what they multiply by, whatever was declared of them."""
    params = (p if p.cols is None else replace(p, kind="matrix") for p in cell.params)
    return replace(cell, params=tuple(params))


def _sizes(layer: CellLayer) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "num_layers", "bidirectional")
    return {name: getattr(layer, name) for name in names}

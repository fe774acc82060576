"""The parameters of one cell in one layer and direction, as an nn.Module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.interpret import effective


class Cell(nn.Module):
    """The parameters of one cell in one layer and direction, under the names of its equations."""

    def __init__(
        self, cell: CellGraph, input_size: int, widths: Mapping[str, int], factory: dict[str, Any]
    ) -> None:
        super().__init__()
        self.graph = cell
        self.input_size = input_size
        self.names = tuple(p.name for p in cell.params)
        largest = torch.finfo(factory["dtype"] or torch.get_default_dtype()).max
        for param in cell.params:
            if param.init is not None and abs(param.init.value) > largest:
                raise CellError(
                    f"init {param.name} = {param.init}: expected a number up to {largest:.3g}"
                )
            if hasattr(self, param.name) or param.name == "input_projection":
                raise CellError(
                    f"parameter {param.name} of cell {cell.name} has the name of an "
                    "attribute of the module that holds it, expected another name"
                )
            self.register_parameter(
                param.name, nn.Parameter(torch.empty(param.shape(widths), **factory))
            )
        # Raw x needs the hidden width: one learned projection, and only where the sizes differ.
        self.input_projection: nn.Parameter | None = None
        if input_size != widths["X"]:
            self.input_projection = nn.Parameter(torch.empty(widths["X"], input_size, **factory))

    def tensors(self) -> Mapping[str, Tensor]:
        """What the cell computes with, by the names of its parameters; see `effective`."""
        # Past Module.__getattr__, which takes a microsecond for each.
        held = cast("Mapping[str, Tensor]", self._parameters)
        stored = {name: held[name] if name in held else getattr(self, name) for name in self.names}
        return effective(self.graph, stored)

    def enter(self, x: Tensor) -> Tensor:
        """x as the cell sees it, (…, X)."""
        return (
            x if self.input_projection is None else nn.functional.linear(x, self.input_projection)
        )

    @torch.no_grad()
    def reset(self, bound: float, generator: torch.Generator | None) -> None:
        """U[-bound, bound] everywhere, then what the cell declares."""
        for value in self.parameters():
            value.uniform_(-bound, bound, generator=generator)
        for param in self.graph.params:
            value = getattr(self, param.name)
            if param.init is not None and param.init.kind == "constant":
                value.fill_(param.init.value)
            elif param.init is not None:
                value.diagonal().add_(param.init.value)

    def extra_repr(self) -> str:
        text = str(self.graph).rstrip()
        if self.input_projection is not None:
            rows, cols = self.input_projection.shape
            text += f"\nx is projected from {cols} to {rows}, because the cell uses raw x"
        return text

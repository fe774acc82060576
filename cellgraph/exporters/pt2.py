"""A layer as a program of torch.export, weights inside, for any number of steps and rows.

The layer traces itself, stack and directions and all; only its loop is another one (`loop.py`) and
its parameters stand under names that the tracer can say. The check runs the file in a process that
has torch and not this package.

What torch limits: its `scan` is a prototype with a private name (tested with torch 2.13; one that
lacks it gives an error), and a call that records gradients traces the loop anew, which takes half a
second each time. So the file is for inference: its parameters ask for no gradients.
"""

from __future__ import annotations

import io
import keyword
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cellgraph.errors import CellError
from cellgraph.exporters import Difference, torch_only
from cellgraph.exporters.check import cases, compared
from cellgraph.layer import CellLayer
from cellgraph.parameters import Cell

#: Sizes of the call that is traced; the file takes any others.
STEPS, ROWS = 3, 2

#: What the tracer notes of each operation that names our classes, and files of this machine.
_OURS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")


class _Weights(nn.Module):
    """The effective parameters of a cell, which can stand in for it. The tracer writes code with
    `self.NAME` in it, so that a word of Python gets another name."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        tensors = cell.tensors()
        for name, value in tensors.items():
            local = name
            while keyword.iskeyword(local) or (local != name and local in tensors):
                local += "_"
            self.names[name] = local
            self.register_parameter(local, nn.Parameter(value.detach().clone(), False))
        self.input_projection: nn.Parameter | None = None
        if cell.input_projection is not None:
            self.input_projection = nn.Parameter(cell.input_projection.detach().clone(), False)

    def tensors(self) -> dict[str, Tensor]:
        """As `Cell.tensors`."""
        return {name: getattr(self, local) for name, local in self.names.items()}

    def enter(self, x: Tensor) -> Tensor:
        """As `Cell.enter`."""
        return Cell.enter(cast("Cell", self), x)


def render(layer: CellLayer) -> Mapping[str, bytes]:
    """The file's bytes, for a layer in float32 on the CPU. The program is called as the layer, with
    a batch and with states given: `torch.export.load(path).module()(x, state)`.

    Raises `CellError` where this torch cannot trace the loop.
    """
    contents = io.BytesIO()
    # A comment may hold what no file can, such as half of a surrogate pair.
    text = str(layer.cell).encode("utf-8", "replace").decode()
    torch.export.save(program(layer), contents, extra_files={"cell": text})
    return {"": contents.getvalue()}


def program(layer: CellLayer) -> torch.export.ExportedProgram:
    """The layer, traced. Raises `CellError`."""
    try:
        from cellgraph.exporters import loop
    except ImportError:
        raise _untraceable(layer, "it has no scan for torch.export") from None
    traced = deepcopy(layer).eval()
    traced.cells = nn.ModuleList(_Weights(cell) for cell in cast("Any", layer.cells))
    traced.run = loop.Runner(layer.cell)
    x = torch.zeros(STEPS, ROWS, layer.input_size)
    shapes = [(len(layer.cells), ROWS, size) for size in layer.state_sizes]
    steps, rows = torch.export.Dim("T", min=1), torch.export.Dim("B", min=1)
    axes: dict[int, Any] = {0: steps, 1: rows}
    if layer.batch_first:
        x, axes = x.transpose(0, 1), {0: rows, 1: steps}
    states, moving = tuple(torch.zeros(shape) for shape in shapes), ({1: rows},) * len(shapes)
    one = len(states) == 1
    try:
        with torch.no_grad():
            made = torch.export.export(
                traced,
                (x, states[0] if one else states),
                dynamic_shapes=(axes, moving[0] if one else moving),
            )
    except Exception as error:
        raise _untraceable(layer, str(error).strip().partition("\n")[0]) from error
    for module in made.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in _OURS:
                    node.meta.pop(key, None)
    return made


def difference(layer: CellLayer, path: Path) -> Difference:
    """The largest difference of the program in a file from the interpreter. Raises `CellError` for
    too large a one, and where a process that has only torch cannot run it."""
    one, found, calls = len(layer.state_sizes) == 1, list(cases(layer)), []
    for case in found:
        x = case.x.transpose(0, 1) if layer.batch_first else case.x
        calls.append((x, case.state[0] if one else case.state))
    results = [
        (y.transpose(0, 1) if layer.batch_first else y, (last,) if one else last)
        for y, last in torch_only.run(path, calls)
    ]
    return compared(layer, zip(found, results, strict=True))


def _untraceable(layer: CellLayer, reason: str) -> CellError:
    return CellError(
        f"torch {torch.__version__} cannot trace the loop of {layer.cell.name} ({reason}), "
        "expected torch 2.13 or newer"
    )

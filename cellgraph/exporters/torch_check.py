"""The check of an exported Python file: it is imported and run, as its user will."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from cellgraph.exporters import Difference
from cellgraph.exporters.check import largest_difference
from cellgraph.layer import CellLayer


def difference(layer: CellLayer, path: Path, name: str) -> Difference:
    """The largest difference of the class `name` in the file at `path` from the interpreter, with
    the sizes and the weights of a layer. Raises `CellError` for too large a one."""
    kind = _classes(path)[name]
    arguments = inspect.signature(kind).parameters.values()
    widths = [p.name for p in arguments if p.kind is p.KEYWORD_ONLY]
    exported: nn.Module = kind(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        batch_first=False,
        bidirectional=layer.bidirectional,
        **{w: layer.widths[width] for w, width in zip(widths, layer.cell.widths[1:], strict=True)},
    )
    exported.load_state_dict(layer.state_dict())
    exported.eval()

    def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, last = exported(x, state[0] if len(state) == 1 else state)
        return y, last if isinstance(last, tuple) else (last,)

    return largest_difference(layer, run)


def _classes(path: Path) -> dict[str, Callable[..., Any]]:
    """What a file defines. It is our own text; nothing of it stays in this process."""
    loader = SourceFileLoader("exported", str(path))
    spec = spec_from_loader("exported", loader)
    module = module_from_spec(cast("Any", spec))
    loader.exec_module(module)
    return vars(module)

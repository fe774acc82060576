"""Recurrent cells as small graphs: read and write them as equations, vary them, compile them into
PyTorch layers.

    cell = cellgraph.load("gru")                      # or a .cell or .json file, or RUN:KEY
    layer = cellgraph.compile(cell, input_size=32, hidden_size=64)
    y, state = layer(x)                               # shapes and state of torch.nn.LSTM

Reading, printing and mutating need no torch; `compile`, `from_torch`, `export` and `interpret`
import it on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cellgraph import zoo
from cellgraph.errors import CellError
from cellgraph.facts import Facts, facts
from cellgraph.graph import CellGraph, Init, Node, Param, State
from cellgraph.interchange import from_networkx, to_networkx
from cellgraph.loading import constants, load
from cellgraph.mutate import crossover, mutate, viable
from cellgraph.nasbench import from_recipe
from cellgraph.neighbours import closest, edit_distance, same_function_as
from cellgraph.notation import parse
from cellgraph.recipes import recipe
from cellgraph.sampling import sample_recipe
from cellgraph.simplify import simplify
from cellgraph.sizes import count_parameters, flops_per_step, hidden_size_for
from cellgraph.widths import build

if TYPE_CHECKING:
    from cellgraph.exporters import export
    from cellgraph.fingerprints import fingerprint, same_function
    from cellgraph.layer import CellLayer, compile
    from cellgraph.torch_layers import from_torch, to_torch

_LAZY = {
    "CellLayer": "layer",
    "compile": "layer",
    "export": "exporters",
    "fingerprint": "fingerprints",
    "from_torch": "torch_layers",
    "to_torch": "torch_layers",
    "same_function": "fingerprints",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"cellgraph.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'cellgraph' has no attribute {name!r}")


__all__ = [
    "CellError",
    "CellGraph",
    "CellLayer",
    "Facts",
    "Init",
    "Node",
    "Param",
    "State",
    "build",
    "closest",
    "compile",
    "constants",
    "count_parameters",
    "crossover",
    "edit_distance",
    "export",
    "facts",
    "fingerprint",
    "flops_per_step",
    "from_networkx",
    "from_recipe",
    "from_torch",
    "hidden_size_for",
    "load",
    "mutate",
    "parse",
    "recipe",
    "same_function",
    "same_function_as",
    "sample_recipe",
    "simplify",
    "to_networkx",
    "to_torch",
    "viable",
    "zoo",
]

"""Tasks, training and fitness: what a recurrent cell learns within a budget, next to the GRU.

    from evaluators import Settings, evaluate
    adam = Settings(optimizer="adam", scale=1.0, lr=0.01, clip=5.0, layers=1, params=25_000)
    (record,) = evaluate("gru", "memorisation", adam, budget=1000, seed=0)

Imports cellgraph alone. Never search, reports or ray; music21 only where a task's data are made,
torch only once one of the names below is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from evaluators.errors import DataError

if TYPE_CHECKING:
    from evaluators import tasks
    from evaluators.budget import Budget, Rung
    from evaluators.settings import Grid, Settings
    from evaluators.train import evaluate

_LAZY = {
    **dict.fromkeys(("Budget", "Rung"), "budget"),
    **dict.fromkeys(("Grid", "Settings"), "settings"),
    "evaluate": "train",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"evaluators.{_LAZY[name]}"), name)
    if name == "tasks":
        return import_module("evaluators.tasks")
    raise AttributeError(f"module 'evaluators' has no attribute {name!r}")


__all__ = ["Budget", "DataError", "Grid", "Rung", "Settings", "evaluate", "tasks"]

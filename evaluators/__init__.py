"""Tasks, training and fitness: what a recurrent cell learns within a budget, next to the GRU.

    from evaluators import Settings, evaluate
    adam = Settings(optimizer="adam", scale=1.0, lr=0.01, clip=5.0, layers=1, params=25_000)
    (record,) = evaluate("gru", "memorisation", adam, budget=1000, seed=0)

Imports cellgraph alone. Never search, reports or ray; music21 only where a task's data are made.
"""

from __future__ import annotations

from evaluators import tasks
from evaluators.errors import DataError
from evaluators.settings import Budget, Grid, Settings
from evaluators.train import evaluate

__all__ = ["Budget", "DataError", "Grid", "Settings", "evaluate", "tasks"]

"""The fitness of a cell relative to the GRU. Arithmetic on numbers: no training, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from evaluators.errors import DataError

TINY = 1e-12  #: losses below this count as this, so that the ratio of a perfect model stays finite


def score(
    results: Mapping[str, float | None],
    baseline: Mapping[str, float],
    maximise: Mapping[str, bool],
) -> float:
    """The minimum over tasks of the ratio to the baseline (Jozefowicz et al. 2015, equation 1).

    results   best metric of the cell on each task it has been trained on
    baseline  best metric of the GRU; its tasks are those that count
    maximise  for each task, whether more is better (accuracy) or less (losses, in nats)

    The paper only has accuracies: value / baseline. For a loss the ratio is baseline / value, so
    above 1 is better than the GRU either way. A task that is missing from `results`, or whose value
    is None or not finite, scores 0, below any trained cell: such a cell never improves on another.
    Raises `DataError` when the baseline is empty, not positive or not finite, or when a task has no
    direction.
    """
    if not baseline:
        raise DataError("no baseline: the score is relative to the GRU's best on at least one task")
    return min(_ratio(results.get(task), baseline[task], task, maximise) for task in baseline)


def _ratio(value: float | None, base: float, task: str, maximise: Mapping[str, bool]) -> float:
    if not (math.isfinite(base) and base > 0):
        raise DataError(f"baseline of task {task!r} is {base!r}; expected a positive finite number")
    if task not in maximise:
        raise DataError(f"no direction for task {task!r}: is more or less better?")
    if value is None or not math.isfinite(value):
        return 0.0
    return value / base if maximise[task] else base / max(value, TINY)

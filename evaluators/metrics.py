"""Losses and metrics: what steps cost in nats, and a whole split in numbers.

Nothing here trains (training.py); the customary units of a number belong to its task (task.py).

Letters for shapes: T time steps, B batch, V vocabulary, F frame width, N scored steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evaluators.model import Model
from evaluators.task import Split, Task


def summed_loss(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Nats summed over the N scored steps: cross-entropy, or the Bernoulli NLL of all notes."""
    if task.loss == "bernoulli":
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return functional.cross_entropy(logits, targets, reduction="sum")


def uniform_loss(task: Task) -> float:
    """What the predictor that knows nothing pays, nats per scored step."""
    if task.loss == "bernoulli":
        return task.output_width * math.log(2)
    return math.log(task.output_width)


def measure(model: Model, task: Task, split: Split) -> dict[str, float]:
    """The metrics of `model` on a whole split, as `Task.metrics` names them.

    Leaves the model in training mode if it was.
    """
    was_training = model.training
    model.eval()
    total, correct, count = 0.0, 0, 0
    state: Any = None
    with torch.no_grad():
        for batch in task.eval_batches(split):
            logits, targets, state = model.scored(batch, None if batch.first else state)
            total += float(summed_loss(task, logits, targets))
            count += len(targets)
            if task.loss == "categorical":
                correct += int((logits.argmax(dim=1) == targets).sum())
    model.train(was_training)
    return task.metrics(total / count, correct / count if task.loss == "categorical" else None)

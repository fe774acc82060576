"""One training step: loss, gradient, clipping, update, with as little around them as possible.

What a small model spends its time on is not arithmetic but calls, so: tokens are looked up behind
the first products (`CellLayer.lookup`), only scored steps reach the head, gradients are not summed
into zeros but taken as they come, and clipping and update are one pass over all parameters. The
usual model of a search, one compiled layer, does without autograd too (direct.py).

Letters for shapes: T time steps, B batch, V vocabulary, F frame width, N scored steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from evaluators.direct import Direct
from evaluators.metrics import summed_loss
from evaluators.model import Model
from evaluators.optimizer import FlatOptimizer
from evaluators.settings import Settings
from evaluators.task import Batch, Task


class Step:
    """Training of one model, a batch at a time: `forward`, then `backward`, then `update`.

    The gradient is that of the loss summed over time and divided by the batch size, for both
    optimisers. Jozefowicz et al. 2015 say no more than "divided by batch size"; a mean over 35
    steps as well would leave their learning rates of 0.1 to 5 and norms of 1 to 20 without effect.
    """

    def __init__(self, model: Model, task: Task, settings: Settings) -> None:
        self.model, self.task, self.clip = model, task, settings.clip
        # Who asks for eager asks for torch: no compiler is started then.
        compiled = model.layers.backend != "eager"
        self.optimizer = FlatOptimizer(list(model.parameters()), settings.optimizer, compiled)
        self._state: Any = None
        self._back: Callable[[], None] | None = None  # from the last loss to the parameters

    @cached_property
    def _direct(self) -> Direct | None:
        """Not before it is wanted, as it may compile. Raises `CellError`."""
        return Direct.of(self.model, self.task)

    def forward(self, batch: Batch) -> tuple[float, int]:
        """Nats summed over the scored steps of a batch, and their number N."""
        state = None if batch.first else self._state
        share = 1 / batch.inputs.shape[1]
        if self._direct is not None and self._direct.suits(batch):
            nats, scored, self._state = self._direct.forward(batch, state)
            self._back = partial(self._direct.backward, share)
            return nats, scored
        logits, targets, state = self.model.scored(batch, state)  # (N, V), (N,)
        self._state = _detach(state)
        loss = summed_loss(self.task, logits, targets)
        self._back = partial(loss.backward, loss.new_full((), share))
        return loss.item(), len(targets)

    def backward(self) -> float:
        """The gradient of what `forward` returned, over B; returns its norm before clipping."""
        if self._back is None:
            raise RuntimeError("a gradient without a loss, expected a call of forward before")
        back, self._back = self._back, None
        self.optimizer.zero_grad()
        back()
        return self.optimizer.clip(self.clip)

    def update(self, rate: float) -> None:
        """Move the parameters along the gradient that `backward` found."""
        self.optimizer.step(rate)


def _detach(state: Any) -> Any:
    """The same values without their history: gradients end at the edge of the unrolled piece."""
    if isinstance(state, tuple):
        return tuple(_detach(part) for part in state)
    return state if state is None else state.detach()

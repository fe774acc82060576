"""Learning-rate schedules: the rate of an update, and when training is over. Numbers, no torch."""

from __future__ import annotations

import math

from evaluators.budget import Budget

PATIENCE = 3  #: "halving": evaluations without gain before the first cut
HALVINGS = 4  #: "halving": evaluations trained at a reduced rate before the end
MUSIC_PATIENCE = 10
MUSIC_FACTOR = 0.8
MUSIC_SMALLEST = 1e-3


class Schedule:
    """The learning rate of one training: two plain schedules and two of Jozefowicz et al. 2015.

    constant  the rate of the settings throughout
    cosine    half a cosine from the rate of the settings to 0 at the end of the budget
    halving   the paper's search: after 3 evaluations in a row without gain on validation the rate
              is halved at every evaluation; training ends after 4 evaluations at reduced rates
    music     the paper's music: times 0.8 after 10 evaluations in a row without gain, then counting
              anew; ends when the rate is below 1e-3 (made for SGD: Adam's rates often start there)

    Where the paper counts epochs this counts evaluations (`Budget.eval_every` steps), because the
    tasks made on the fly have no epochs.
    """

    def __init__(self, budget: Budget, lr: float, maximise: bool) -> None:
        self.budget, self.maximise = budget, maximise
        self.lr = lr  # of "halving" and "music" it is the present rate, otherwise the first
        self.best: float | None = None
        self.waited = 0  # evaluations since the last gain
        self.halvings = 0

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if self.budget.schedule == "cosine":
            return 0.5 * self.lr * (1 + math.cos(math.pi * step / self.budget.steps))
        return self.lr

    def observe(self, value: float) -> bool:
        """Take in the validation metric of one evaluation; False when training is over."""
        if self.best is None or (value > self.best if self.maximise else value < self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.budget.schedule == "halving" and (self.halvings or self.waited >= PATIENCE):
            if self.halvings == HALVINGS:
                return False
            self.halvings += 1
            self.lr /= 2
        if self.budget.schedule == "music" and self.waited >= MUSIC_PATIENCE:
            self.lr *= MUSIC_FACTOR
            self.waited = 0
            return self.lr >= MUSIC_SMALLEST
        return True

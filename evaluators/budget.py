"""Training budgets: how many steps, judged how often, and where settings are compared on the way.

Plain frozen values, checked when they are made; every one is JSON-able. No torch here, and no
training (train.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from evaluators.checks import from_dict, one_of, real, whole
from evaluators.errors import DataError

ScheduleName = Literal["constant", "cosine", "halving", "music"]


@dataclass(frozen=True)
class Rung:
    """A point on the way where the settings of a cell are compared (halving.py says how).

    steps  updates after which; a multiple of the budget's `eval_every`, less than its `steps`
    keep   so many of the settings go on, at most; None: all
    bar    who has not reached this validation metric by then is stopped; None: nobody is
    """

    steps: int
    keep: int | None = None
    bar: float | None = None

    def __post_init__(self) -> None:
        whole("rung", "steps", self.steps)
        if self.keep is not None:
            whole("rung", "keep", self.keep)
        if self.bar is not None:
            object.__setattr__(self, "bar", real("rung", "bar", self.bar))

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long one training may take, in steps (updates), so that no result depends on speed.

    Anything out of range raises `DataError`.

    steps       most updates
    eval_every  updates from one validation to the next; this is what a paper's "epoch" means here
    schedule    how the learning rate falls, see schedule.py
    target      stop early, with status ok, once the validation metric is this good
    seconds     wall-clock guard for one setting; when it strikes the status is `timeout`
    rungs       where settings that are evaluated together are compared, and most of them stopped
    """

    steps: int
    eval_every: int
    schedule: ScheduleName = "constant"
    target: float | None = None
    seconds: float | None = None
    rungs: tuple[Rung, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every"):
            whole("budget", name, getattr(self, name))
        one_of("budget", "schedule", self.schedule, ScheduleName)
        for name in ("target", "seconds"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real("budget", name, getattr(self, name)))
        if self.seconds is not None and self.seconds <= 0:
            raise DataError(
                f"budget seconds is {self.seconds!r}; expected a positive number or nothing"
            )
        object.__setattr__(self, "rungs", _rungs(self.rungs))
        self._check_rungs()

    def _check_rungs(self) -> None:
        for number, rung in enumerate(self.rungs, start=1):
            # A comparison needs a fresh evaluation; behind the last step nobody is left to stop.
            if rung.steps % self.eval_every or rung.steps >= self.steps:
                raise DataError(
                    f"rung {number} steps is {rung.steps}; expected a multiple of eval_every, "
                    f"{self.eval_every}, below the budget's {self.steps} steps"
                )
        for number, (before, rung) in enumerate(pairwise(self.rungs), start=2):
            if rung.steps <= before.steps:
                raise DataError(
                    f"rung {number} steps is {rung.steps}; expected more than rung {number - 1} "
                    f"has, {before.steps}"
                )
        keeps = [(n, rung.keep) for n, rung in enumerate(self.rungs, start=1) if rung.keep]
        for (earlier, most), (number, keep) in pairwise(keeps):
            if keep > most:
                raise DataError(
                    f"rung {number} keep is {keep}; expected at most the {most} of rung {earlier}"
                )

    @classmethod
    def of(cls, value: Budget | int | Mapping[str, Any]) -> Budget:
        """A budget as it is, a number of steps evaluated ten times, or a mapping of the fields."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        whole("budget", "steps", value)
        return cls(steps=value, eval_every=max(1, value // 10))

    def to_dict(self) -> dict[str, Any]:
        """Numbers, texts and lists: the same after a way through JSON."""
        return vars(self) | {"rungs": [rung.to_dict() for rung in self.rungs]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """The inverse of `to_dict`; unknown and missing keys raise `DataError`."""
        return from_dict(cls, "budget", values)


def _rungs(values: Any) -> tuple[Rung, ...]:
    """Rungs as they are, or from mappings of their fields."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise DataError(f"budget rungs is {values!r:.40}; expected a list of rungs")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, (Rung, Mapping)):
            raise DataError(f"rung {number} is {value!r:.40}; expected steps, keep and bar")
    return tuple(v if isinstance(v, Rung) else from_dict(Rung, "rung", v) for v in values)

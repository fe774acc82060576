"""Hyperparameter settings, the grids they are drawn from, and training budgets.

Plain frozen values, checked when they are made; every one is JSON-able. No torch here, no training
(train.py), and no search policy: a grid can be indexed and sampled, but who samples what is decided
by the search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from evaluators.errors import DataError, unknown

OptimizerName = Literal["sgd", "adam"]
ScheduleName = Literal["constant", "cosine", "halving", "music"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One point of hyperparameter space. Anything out of range raises `DataError`.

    scale      initial parameters are uniform in [-scale/sqrt(H), scale/sqrt(H)], H units a layer
    lr         learning rate at the start; a budget's schedule lowers it
    clip       largest norm of the gradient (of the loss summed over time, divided by batch size)
    layers     recurrent layers, one above the other
    params     budget of all parameters of the model: embedding, cells and head (model.py finds H)
    optimizer  "sgd" (plain) or "adam" (betas 0.9, 0.999)
    dropout    probability, between layers and before the head
    """

    scale: float
    lr: float
    clip: float
    layers: int
    params: int
    optimizer: OptimizerName = "sgd"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "lr", "clip", "dropout"):
            # A YAML 1 and a YAML 1.0 are one setting: they must have one id.
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        for name in ("layers", "params"):
            _whole(name, getattr(self, name))
        for name in ("scale", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise DataError(
                    f"setting {name} is {getattr(self, name)!r}; expected a positive number"
                )
        if not self.dropout < 1 or self.dropout < 0:
            raise DataError(f"setting dropout is {self.dropout!r}; expected 0 <= dropout < 1")
        if self.optimizer not in get_args(OptimizerName):
            raise DataError(
                f"setting optimizer is {self.optimizer!r}; expected {_either(OptimizerName)}"
            )

    @property
    def id(self) -> str:
        """Short text, equal for equal settings and different for different ones, on every machine.

        Seeds are derived from it. Dropout is named only when it is used.
        """
        parts = [self.optimizer, f"lr={_short(self.lr)}", f"scale={_short(self.scale)}"]
        parts += [f"clip={_short(self.clip)}", f"layers={self.layers}", f"params={self.params}"]
        if self.dropout:
            parts.append(f"dropout={_short(self.dropout)}")
        return ",".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`; unknown and missing keys raise `DataError`."""
        return _from_dict(cls, "setting", values)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All combinations of lists of values: an indexable space of `Settings`.

    Index 0 is the first value of every list; the last list, `params`, turns fastest (mixed radix).
    """

    optimizer: tuple[OptimizerName, ...]
    scale: tuple[float, ...]
    lr: tuple[float, ...]
    clip: tuple[float, ...]
    layers: tuple[int, ...]
    dropout: tuple[float, ...] = (0.0,)
    params: tuple[int, ...]

    def __post_init__(self) -> None:
        for axis in fields(self):
            values = getattr(self, axis.name)
            if not isinstance(values, (list, tuple)) or not values:
                raise DataError(
                    f"grid {axis.name} is {values!r}; expected a list of at least one value"
                )
            object.__setattr__(self, axis.name, tuple(values))
        first = self._values((0,) * len(self._sizes))
        for axis, values in zip(fields(self), self._axes, strict=True):
            for value in values:  # a bad value is reported now, not when it is drawn
                Settings(**(first | {axis.name: value}))
            if len(frozenset(values)) != len(values):
                raise DataError(f"grid {axis.name} has a value twice: {list(values)}")

    @property
    def _axes(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(getattr(self, axis.name) for axis in fields(self))

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self._axes)

    def _values(self, digits: tuple[int, ...]) -> dict[str, Any]:
        axes = zip(fields(self), self._axes, digits, strict=True)
        return {axis.name: values[digit] for axis, values, digit in axes}

    def __len__(self) -> int:
        return math.prod(self._sizes)

    def __getitem__(self, index: int) -> Settings:
        """The setting at `index`; `IndexError` outside 0 <= index < len(grid)."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a grid of {len(self)} settings")
        digits = []
        for size in reversed(self._sizes):
            index, digit = divmod(index, size)
            digits.append(digit)
        return Settings(**self._values(tuple(reversed(digits))))

    def __iter__(self) -> Iterator[Settings]:
        return (self[index] for index in range(len(self)))

    def index(self, settings: Settings) -> int:
        """Where `settings` stands: `grid[grid.index(s)] == s`; `DataError` if off the grid."""
        index = 0
        for axis, values in zip(fields(self), self._axes, strict=True):
            value = getattr(settings, axis.name)
            if value not in values:
                raise DataError(
                    f"{axis.name}={value!r} is not in the grid, which has {list(values)}"
                )
            index = index * len(values) + values.index(value)
        return index

    def sample(self, rng: random.Random, count: int, exclude: Collection[int] = ()) -> list[int]:
        """`count` different indices outside `exclude`, uniformly; all that remain if fewer.

        Depends on what is excluded, not on its order.
        """
        taken = frozenset(exclude)
        free = [index for index in range(len(self)) if index not in taken]
        return rng.sample(free, min(count, len(free)))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long one training may take, in steps (updates), so that no result depends on speed.

    steps       most updates
    eval_every  updates from one validation to the next; this is what a paper's "epoch" means here
    schedule    how the learning rate falls, see schedule.py
    target      stop early, with status ok, once the validation metric is this good
    seconds     wall-clock guard for one setting; when it strikes the status is `timeout`
    """

    steps: int
    eval_every: int
    schedule: ScheduleName = "constant"
    target: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every"):
            _whole(name, getattr(self, name), kind="budget")
        if self.schedule not in get_args(ScheduleName):
            raise DataError(
                f"budget schedule is {self.schedule!r}; expected {_either(ScheduleName)}"
            )
        for name in ("target", "seconds"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _real(name, getattr(self, name), kind="budget"))
        if self.seconds is not None and self.seconds <= 0:
            raise DataError(
                f"budget seconds is {self.seconds!r}; expected a positive number or nothing"
            )

    @classmethod
    def of(cls, value: Budget | int | Mapping[str, Any]) -> Budget:
        """A budget as it is, a number of steps evaluated ten times, or a mapping of the fields."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        _whole("steps", value, kind="budget")
        return cls(steps=value, eval_every=max(1, value // 10))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """The inverse of `to_dict`; unknown and missing keys raise `DataError`."""
        return _from_dict(cls, "budget", values)


Checked = TypeVar("Checked", Settings, Budget)


def _from_dict(cls: type[Checked], kind: str, values: Mapping[str, Any]) -> Checked:
    known = {field.name: field for field in fields(cls)}
    for name in values:
        if name not in known:
            raise unknown(f"key of a {kind}", name, known)
    missing = [n for n, field in known.items() if field.default is MISSING and n not in values]
    if missing:
        raise DataError(f"{kind} without {', '.join(missing)}")
    return cls(**values)


def _real(name: str, value: Any, kind: str = "setting") -> float:
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{kind} {name} is {value!r:.40}; expected a finite number")
    return number


def _whole(name: str, value: Any, kind: str = "setting") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{kind} {name} is {value!r}; expected a whole number from 1")


def _either(choices: Any) -> str:
    return " or ".join(repr(choice) for choice in get_args(choices))


def _short(value: float) -> str:
    return repr(value).removesuffix(".0")  # repr is exact, so different values stay different


#: The grid of Jozefowicz et al. 2015: 840 settings for each parameter budget. The paper's budgets
#: are 250,000 and 1 million (arithmetic, XML), 100,000 and 1 million (music) and 5 million (PTB).
JOZEFOWICZ = Grid(
    optimizer=("sgd",),
    scale=(0.3, 0.7, 1.0, 1.4, 2.0, 2.8),
    lr=(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0),
    clip=(1.0, 2.5, 5.0, 10.0, 20.0),
    layers=(1, 2, 3, 4),
    params=(250_000,),
)

#: A small grid for Adam, 60 settings for each parameter budget. The learning rate explains most of
#: what settings explain at all (67-91 % of the variance in Greff et al. 2017, figure 5), so it has
#: the most values. They bracket the best of GRU and LSTM with 25,000 parameters in 200 to 1,000
#: steps: 0.01 on memorisation, 0.01 to 0.02 on arithmetic, 0.04 on characters, 0.03 on chorales.
MODERN = Grid(
    optimizer=("adam",),
    scale=(0.7, 1.4, 2.0),
    lr=(0.003, 0.006, 0.01, 0.02, 0.04),
    clip=(1.0, 5.0),
    layers=(1, 2),
    params=(25_000,),
)

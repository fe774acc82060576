"""Hyperparameter settings, and the grids they are drawn from.

Plain frozen values, checked when they are made; every one is JSON-able. No torch here, no training
(train.py), and no search policy: a grid can be indexed and sampled, but who samples what is decided
by the search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

from evaluators.checks import from_dict, one_of, real, whole
from evaluators.errors import DataError

OptimizerName = Literal["sgd", "adam"]


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
            object.__setattr__(self, name, real("setting", name, getattr(self, name)))
        for name in ("layers", "params"):
            whole("setting", name, getattr(self, name))
        for name in ("scale", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise DataError(
                    f"setting {name} is {getattr(self, name)!r}; expected a positive number"
                )
        if not self.dropout < 1 or self.dropout < 0:
            raise DataError(f"setting dropout is {self.dropout!r}; expected 0 <= dropout < 1")
        one_of("setting", "optimizer", self.optimizer, OptimizerName)

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
        return dict(vars(self))  # plain numbers and texts: `asdict` would copy them deeply

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`; unknown and missing keys raise `DataError`."""
        return from_dict(cls, "setting", values)


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

    @cached_property
    def _axes(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(getattr(self, axis.name) for axis in fields(self))

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self._axes)

    @cached_property
    def _made(self) -> dict[int, Settings]:
        """The settings that were asked for; a search asks for the same ones all the time."""
        return {}

    def _values(self, digits: tuple[int, ...]) -> dict[str, Any]:
        axes = zip(fields(self), self._axes, digits, strict=True)
        return {axis.name: values[digit] for axis, values, digit in axes}

    def __len__(self) -> int:
        return math.prod(self._sizes)

    def __getitem__(self, index: int) -> Settings:
        """The setting at `index`; `IndexError` outside 0 <= index < len(grid)."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a grid of {len(self)} settings")
        if index not in self._made:
            digits, rest = [], index
            for size in reversed(self._sizes):
                rest, digit = divmod(rest, size)
                digits.append(digit)
            self._made[index] = Settings(**self._values(tuple(reversed(digits))))
        return self._made[index]

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

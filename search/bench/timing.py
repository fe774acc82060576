"""Wall-clock times of things that are to be compared: interleaved runs, and their medians.

Nothing here knows what is measured.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How often something is measured: at least `least` rounds, and up to `most` for as long as
    `seconds` are not over. In each a variant is called as often as fills `turn` seconds, once at
    least: what it finds of its own in the caches is then what it would find in a loop."""

    seconds: float
    least: int = 3
    most: int = 15
    turn: float = 0.03


@dataclass(frozen=True)
class Times:
    """Seconds of a call: the mean of every turn."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def over(self, other: Times) -> float:
        """How many times as long as another of the same rounds: the median of the rounds' ratios.

        Of two turns that follow each other a busy machine slows down both, so this moves less than
        the ratio of the medians.
        """
        return statistics.median(a / b for a, b in zip(self.runs, other.runs, strict=True))


def interleaved(variants: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, Times]:
    """The times of all variants, run in turns, so that a noisy moment hits all alike.

    Every round has an order of its own: no variant always follows the same one. A variant may
    return how long it took (a float), where that is not the time of the call. One call of each
    comes first and does not count.
    """
    runs: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would be counted for whoever runs at that moment
    try:
        calls = {
            name: max(1, round(effort.turn / max(_seconds(run), 1e-6)))
            for name, run in variants.items()
        }
        begin = time.perf_counter()
        for done in range(effort.most):
            if done >= effort.least and time.perf_counter() - begin > effort.seconds:
                break
            shuffle(order)
            for name in order:
                spent = math.fsum(_seconds(variants[name]) for _ in range(calls[name]))
                runs[name].append(spent / calls[name])
    finally:
        if collecting:
            gc.enable()
    return {name: Times(tuple(seconds)) for name, seconds in runs.items()}


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    took = run()
    spent = time.perf_counter() - begin
    return took if isinstance(took, float) else spent


def geometric_mean(values: Iterable[float]) -> float | None:
    """None of no values."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that at least so many percent do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -(-percent * len(ranked) // 100) - 1)]

"""Successive halving: which settings of a cell go on after a rung of the budget.

Most settings are hopeless long before their budget is spent (Jamieson and Talwalkar 2016, arXiv
1502.07943). Those of one cell are trained in lockstep to each rung and compared there; what a rung
asks for is decided by the search. Numbers only: no torch, no training (train.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.budget import Rung


@dataclass(frozen=True)
class Standing:
    """How a setting stands at a rung."""

    value: float  # its best validation metric so far
    finished: bool = False  # it has ended well: its target reached, or its schedule over


def compare(
    number: int, rung: Rung, standings: Sequence[Standing], metric: str, maximise: bool
) -> list[str | None]:
    """Why each setting is stopped at the rung, which is the `number`-th; None where it is not.

    First those go whose best value does not reach the bar (equal is enough). Of the others the best
    `keep` go on, of equals the earlier. A finished setting is never stopped, and takes a place
    among those that are kept like any other: whoever is worse has lost to it.
    """
    bar = rung.bar
    reached = [bar is None or not _worse(s.value, bar, maximise) for s in standings]
    ranked = [at for at, enough in enumerate(reached) if enough]
    ranked.sort(key=lambda at: standings[at].value, reverse=maximise)  # stable, reversed or not
    kept = frozenset(ranked[: rung.keep])
    reasons: list[str | None] = []
    for at, standing in enumerate(standings):
        if at in kept or standing.finished:
            reasons.append(None)
        elif reached[at]:
            reasons.append(f"rung {number}: not among the best {rung.keep} of {len(standings)}")
        else:
            reasons.append(
                f"rung {number}: {metric} {standing.value:.6g} after {rung.steps} steps, "
                f"expected at {'least' if maximise else 'most'} {bar:.6g}"
            )
    return reasons


def _worse(value: float, than: float, maximise: bool) -> bool:
    return value < than if maximise else value > than

"""Tables of plain text, and targets: what should hold, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """One thing that should hold; `measured` None where nothing was measured that it speaks of."""

    what: str
    bound: str
    measured: float | None
    holds: Callable[[float], bool]

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.holds(self.measured)

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "what": self.what,
            "bound": self.bound,
            "measured": self.measured,
            "met": self.met,
        }


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as needed, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def targets_table(targets: Sequence[Target]) -> list[str]:
    """A line for each that was measured; nothing where none was."""
    rows = [["target", "should be", "is", ""]]
    for target in targets:
        if target.measured is not None:
            state = "ok" if target.met else "missed"
            rows.append([target.what, target.bound, f"{target.measured:.3g}", state])
    return aligned(rows) if len(rows) > 1 else []

"""How far a confirmation is, on standard error: a bar on a terminal, a plain line now and then
elsewhere. Watches, never decides."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from search.confirmation.plan import Plan
from search.journal import UnitRow
from search.progress import PLAIN_SECONDS


class Watch(Protocol):
    """Who watches a confirmation. Nothing it does can change what comes out."""

    def planned(self, plan: Plan) -> None: ...

    def done(self, unit: UnitRow, *, failed: bool, fresh: bool) -> None: ...

    def waiting(self) -> None: ...


class Progress:
    """A `Watch` that shows what it sees, and a context manager around it."""

    def __init__(self, title: str, console: Console) -> None:
        self.title, self.console = title, console
        self.bars: Bars | None = None
        self.trainings = self.finished = self.failed = self.held = 0
        self.seconds = 0.0  # planned, of all trainings
        self.spent = self.fresh = 0.0  # of those that are done, and were done since `begin`
        self.begin = self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[at]}"),
            )
            self.bars = Bars(*columns, console=self.console)
            self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def planned(self, plan: Plan) -> None:
        self.trainings, self.seconds = plan.estimate()
        options = plan.options
        self._print(
            f"{self.title}: {len(plan.entrants)} cells on {', '.join(options.tasks or ())}; "
            f"{options.settings} settings, then {options.seeds} seeds: {self.trainings} trainings, "
            f"planned at {self.seconds / 3600:.2g} core-hours"
        )
        for note in plan.notes:
            self._print(f"  {note}")
        if self.bars is not None:
            self.bars.add_task("", total=self.trainings, at="")

    def done(self, unit: UnitRow, *, failed: bool, fresh: bool) -> None:
        self.finished += 1
        self.failed += failed
        self.spent += unit.cost
        if fresh:
            self.fresh += unit.cost
        else:
            self.held += 1

    def waiting(self) -> None:
        if self.bars is not None:
            self.bars.update(self.bars.task_ids[0], completed=self.finished, at=self.line())
        elif time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self._print(self.line())

    def line(self) -> str:
        """One plain line."""
        elapsed = time.monotonic() - self.begin
        parts = [clock(elapsed), f"{self.finished}/{self.trainings} trainings"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.held:
            parts.append(f"{self.held} from the journal")
        if self.fresh and self.seconds > self.spent:
            left = elapsed / self.fresh * (self.seconds - self.spent)
            parts.append(f"about {clock(left)} left")
        return "  ".join(parts)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """2:05, or 1:02:05."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""Live progress of a run: a picture that redraws itself on a terminal, plain lines elsewhere.
Watches, never decides."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.algorithms import Algorithm, Work
from search.journal import ResultRow, UnitRow

PLAIN_SECONDS = 15.0  # between two plain lines


class Progress:
    """An observer of the loop (see `search.loop.Observer`) and a context manager around it."""

    def __init__(self, title: str, algorithm: Algorithm, console: Console) -> None:
        self.title, self.algorithm, self.console = title, algorithm, console
        self.begin = time.monotonic()
        self.live: Live | None = None
        self.trainings = self.stopped = self.failed = self.replayed = self.eager = 0
        self.fresh_since: tuple[float, int] | None = (
            None  # (time, candidates done) when fresh results began
        )
        self.last_line = float("-inf")
        self.phase = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live = Live(
                console=self.console, get_renderable=self.picture, refresh_per_second=2
            )
            self.live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, value, trace)
        elif kind is None:
            self.console.print(self.line(), highlight=False, soft_wrap=True)

    # -- the observer

    def consumed(self, unit: UnitRow, work: Work, result: ResultRow, replayed: bool) -> None:
        if result.status == "ok":
            statuses = [r["status"] for r in result.records if r.get("stage") != "screen"]
        else:  # no worker survived the unit: all its settings failed
            statuses = [result.status] * len(work.indices)
        self.trainings += len(statuses)
        self.stopped += statuses.count("rejected")
        self.failed += sum(status not in ("ok", "rejected") for status in statuses)
        self.eager += any("fallback" in record for record in result.records)
        if replayed:
            self.replayed += 1
            return
        progress = self.algorithm.progress()
        if progress.phase == "candidates" and self.fresh_since is None:
            self.fresh_since = (time.monotonic(), progress.done)
        self.waiting()

    def waiting(self) -> None:
        now, phase = time.monotonic(), self.algorithm.progress().phase
        if self.live is None and (phase != self.phase or now - self.last_line >= PLAIN_SECONDS):
            self.last_line, self.phase = now, phase
            self.console.print(self.line(), highlight=False, soft_wrap=True)

    # -- what is shown

    def elapsed(self) -> str:
        return _clock(time.monotonic() - self.begin)

    def line(self) -> str:
        """One plain line."""
        progress = self.algorithm.progress()
        parts = [f"{self.elapsed()}  {progress.phase} {progress.done}/{progress.total}"]
        parts += [
            f"{name} {passed}/{tried} passed"
            for name, tried, passed in self.algorithm.funnel()
            if tried
        ]
        standing = self.algorithm.standing()
        if standing:
            mean = self.algorithm.statistics()["mean"]
            parts.append(f"best {standing[0][1]} {standing[0][0]:.3f}, pool {mean:.3f}")
        parts.append(self.counts())
        if self.eager:
            parts.append(f"{self.eager} units not compiled")
        if self.replayed:
            parts.append(f"{self.replayed} units from the journal")
        left = self.left()
        if left is not None:
            parts.append(f"about {_clock(left)} left")
        return "  |  ".join(parts)

    def counts(self) -> str:
        """Trainings, and how many of them did not come to their end."""
        stopped = f", {self.stopped} stopped early" if self.stopped else ""
        return f"{self.trainings} trainings{stopped}, {self.failed} failed"

    def left(self) -> float | None:
        """Seconds to go at the rate so far; None until there is a rate."""
        progress = self.algorithm.progress()
        if self.fresh_since is None or progress.phase != "candidates":
            return None
        since, before = self.fresh_since
        done = progress.done - before
        to_go = progress.total - progress.done
        return (time.monotonic() - since) / done * to_go if done and to_go else None

    def picture(self) -> Group:
        """What a terminal shows."""
        progress = self.algorithm.progress()
        left = self.left()
        head = Text.assemble(
            (self.title, "bold"),
            f"  {self.elapsed()}  {self.counts()}",
            f", {self.eager} units not compiled" if self.eager else "",
            f"  about {_clock(left)} left" if left is not None else "",
        )
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            progress.phase,
            ProgressBar(total=max(progress.total, 1), completed=progress.done, width=40),
            f"{progress.done}/{progress.total}",
        )
        stages = Table("stage", "finished", "passed", box=None, pad_edge=False)
        for name, tried, passed in self.algorithm.funnel():
            stages.add_row(name, str(tried), str(passed))
        best = Table("best cells", "search score", box=None, pad_edge=False)
        for score, name in self.algorithm.standing()[:5]:
            best.add_row(name, f"{score:.4f}")
        statistics = self.algorithm.statistics()
        if statistics:
            worst, mean = statistics["worst"], statistics["mean"]
            best.add_row("pool", f"{mean:.4f} on average, {worst:.4f} at worst", style="dim")
        both = Table.grid(padding=(0, 4))
        both.add_row(stages, best)
        return Group(head, bar, both)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Silent:
    """An observer that shows nothing."""

    def consumed(self, unit: UnitRow, work: Work, result: ResultRow, replayed: bool) -> None: ...

    def waiting(self) -> None: ...

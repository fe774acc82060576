"""How far a measurement is, on standard error: one line that changes on a terminal, a line now and
then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console

PLAIN_SECONDS = 15.0  # between two plain lines of one phase


class Progress:
    """Says what goes on; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console, self.begin = console, time.monotonic()
        self.status = console.status("") if console.is_terminal else None
        self.phase, self.last = "", float("-inf")

    def __enter__(self) -> Progress:
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        minutes, seconds = divmod(int(now - self.begin), 60)
        line = f"{minutes}:{seconds:02}  {phase}  {done} of {total}"
        if self.status is not None:
            self.status.update(line)
        elif phase != self.phase or now - self.last >= PLAIN_SECONDS:
            self.phase, self.last = phase, now
            self.console.print(line, highlight=False, soft_wrap=True)

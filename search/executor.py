"""Where units of work are run: the interface, and the one that runs them right here.

A unit is an id and a payload of plain data; a function turns the payload into a result of plain
data. What the payload means is the business of whoever submits it. The executor on many processes
and machines is `search.cluster.RayExecutor`; the results must not depend on which one ran them.
"""

from __future__ import annotations

import copy
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Payload = dict[str, Any]
UnitFunction = Callable[[Payload], dict[str, Any]]
Status = Literal["ok", "crashed", "timeout", "out_of_memory"]
#: What happened to workers and nodes: a kind (worker_lost, worker_recycled, node_joined, node_left)
#: and plain data about it.
Event = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit. A failure is an outcome too; an executor raises only for its own."""

    unit: int
    status: Status
    # What the function returned; None unless the status is "ok".
    result: dict[str, Any] | None
    # One line for the reader of the run; None when the status is "ok".
    error: str | None
    # Wall time of the last attempt.
    seconds: float
    worker: str
    # How often the unit was started, the last time included.
    attempts: int


class Executor(Protocol):
    """Takes units, gives outcomes: exactly one for each unit, in any order."""

    @property
    def workers(self) -> int:
        """How many units can run at the same time."""
        ...

    def submit(self, unit: int, payload: Payload) -> None:
        """Queue a unit; returns at once. Units start in the order in which they are submitted, with
        the next `wait` at the latest."""
        ...

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """The outcomes since the last call: at least one, or none after `timeout` seconds.

        Returns an empty list at once when nothing is outstanding.
        """
        ...

    def events(self) -> list[Event]:
        """What happened to the workers since the last call, for the reader of the run."""
        ...

    def drain(self) -> None:
        """Drop what is queued, for good; `wait` gives the outcomes of what workers are at."""
        ...

    def close(self) -> None:
        """Drop what is queued, stop what runs. Closing twice does nothing."""
        ...


class InlineExecutor:
    """Runs units in this process, one per `wait`, first come first served: the reference."""

    workers = 1

    def __init__(self, function: UnitFunction) -> None:
        self._function = function
        self._queue: deque[tuple[int, Payload]] = deque()

    def submit(self, unit: int, payload: Payload) -> None:
        # A copy, as a worker in another process would get: the function may change its payload.
        self._queue.append((unit, copy.deepcopy(payload)))

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """The outcome of the next unit, however long it takes: nobody is left to stop it."""
        if not self._queue:
            return []
        unit, payload = self._queue.popleft()
        status, result, error, seconds = attempt(self._function, payload)
        return [Outcome(unit, status, result, error, seconds, "driver", 1)]

    def events(self) -> list[Event]:
        """None: there is no worker to lose."""
        return []

    def drain(self) -> None:
        self._queue.clear()

    def close(self) -> None:
        self._queue.clear()


def attempt(
    function: UnitFunction, payload: Payload
) -> tuple[Status, dict[str, Any] | None, str | None, float]:
    """Call `function`; its status, result, error and seconds. Only KeyboardInterrupt passes."""
    start = time.perf_counter()
    status: Status = "ok"
    result, message = None, None
    try:
        result = function(payload)
    except (Exception, SystemExit) as error:
        status, message = "crashed", describe(error)
        # torch on a CPU has no exception of its own: "DefaultCPUAllocator: can't allocate memory".
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and "allocate memory" in str(error)
        ):
            status = "out_of_memory"
    return status, result, message, time.perf_counter() - start


def describe(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def last_error(text: str) -> str:
    """One line out of a traceback, which ends in "module.SomeError: text"; the text may be long."""
    start = max((match.start() for match in re.finditer(r"^\w[\w.]*: ", text, re.M)), default=0)
    words = " ".join(text[start:].split())
    return words if len(words) <= 300 else f"{words[:297]}..."

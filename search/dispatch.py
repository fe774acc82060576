"""Which unit runs on which worker, and who is to blame when a worker dies. No Ray, no clock.

A lane is one worker process with the calls that are in flight on it, which it runs in order. Two in
flight keep a worker busy while the driver thinks; more would only take more along when it dies
(measured: 97 % busy with two, no better with three). Deaths are the rule, not the exception, so:

* Only the oldest call of a dead lane was running; it alone is blamed. The others go back to the
  head of the queue as if nothing had happened.
* A call that was blamed is a suspect: it is tried again, but alone on its lane, so that whatever
  dies next is known to have died of it. After `attempts` deaths it is given up. (A call that kills
  at once may take the result of the one before it along; that one is blamed, and just runs again.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WINDOW = 2


@dataclass(eq=False)
class Call:
    """A unit on its way; `limit` is how many seconds it may run, `deaths` how many it has cost."""

    unit: int
    payload: dict[str, Any]
    limit: float
    deaths: int = 0
    # When it became the oldest on its lane, that is, when it began to run; 0 before that.
    started: float = 0.0


@dataclass(eq=False)
class Lane:
    """One worker; `up` while it answers."""

    index: int
    up: bool = False
    worker: str = ""
    calls: list[Call] = field(default_factory=list)

    @property
    def deadline(self) -> float | None:
        """When its oldest call has run for too long; None when it runs nothing."""
        return self.calls[0].started + self.calls[0].limit if self.calls else None


class Dispatch:
    """The queue and the lanes. Times are seconds on any clock that the caller keeps to."""

    def __init__(self, lanes: int, attempts: int) -> None:
        self.lanes = [Lane(i) for i in range(lanes)]
        self._attempts = attempts
        self._queue: deque[Call] = deque()
        self._suspects: deque[Call] = deque()

    @property
    def outstanding(self) -> int:
        """Calls that are queued or in flight."""
        in_flight = sum(len(lane.calls) for lane in self.lanes)
        return len(self._queue) + len(self._suspects) + in_flight

    def add(self, call: Call) -> None:
        self._queue.append(call)

    def assign(self, now: float) -> Iterator[tuple[Lane, Call]]:
        """Put queued calls on lanes that are up, and tell which went where, in order."""
        for depth in range(WINDOW):
            for lane in self.lanes:
                if not lane.up or len(lane.calls) != depth or any(c.deaths for c in lane.calls):
                    continue
                if self._suspects:
                    # As long as a suspect waits for an empty lane, no lane gets a second call.
                    call = self._suspects.popleft() if depth == 0 else None
                else:
                    call = self._queue.popleft() if self._queue else None
                if call is not None:
                    lane.calls.append(call)
                    if depth == 0:
                        call.started = now
                    yield lane, call

    def finish(self, lane: Lane, call: Call, now: float) -> None:
        """`call` has returned."""
        was_oldest = lane.calls[0] is call
        lane.calls.remove(call)
        if was_oldest and lane.calls:
            lane.calls[0].started = now

    def lose(self, lane: Lane) -> Call | None:
        """The worker of `lane` has died. Returns the call to give up, if it died once too often."""
        blamed = self.evict(lane)
        if blamed is None:
            return None
        blamed.deaths += 1
        if blamed.deaths >= self._attempts:
            return blamed
        self._suspects.append(blamed)
        return None

    def evict(self, lane: Lane) -> Call | None:
        """Take `lane` down and return its oldest call; the others go back to the queue."""
        lane.up = False
        if not lane.calls:
            return None
        oldest, *others = lane.calls
        lane.calls = []
        self._queue.extendleft(reversed(others))
        return oldest

    def clear(self) -> None:
        """Forget every call."""
        self._queue.clear()
        self._suspects.clear()
        for lane in self.lanes:
            lane.calls = []

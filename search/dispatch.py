"""Which unit runs on which worker, and who is to blame when a worker fails. No Ray, no clock.

A lane is one worker process after another, with the calls that are in flight on it, which it runs
in order. Two in flight keep a worker busy while the driver thinks; more would only take more along
when it dies (measured: 97 % busy with two, no better with three). Deaths are the rule, not the
exception, so:

* Only the oldest call of a dead lane was running; it alone is blamed. The others go back to the
  head of the queue as if nothing had happened.
* A call that was blamed is a suspect: it is tried again alone, so that whatever fails next is known
  to have failed on it, and on another lane as long as there is one. After `attempts` failures it is
  given up. (A call that kills at once may take the result of the one before it along; that one is
  blamed, and just runs again.)
* A node that is lost is nobody's fault, unless it happens to one call again and again.
* Calls of a few milliseconds travel together, as a journey costs half a millisecond. Where a worker
  dies on such a journey nobody is blamed: all of it is tried again, each alone.
* A worker that has answered `recycle` calls is replaced once it has nothing in flight: what its
  libraries leak goes with it. The others work on meanwhile.

Every operation takes the same time however many calls are queued.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

WINDOW = 2

# Calls travel together, so many at most, as long as all of them take so many seconds, by what the
# last dozen or so took.
_TOGETHER, _JOURNEY, _LAST = 8, 0.005, 12

# So often a node may be lost under a call before that looks like the call's doing.
NODE_LOSSES = 5

# One lane in so many may be replaced at a time, and always one.
_REPLACED_TOGETHER = 8
# Seconds for which a lane that is being replaced keeps others from it; there may be no room for the
# new worker any more.
_PATIENCE = 60.0


@dataclass(eq=False)
class Call:
    """A unit on its way: `payload` as the worker gets it, `limit` in seconds of running."""

    unit: int
    payload: bytes
    limit: float
    # Workers that failed on it, and the lane of the last one.
    failures: int = 0
    failed_on: Lane | None = None
    # Nodes that were lost while it ran.
    node_losses: int = 0
    # When it became the oldest on its lane, that is, when it began to run; 0 before that.
    started: float = 0.0
    # Is it tried alone, as whatever it is on the way with may fail?
    alone: bool = False
    # Calls that travel with it, to be run after it.
    mates: list[Call] = field(default_factory=list)

    @property
    def starts(self) -> int:
        """How often it was started and did not come to an end."""
        return self.failures + self.node_losses

    @property
    def party(self) -> list[Call]:
        """All that travel together, in the order in which they run."""
        return [self, *self.mates]

    def part(self) -> list[Call]:
        """The party, which is one no longer."""
        party, self.mates = self.party, []
        return party

    @property
    def patience(self) -> float:
        """Seconds that the journey may take: those of one call, as those that travel together are
        expected to take next to nothing. What is late gets its own time, alone."""
        return max(call.limit for call in self.party)


@dataclass(eq=False)
class Lane:
    """One worker; `up` while it answers."""

    number: int
    up: bool = False
    worker: str = ""
    calls: list[Call] = field(default_factory=list)  # the first of each journey
    # Calls that its present process has answered.
    answered: int = 0
    # Gets no more calls, as its process is to be replaced.
    retiring: bool = False

    @property
    def deadline(self) -> float | None:
        """When its oldest call has run for too long; None when it runs nothing."""
        return self.calls[0].started + self.calls[0].patience if self.calls else None


class Dispatch:
    """The queue and the lanes. Times are seconds on any clock that the caller keeps to.

    attempts: failures after which a call is given up.
    recycle: calls after which a worker is replaced; None for never.
    """

    def __init__(self, attempts: int, recycle: int | None = None) -> None:
        self.lanes: list[Lane] = []
        self._attempts = attempts
        self._recycle = recycle
        self._queue: deque[Call] = deque()
        self._suspects: deque[Call] = deque()
        # Lanes that can take a call, by the number that they have (dicts, as ordered sets).
        self._open: tuple[dict[Lane, None], ...] = tuple({} for _ in range(WINDOW))
        self._retired: dict[Lane, float] = {}  # when
        self._in_flight = 0
        self._numbers = 0
        self._seconds = math.inf  # that a call takes, of late
        self._draining = False

    @property
    def outstanding(self) -> int:
        """Calls that are queued or in flight."""
        waiting = 0 if self._draining else len(self._queue) + len(self._suspects)
        return waiting + self._in_flight

    def add(self, call: Call) -> None:
        self._queue.append(call)

    def drain(self) -> None:
        """Start nothing any more: what waits is forgotten, and so is what a worker fails on."""
        self._draining = True

    def assign(self, now: float) -> Iterator[tuple[Lane, Call]]:
        """Put queued calls on lanes that are up, and tell which went where, in order: the first of
        each journey, with its mates."""
        while (pair := self._next()) is not None:
            lane, call = pair
            lane.calls.append(call)
            self._in_flight += len(call.party)
            if len(lane.calls) == 1:
                call.started = now
            self._sort(lane)
            yield pair

    def finish(self, lane: Lane, call: Call, now: float, seconds: float) -> list[Call]:
        """`call` and its mates have returned, after so many seconds of running in all. Who has."""
        party = call.part()
        was_oldest = lane.calls[0] is call
        lane.calls.remove(call)
        self._in_flight -= len(party)
        lane.answered += len(party)
        each = seconds / len(party)
        known = self._seconds < math.inf
        self._seconds = self._seconds + (each - self._seconds) / _LAST if known else each
        if was_oldest and lane.calls:
            lane.calls[0].started = now
        if self._recycle is not None and lane.answered >= self._recycle:
            others = sum(now - moment < _PATIENCE for moment in self._retired.values())
            if others < max(1, len(self.lanes) // _REPLACED_TOGETHER):
                self.retire(lane, now)
        self._sort(lane)
        return party

    def fail(self, lane: Lane, call: Call, now: float, *, alone: bool) -> Call | None:
        """`call` has returned, alone or from among others, but something was wrong with its worker,
        which shall be replaced.

        Returns the call to give up, if that happened once too often.
        """
        self.retire(lane, now)
        if alone:
            return self._blame(lane, call)
        self.separate([call])
        return None

    def separate(self, party: Iterable[Call]) -> None:
        """Try again, each alone, what has failed together: nobody is blamed."""
        for call in party:
            call.alone = True
            self._suspects.append(call)

    def lose(self, lane: Lane, *, node: bool = False) -> Call | None:
        """The worker of `lane` is gone, or with `node` its whole node is; the lane is down.

        Returns the call to give up, if that happened to it once too often.
        """
        calls = lane.calls
        lane.up, lane.answered, lane.calls = False, 0, []
        self._in_flight -= sum(len(call.party) for call in calls)
        self._sort(lane)
        if not calls:
            return None
        oldest, *others = calls
        self._queue.extendleft(reversed([call for first in others for call in first.part()]))
        if oldest.mates:
            self.separate(oldest.part())
            return None
        if not node:
            return self._blame(lane, oldest)
        oldest.node_losses += 1
        if oldest.node_losses >= NODE_LOSSES:
            return oldest
        (self._suspects if oldest.alone else self._queue).appendleft(oldest)
        return None

    # ------------------------------------------------------------------------------- lanes

    def add_lane(self) -> Lane:
        """A new lane, which is down."""
        lane = Lane(self._numbers)
        self._numbers += 1
        self.lanes.append(lane)
        return lane

    def remove_lane(self, lane: Lane) -> None:
        """Forget a lane that is down."""
        self.lanes.remove(lane)
        self._retired.pop(lane, None)

    def start(self, lane: Lane, worker: str) -> None:
        """A process of that name answers for `lane`."""
        lane.up, lane.worker, lane.answered, lane.retiring = True, worker, 0, False
        self._retired.pop(lane, None)
        self._sort(lane)

    def retire(self, lane: Lane, now: float) -> None:
        """Give `lane` no more calls; when it has none, it is among `replaceable`."""
        lane.retiring = True
        self._retired[lane] = now
        self._sort(lane)

    def replaceable(self) -> list[Lane]:
        """Lanes whose worker can be replaced now: nothing is in flight on them."""
        return [lane for lane in self._retired if lane.up and not lane.calls]

    # ------------------------------------------------------------------------------- details

    def _next(self) -> tuple[Lane, Call] | None:
        if self._draining:
            return None
        empty, *others = self._open
        if self._suspects:
            for lane in empty:
                for call in self._suspects:
                    # Its own lane, with a new process, when no other lane is up to take it.
                    if call.failed_on is not lane or sum(lane.up for lane in self.lanes) == 1:
                        self._suspects.remove(call)
                        return lane, call
        if not self._queue:
            return None
        # As long as a suspect waits for an empty lane, no lane gets a second call.
        for lanes in [empty] if self._suspects else [empty, *others]:
            if lanes:
                call = self._queue.popleft()
                call.mates = [self._queue.popleft() for _ in range(self._mates())]
                return next(iter(lanes)), call
        return None

    def _mates(self) -> int:
        """How many travel with the one that was taken from the queue just now."""
        fitting = _JOURNEY / max(self._seconds, _JOURNEY / _TOGETHER)
        return min(len(self._queue), max(0, int(fitting) - 1))

    def _blame(self, lane: Lane, call: Call) -> Call | None:
        call.failures += 1
        call.failed_on, call.alone = lane, True
        if call.failures >= self._attempts:
            return call
        self._suspects.append(call)
        return None

    def _sort(self, lane: Lane) -> None:
        """Put a lane that has changed where it belongs."""
        for lanes in self._open:
            lanes.pop(lane, None)
        depth = len(lane.calls)
        if (
            lane.up
            and not lane.retiring
            and depth < WINDOW
            and not any(call.alone for call in lane.calls)
        ):
            self._open[depth][lane] = None

"""Units of work on a Ray cluster: the cores of this machine, or of a cluster that runs already.

The only file that imports ray, and only when an executor is made, so that nothing else pays for it.
One long-lived actor per core; what runs where, and who is to blame for a death, is decided in
`search.dispatch`. Ray never repeats a call by itself (a repeated call would take innocent ones with
it, and a cell that kills its worker would be repeated for ever), and never restarts an actor: a new
one serves within a second where a restarted one refuses calls for two, and it may start elsewhere.

Should the head node of a cluster die, Ray ends the driver's process after 60 s, and nothing can
prevent that: the journal holds every result, resume the run.
"""

from __future__ import annotations

import atexit
import contextlib
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any, Self

from search import connect, host
from search.dispatch import Call, Dispatch, Lane
from search.errors import SearchError
from search.executor import Event, Outcome, Payload, Status, UnitFunction, last_error
from search.nodes import Nodes
from search.worker import SharedDataError, Worker, checksum

# Seconds until a worker that could not start is tried again, doubled from the first to the last.
_FIRST_PAUSE, _LAST_PAUSE = 0.3, 10.0
# Seconds between looks at the kernel's count of processes that it has killed for want of memory.
_LOOK = 2.0


def import_ray() -> Any:
    """Ray, or SearchError."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise SearchError(
            f"Ray cannot be imported ({error}): pip install ray, or use --workers 0"
        ) from error
    return ray


class RayExecutor:
    """An `Executor` on Ray. One per process at a time.

    function: called on the workers with each payload.
    workers: how many; None means every core of this machine, or of the cluster, also of nodes that
        join or leave it later. More than a cluster has room for wait until nodes join.
    address: None starts a private Ray on this machine, gone at `close`. "auto", "HOST:PORT" or
        "ray://HOST:PORT" uses a cluster that runs already; its nodes need the same versions of
        Python, Ray and the libraries, while our own packages are sent to them.
    timeout: seconds that one setting may take; a unit may take that times its payload["settings"].
        Then its worker is stopped.
    attempts: how many workers a unit may fail on (kill, hang, fill) before that is its outcome.
    recycle: units after which a worker process is replaced by a fresh one; None for never.
    memory: bytes that a worker may allocate; None means its share of its machine
        (`host.limit_memory`).
    setup, setup_args: called once in each worker process before the first unit. The arguments are
        sent to a node once and shared by its workers: NumPy arrays in them are read-only, and
        torch.from_numpy ignores that, so never write into one in place.
    start_timeout: seconds until the first worker has to answer.

    Raises SearchError when Ray is missing, the address does not answer or no worker starts.
    """

    def __init__(
        self,
        function: UnitFunction,
        *,
        workers: int | None = None,
        address: str | None = None,
        timeout: float = 600.0,
        attempts: int = 2,
        recycle: int | None = None,
        memory: int | None = None,
        setup: Callable[..., None] | None = None,
        setup_args: tuple[Any, ...] = (),
        start_timeout: float = 120.0,
    ) -> None:
        if workers is not None and workers < 1:
            raise SearchError(f"workers: expected at least 1, not {workers}")
        self._timeout = timeout
        self._ray: Any = None
        self._cleanup = contextlib.ExitStack()
        self._closed = False
        self._dispatch = Dispatch(attempts, recycle)
        self._actors: dict[Lane, Any] = {}
        self._calls: dict[Any, tuple[Lane, Call]] = {}  # by the reference of the result
        self._pings: dict[Any, Lane] = {}  # by the reference of a worker's first answer
        self._start_at: dict[Lane, float] = {}  # lanes without an actor
        self._pause: dict[Lane, float] = {}
        self._next_deadline = float("inf")  # no deadline is before this moment
        self._done: list[Outcome] = []
        self._events: list[Event] = []
        self._why_gone = ""  # of the last lane that will never be up again
        self._given_up = 0  # such lanes
        # The kernel's count a moment ago and at the last look, and when to look again: a death is
        # compared with the former, as it may take a while to be heard of.
        self._oom_kills = self._oom_kills_seen = host.oom_kills()
        self._count_at = 0.0
        self._nodes: Nodes | None = None  # of a cluster that is not ours alone
        self._elastic = workers is None and address is not None
        try:
            if address is None:
                workers = local = workers or host.cores()
                self._ray = connect.start(import_ray, workers, self._cleanup)
            else:
                local = None
                self._ray = connect.join(import_ray, address)
                self._nodes = Nodes(self._ray, import_ray)
                workers = workers or self._nodes.cores
            atexit.register(self.close)  # after Ray's own, that is, run before it
            # The driver keeps them alive, whichever workers come and go.
            self._references = [self._ray.put(argument) for argument in setup_args]
            expected = checksum(tuple(self._ray.get(self._references)))  # as the workers see them
            options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
            # Task events make the memory of Ray's server grow with every call.
            kind = self._ray.remote(Worker).options(**options, enable_task_events=False)
            arguments = (function, setup, expected, local, memory)
            self._actor: Callable[[], Any] = lambda: kind.remote(*arguments)
            self._wanted = workers
            self._resize()
            self._await_first(start_timeout)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many there are, or will be as soon as there is room for them."""
        return len(self._dispatch.lanes)

    def submit(self, unit: int, payload: Payload) -> None:
        if self._closed:
            raise RuntimeError("this executor is closed")
        limit = self._timeout * max(1, len(payload.get("settings", ())))
        # As bytes: it may wait here while its owner changes it, and Ray is fastest with them.
        self._dispatch.add(Call(unit, pickle.dumps(payload), limit))

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """The outcomes since the last call (`Executor.wait`).

        Raises SearchError when the last worker is gone for good, or a unit has written into the
        data that all share.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._dispatch.outstanding and not self._done:
            self._step(end)
            if end is not None and time.monotonic() >= end:
                break
        done, self._done = self._done, []
        return done

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def drain(self) -> None:
        self._dispatch.drain()

    def close(self) -> None:
        """Stop the workers, and Ray where it is ours. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        # Calling anything of a Ray that has been shut down already would start another one.
        if self._ray is not None and self._ray.is_initialized():
            for actor in self._actors.values():
                self._kill(actor)
            if self._nodes is not None:
                self._kill(self._nodes.watcher)
            self._ray.shutdown()
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- one turn

    def _step(self, end: float | None) -> None:
        """Start what can start, then handle whatever happens first, or nothing until `end`."""
        self._start_workers()
        self._start_calls()
        if not self._dispatch.lanes:
            raise SearchError(f"Ray: no worker is left: {self._why_gone}")
        moments = [self._next_deadline, *self._start_at.values()]
        moments += [end] if end is not None else []
        first = min(moments)
        seconds = None if first == float("inf") else max(0.0, first - time.monotonic())
        references = [*self._calls, *self._pings]
        if self._nodes is not None:
            references.append(self._nodes.reference)
        if references:
            ready, rest = self._ray.wait(references, num_returns=1, timeout=seconds)
            if ready and rest:
                more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
                ready += more
            self._take(ready)
        else:
            time.sleep(seconds or 0.0)
        now = time.monotonic()
        if now >= self._next_deadline:
            self._stop_what_takes_too_long(now)
        if now >= self._count_at:
            self._oom_kills, self._oom_kills_seen = self._oom_kills_seen, host.oom_kills()
            self._count_at = now + _LOOK
        self._start_calls()

    def _take(self, ready: list[Any]) -> None:
        """Turn finished calls into outcomes, pings into lanes that are up, deaths into suspects."""
        lost: dict[Lane, BaseException] = {}
        news: Any = None
        for reference, value in zip(ready, self._values(ready), strict=True):
            if isinstance(value, SharedDataError):
                raise SearchError(f"Ray: {value}, expected units that only read them")
            if self._nodes is not None and reference == self._nodes.reference:
                news = value
            elif reference in self._pings:
                self._take_ping(self._pings.pop(reference), value)
            elif _is_death(self._ray, value):
                lost.setdefault(self._calls[reference][0], value)
            else:
                self._tell(*self._calls.pop(reference), value)
        # Now, when what the same workers have finished before is out of the way.
        for lane, error in lost.items():
            status, message = self._cause(lane, error)
            self._lose(lane, status, message, node=_is_of_node(self._ray, error))
        if self._nodes is not None and news is not None:
            self._events += self._nodes.take(news)
            if self._elastic:
                self._wanted = max(1, self._nodes.cores - self._given_up)
                self._resize()

    def _values(self, ready: list[Any]) -> list[Any]:
        """The result or the exception behind each reference."""
        try:
            return list(self._ray.get(ready))  # one round trip when all went well
        except Exception:
            values: list[Any] = []
            for reference in ready:
                try:
                    values.append(self._ray.get(reference))
                except Exception as error:
                    values.append(error)
            return values

    def _tell(self, lane: Lane, call: Call, value: Any) -> None:
        """A call and its mates have returned from a worker that lives."""
        now = time.monotonic()
        if isinstance(value, BaseException):  # a result cannot be sent
            if call.mates:
                self._dispatch.separate(self._dispatch.finish(lane, call, now, 0.0))
                return
            value = [("crashed", None, last_error(str(value)), 0.0)]
        party = self._dispatch.finish(lane, call, now, sum(answer[3] for answer in value))
        for member, (status, result, error, seconds) in zip(party, value, strict=True):
            if status != "out_of_memory":
                tries = member.starts + 1
                self._done.append(
                    Outcome(member.unit, status, result, error, seconds, lane.worker, tries)
                )
                continue
            # What units before it have left in the memory of its worker may be the reason.
            given_up = self._dispatch.fail(lane, member, now, alone=len(party) == 1)
            if given_up is not None:
                self._give_up(given_up, lane, status, error, seconds)

    def _lose(self, lane: Lane, status: Status, message: str, *, node: bool = False) -> None:
        """The worker of a lane is gone: find out who is to blame, and start another."""
        oldest = lane.calls[0] if lane.calls else None
        detail = {"worker": lane.worker, "unit": oldest and oldest.unit, "reason": message}
        self._events.append(("worker_lost", detail))
        given_up = self._dispatch.lose(lane, node=node)
        if given_up is not None:
            seconds = time.monotonic() - given_up.started
            self._give_up(given_up, lane, status, message, seconds)
        self._calls = {r: pair for r, pair in self._calls.items() if pair[0] is not lane}
        self._replace(lane)

    def _give_up(self, call: Call, lane: Lane, status: Status, error: str, seconds: float) -> None:
        tries = call.starts
        message = f"{error} ({tries} of {tries} tries)"
        self._done.append(Outcome(call.unit, status, None, message, seconds, lane.worker, tries))

    def _cause(self, lane: Lane, error: BaseException) -> tuple[Status, str]:
        """Why the worker of a lane has died, as far as that can be known."""
        here = lane.worker.startswith(f"{socket.gethostname()}:")
        if isinstance(error, self._ray.exceptions.OutOfMemoryError) or (
            here and host.oom_kills() > self._oom_kills
        ):
            self._oom_kills = self._oom_kills_seen = host.oom_kills()
            return "out_of_memory", "its worker was killed because memory ran out"
        if _is_of_node(self._ray, error):
            return "crashed", "the node of its worker was lost"
        return "crashed", "its worker died"

    def _start_calls(self) -> None:
        for lane, call in self._dispatch.assign(time.monotonic()):
            reference = self._actors[lane].run.remote([c.payload for c in call.party])
            self._calls[reference] = lane, call
            self._next_deadline = min(self._next_deadline, time.monotonic() + call.patience)

    def _stop_what_takes_too_long(self, now: float) -> None:
        for lane in list(self._dispatch.lanes):
            if lane.deadline is not None and lane.deadline <= now:
                self._lose(lane, "timeout", f"no result within {lane.calls[0].patience:g} s")
        deadlines = [d for lane in self._dispatch.lanes if (d := lane.deadline) is not None]
        self._next_deadline = min(deadlines, default=float("inf"))

    # ------------------------------------------------------------------------------- workers

    def _start_workers(self) -> None:
        """Start those whose time has come, and replace those that have done their share."""
        for lane in self._dispatch.replaceable():
            detail = {"worker": lane.worker, "units": lane.answered}
            self._events.append(("worker_recycled", detail))
            self._dispatch.lose(lane)
            self._replace(lane)
        if not self._start_at:
            return
        now = time.monotonic()
        for lane in [lane for lane, moment in self._start_at.items() if moment <= now]:
            del self._start_at[lane]
            actor = self._actors[lane] = self._actor()
            self._pings[actor.prepare.remote(*self._references)] = lane

    def _take_ping(self, lane: Lane, value: Any) -> None:
        """A worker has started, or has not, or never will."""
        if isinstance(value, str):
            self._dispatch.start(lane, value)
            self._pause[lane] = _FIRST_PAUSE
            return
        errors = self._ray.exceptions
        passing = errors.ActorUnavailableError | errors.ActorDiedError | errors.OutOfMemoryError
        if isinstance(value, passing) and not getattr(value, "actor_init_failed", False):
            self._replace(lane, self._pause[lane])
            self._pause[lane] = min(2 * self._pause[lane], _LAST_PAUSE)
        else:
            self._why_gone = last_error(str(value))
            self._given_up += 1
            self._events.append(("worker_lost", {"worker": None, "reason": self._why_gone}))
            self._remove(lane)

    def _replace(self, lane: Lane, pause: float = 0.0) -> None:
        """Have another actor started for a lane that is down, if it is still wanted."""
        if len(self._dispatch.lanes) > self._wanted:
            self._remove(lane)
        else:
            self._kill(self._actors.pop(lane))
            self._start_at[lane] = time.monotonic() + pause

    def _remove(self, lane: Lane) -> None:
        self._kill(self._actors.pop(lane, None))
        self._start_at.pop(lane, None)
        self._pings = {r: other for r, other in self._pings.items() if other is not lane}
        self._dispatch.remove_lane(lane)
        del self._pause[lane]

    def _resize(self) -> None:
        """Have as many lanes as are wanted; of too many, those go that have no worker anyway."""
        lanes = self._dispatch.lanes
        for lane in [lane for lane in reversed(lanes) if not lane.up]:
            if len(lanes) > self._wanted:
                self._remove(lane)
        while len(lanes) < self._wanted:
            lane = self._dispatch.add_lane()
            self._pause[lane], self._start_at[lane] = _FIRST_PAUSE, 0.0

    def _kill(self, actor: Any) -> None:
        # A cluster that is gone cannot stop it, and it has stopped by itself.
        with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
            if actor is not None:
                self._ray.kill(actor)

    def _await_first(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not any(lane.up for lane in self._dispatch.lanes):
            if time.monotonic() >= end:
                raise SearchError(f"Ray: no worker has started within {timeout:g} s")
            self._step(end)


def _is_death(ray: Any, value: Any) -> bool:
    """Whether a call brought the news that its worker, or its node, is gone.

    Every other exception comes from within the worker, which lives.
    """
    errors = ray.exceptions
    return isinstance(value, errors.RayError) and not isinstance(value, errors.RayTaskError)


def _is_of_node(ray: Any, error: BaseException) -> bool:
    """Whether a whole node was lost: contact broke off, or Ray says so (in words alone)."""
    unavailable = isinstance(error, ray.exceptions.ActorUnavailableError)
    return unavailable or "because its node has died" in str(error)

"""Units of work on a Ray cluster: the cores of this machine, or of a cluster that runs already.

The only file that imports ray, and only when an executor is made, so that nothing else pays for it.
One long-lived actor per core; what runs where, and who is to blame for a death, is decided in
`search.dispatch`. Ray restarts actors that die; it never repeats a call by itself (a repeated call
would take innocent ones with it, and a cell that kills its worker would be repeated for ever).

Should the head node of a cluster die, Ray ends the driver's process after 60 s, and nothing can
prevent that: the journal holds every result, resume the run.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import re
import secrets
import signal
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from search.dispatch import Call, Dispatch, Lane
from search.errors import SearchError
from search.executor import Outcome, Payload, Status, UnitFunction, attempt, describe
from search.storage import scratch

# One thread each: as many workers as cores, and results that do not depend on a thread count.
_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
} | {"VECLIB_MAXIMUM_THREADS": "1"}

# A token for the processes of our own Ray, or it would write one into the home directory. Ray reads
# it once per process, so every Ray that this process starts gets the same.
_TOKEN = secrets.token_hex(32)

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("cellgraph", "evaluators", "search")

# FOLDER/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store is the path of a socket
# and as such may have 107 characters.
_LONGEST_FOLDER = 107 - 68

# Seconds that an address may take to answer; ray.init itself would hang for minutes.
_ANSWER = 15.0
# Seconds between questions to a worker that is down, doubled from the first to the last.
_FIRST_PAUSE, _LAST_PAUSE = 0.3, 2.0


class _Worker:
    """The actor: calls `function` on one payload after another, in a process of its own."""

    def __init__(self, function: UnitFunction, setup: Callable[..., None] | None) -> None:
        import torch

        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        self._function = function
        self._setup = setup

    def prepare(self, references: list[Any]) -> str:
        """Set up, once, with the objects behind `references`; the name of this process."""
        if self._setup is not None:
            self._setup(*_import_ray().get(references))
            self._setup = None
        return f"{socket.gethostname()}:{os.getpid()}"

    def run(self, payload: Payload) -> tuple[Status, dict[str, Any] | None, str | None, float]:
        return attempt(self._function, payload)


class RayExecutor:
    """An `Executor` on Ray. One per process at a time.

    function: called on the workers with each payload.
    workers: how many; None means every core of this machine or cluster. More than a cluster has
        room for wait until nodes join.
    address: None starts a private Ray on this machine, gone at `close`. "auto", "HOST:PORT" or
        "ray://HOST:PORT" uses a cluster that runs already; its nodes need the same versions of
        Python, Ray and the libraries, while our own packages are sent to them.
    timeout: seconds that one setting may take; a unit may take that times its payload["settings"].
        It is then stopped with its worker, and not tried again.
    attempts: how many workers a unit may kill before it counts as crashed.
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
        attempts: int = 3,
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
        self._actors: list[Any] = []
        self._calls: dict[Any, tuple[Lane, Call]] = {}  # by the reference of the result
        self._pings: dict[Any, Lane] = {}
        self._done: list[Outcome] = []
        self._why_gone = ""  # of the last lane that will never be up again
        try:
            if address is None:
                self._ray = _start(workers or _cores(), self._cleanup)
            else:
                self._ray = _join(address)
            atexit.register(self.close)  # after Ray's own, that is, run before it
            workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            self._dispatch = Dispatch(workers, attempts)
            # When to ask each lane that is down and not being asked, and the pause before that.
            self._ask_at = dict.fromkeys(self._dispatch.lanes, 0.0)
            self._pause = dict.fromkeys(self._dispatch.lanes, _FIRST_PAUSE)
            # Sent with the first call and not to the constructor: it is the driver that keeps them
            # alive for workers that are restarted, which Ray could not rely on (ray#53727).
            self._references = [self._ray.put(argument) for argument in setup_args]
            options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": 0}
            actor = self._ray.remote(_Worker).options(**options)
            self._actors = [actor.remote(function, setup) for _ in range(workers)]
            self._await_first(start_timeout)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        return len(self._actors)

    def submit(self, unit: int, payload: Payload) -> None:
        if self._closed:
            raise RuntimeError("this executor is closed")
        limit = self._timeout * max(1, len(payload.get("settings", ())))
        # A copy, as it may wait here while its owner changes it.
        self._dispatch.add(Call(unit, copy.deepcopy(payload), limit))
        self._start_calls()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """The outcomes since the last call (`Executor.wait`).

        Raises SearchError when the last worker is gone for good.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._dispatch.outstanding and not self._done:
            self._step(end)
            if end is not None and time.monotonic() >= end:
                break
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Stop the workers, and Ray where it is ours. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        # Calling anything of a Ray that has been shut down already would start another one.
        if self._ray is not None and self._ray.is_initialized():
            for actor in self._actors:
                # A cluster that is gone cannot stop them, and has stopped by itself.
                with contextlib.suppress(self._ray.exceptions.RayError, ConnectionError):
                    self._ray.kill(actor)
            self._ray.shutdown()
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------- one turn

    def _step(self, end: float | None) -> None:
        """Start what can start, then handle whatever happens first, or nothing until `end`."""
        self._ask_lanes_that_are_down()
        self._start_calls()
        references = [*self._calls, *self._pings]
        if not references and not self._ask_at:
            raise SearchError(f"Ray: no worker is left: {self._why_gone}")
        moments = list(self._ask_at.values())
        moments += [d for lane in self._dispatch.lanes if (d := lane.deadline) is not None]
        moments += [end] if end is not None else []
        seconds = max(0.0, min(moments) - time.monotonic()) if moments else None
        if references:
            ready, rest = self._ray.wait(references, num_returns=1, timeout=seconds)
            if ready and rest:
                more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
                ready += more
            self._take(ready)
        else:
            time.sleep(seconds or 0.0)
        self._stop_what_takes_too_long()
        self._start_calls()

    def _take(self, ready: list[Any]) -> None:
        """Turn finished calls into outcomes, pings into lanes that are up, deaths into suspects."""
        lost: dict[Lane, BaseException] = {}
        for reference, value in zip(ready, self._values(ready), strict=True):
            if reference in self._pings:
                self._take_ping(self._pings.pop(reference), value)
                continue
            lane, call = self._calls[reference]
            if _is_death(self._ray, value):
                lost.setdefault(lane, value)
            else:
                del self._calls[reference]
                self._dispatch.finish(lane, call, time.monotonic())
                self._tell(lane, call, value)
        # Now, when what the same workers have finished before is out of the way.
        for lane, error in lost.items():
            seconds = time.monotonic() - lane.calls[0].started
            given_up = self._dispatch.lose(lane)
            self._forget(lane)
            if given_up is not None:
                status, message = _cause(self._ray, error)
                message = f"{message} ({given_up.deaths} of {given_up.deaths} tries)"
                self._done.append(_failure(given_up, lane, status, message, seconds, 0))

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

    def _take_ping(self, lane: Lane, value: Any) -> None:
        """A lane has answered, or not yet, or never will."""
        errors = self._ray.exceptions
        if isinstance(value, str):
            lane.up, lane.worker = True, value
            self._pause[lane] = _FIRST_PAUSE
        elif isinstance(value, errors.ActorUnavailableError | errors.OutOfMemoryError):
            self._ask_later(lane)
        else:
            self._why_gone = _last_error(str(value))

    def _tell(self, lane: Lane, call: Call, value: Any) -> None:
        if isinstance(value, BaseException):  # the result cannot be sent
            self._done.append(_failure(call, lane, "crashed", _last_error(str(value)), 0.0))
        else:
            status, result, error, seconds = value
            tries = call.deaths + 1
            self._done.append(
                Outcome(call.unit, status, result, error, seconds, lane.worker, tries)
            )

    # ------------------------------------------------------------------------------- lanes

    def _start_calls(self) -> None:
        for lane, call in self._dispatch.assign(time.monotonic()):
            reference = self._actors[lane.index].run.remote(call.payload)
            self._calls[reference] = lane, call

    def _ask_lanes_that_are_down(self) -> None:
        """A restarting worker refuses calls for seconds: ask until it answers, then send units."""
        now = time.monotonic()
        for lane in [lane for lane, moment in self._ask_at.items() if moment <= now]:
            del self._ask_at[lane]
            self._pings[self._actors[lane.index].prepare.remote(self._references)] = lane

    def _ask_later(self, lane: Lane) -> None:
        self._ask_at[lane] = time.monotonic() + self._pause[lane]
        self._pause[lane] = min(2 * self._pause[lane], _LAST_PAUSE)

    def _stop_what_takes_too_long(self) -> None:
        now = time.monotonic()
        for lane in self._dispatch.lanes:
            if lane.deadline is not None and lane.deadline <= now:
                call = lane.calls[0]
                self._ray.kill(self._actors[lane.index], no_restart=False)
                self._dispatch.evict(lane)
                self._forget(lane)
                error = f"no result within {call.limit:g} s"
                self._done.append(_failure(call, lane, "timeout", error, now - call.started))

    def _forget(self, lane: Lane) -> None:
        """Drop the calls of a lane that went down, and have it asked."""
        for reference in [r for r, (other, _) in self._calls.items() if other is lane]:
            del self._calls[reference]
        self._ask_later(lane)

    def _await_first(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not any(lane.up for lane in self._dispatch.lanes):
            if time.monotonic() >= end:
                raise SearchError(f"Ray: no worker has started within {timeout:g} s")
            self._step(end)


def _failure(
    call: Call, lane: Lane, status: Status, error: str, seconds: float, running: int = 1
) -> Outcome:
    """The outcome of a call that brought no result; `running` when it has not killed its worker."""
    tries = call.deaths + running
    return Outcome(call.unit, status, None, error, seconds, lane.worker, tries)


# ----------------------------------------------------------------------------------- Ray itself


def _is_death(ray: Any, value: Any) -> bool:
    """Whether a call brought the news that its worker, or its node, is gone.

    Every other exception comes from within the worker, which lives.
    """
    errors = ray.exceptions
    return isinstance(value, errors.RayError) and not isinstance(value, errors.RayTaskError)


def _cause(ray: Any, error: BaseException) -> tuple[Status, str]:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out_of_memory", "its worker was killed because memory ran out"
    return "crashed", "its worker died"


def _start(workers: int, cleanup: contextlib.ExitStack) -> Any:
    """A private Ray on this machine with a core for each worker, reachable from this machine only.

    What it leaves on disk and in the environment is put on `cleanup`.
    """
    folder = cleanup.enter_context(scratch("cellsearch-ray-", _LONGEST_FOLDER))
    paths = list(filter(None, [os.environ.get("PYTHONPATH")]))
    if _ROOT not in map(Path, [*site.getsitepackages(), site.getusersitepackages()]):
        paths.insert(0, str(_ROOT))  # a checkout: workers find us wherever the driver runs
    variables = _ONE_THREAD | {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_TMPDIR": str(folder),  # Ray never deletes its session folders
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        # Despite its name: on Linux too, 0 binds everything to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Else the memory of Ray's server grows with every call (45 to 310 MB in 80,000 calls).
        "RAY_task_events_report_interval_ms": "0",
        # Ray would kill workers when *other* programs fill the memory.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    with _environment(variables):
        ray = _import_ray()
        _init(
            ray,
            address="local",  # never the default, which may hang on the remains of another Ray
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=200 << 20,  # else 30 % of the memory; what exceeds it goes to disk
        )
    return ray


def _join(address: str) -> Any:
    """The cluster at an address, our packages sent along."""
    # Before the import: Ray settles on a token when it is imported, and a local Ray that this
    # process may start after an address has not answered needs ours.
    _check_address(address)
    ray = _import_ray()
    modules = [str(_ROOT / name) for name in _PACKAGES if (_ROOT / name).is_dir()]
    _init(ray, address=address, runtime_env={"py_modules": modules, "env_vars": _ONE_THREAD})
    return ray


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SearchError(
            f"Ray cannot be imported ({error}): pip install ray, or use --workers 0"
        ) from error
    return ray


def _init(ray: Any, **options: Any) -> None:
    """ray.init, silent, without leaving its handler of SIGTERM in place of somebody's own."""
    if ray.is_initialized():
        raise SearchError("Ray is in use in this process already")
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        raise SearchError(f"Ray does not start: {describe(error)}") from error
    finally:
        # Ray's own exits through `atexit`, which is better than what happens by default.
        if here and before not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, before)
    # Ray prints the deaths of workers on standard output, log_to_driver or not (ray#28216).
    private: Any = getattr(ray, "_private", None)
    if hasattr(private, "worker"):
        private.worker._worker_logs_enabled = False


def _check_address(address: str) -> None:
    """Raise SearchError unless a cluster answers at `address` within seconds.

    ray.init itself hangs for minutes on an address that is dead or not Ray's, and cannot be
    interrupted: first see whether anything listens there, then connect from another process.
    """
    place = re.fullmatch(r"(?:ray://)?(?P<host>[^/:]+|\[[^\]]+\]):(?P<port>\d{1,5})", address)
    if place is not None:
        try:
            target = (place["host"].strip("[]"), int(place["port"]))
            socket.create_connection(target, timeout=_ANSWER / 3).close()
        except (OSError, OverflowError) as error:
            raise SearchError(f"no Ray cluster at {address}: {error}") from None
    elif address != "auto":
        raise SearchError(f"address: expected auto, HOST:PORT or ray://HOST:PORT, not {address!r}")
    script = (
        "import ray, sys; "
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"
    )
    try:
        answer = subprocess.run(  # noqa: S603 - our own script; the address is data to it
            [sys.executable, "-c", script, address],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_ANSWER,
        )
    except subprocess.TimeoutExpired:
        raise SearchError(f"no Ray cluster at {address}: no answer in {_ANSWER:g} s") from None
    if answer.returncode != 0:
        raise SearchError(f"no Ray cluster at {address}: {_last_error(answer.stderr)}")


def _last_error(text: str) -> str:
    """One line out of a traceback, which ends in "module.SomeError: text"; the text may be long."""
    start = max((match.start() for match in re.finditer(r"^\w[\w.]*: ", text, re.M)), default=0)
    words = " ".join(text[start:].split())
    return words if len(words) <= 300 else f"{words[:297]}..."


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These environment variables for a while: Ray and its processes read them when they start."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

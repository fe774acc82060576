"""What a search costs beside its trainings: the real loop, algorithm, journal and workers, over
evaluations that do nothing; and the same evaluations with nothing around them.

Run as a module it is a measurement in a process of its own (`search.bench.child`).
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from search import launch
from search.algorithms import Algorithm, Work
from search.bench import child, noop
from search.bench.child import Say
from search.bench.noop import NoOp
from search.cluster import RayExecutor
from search.dispatch import WINDOW
from search.errors import SearchError
from search.executor import Executor, InlineExecutor
from search.journal import Journal, ResultRow, UnitRow
from search.loop import Loop
from search.progress import Silent

TENTHS = 10
SAMPLE = 40  #: candidates of the search whose payloads are called again without a search
WARM_UP = 200  #: calls that are not counted


@dataclass(frozen=True)
class Mark:
    """How far a run is: candidates done; seconds of wall time and of the driver's processor time
    since its begin; bytes that the driver holds; units consumed."""

    done: int
    wall: float
    cpu: float
    memory: int
    units: int


@dataclass
class Gauge:
    """An observer of the loop that notes a mark at every tenth of the candidates.

    The time of the marks themselves is left out: what nobody refers to is collected first, so that
    memory is what a search holds on to.
    """

    algorithm: Algorithm
    say: Say
    marks: list[Mark] = field(default_factory=list)
    units: int = 0
    replayed: int = 0
    begin: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def consumed(self, unit: UnitRow, work: Work, result: ResultRow, replayed: bool) -> None:
        self.units += 1
        self.replayed += replayed
        progress = self.algorithm.progress()
        following = len(self.marks) * progress.total // TENTHS
        if progress.phase == "candidates" and following <= progress.done < progress.total:
            self.mark(progress.done)
            self.say("candidates", progress.done, progress.total)

    def waiting(self) -> None: ...

    def mark(self, done: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        gc.collect()
        memory = resident()
        self.marks.append(Mark(done, wall - self.begin, cpu - self.cpu, memory, self.units))
        self.begin += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def answer(document: dict[str, Any], say: Say) -> dict[str, Any]:
    """One measurement of `loop`, `resume` or `calls`."""
    measurements = {"loop": _loop, "resume": _resume, "calls": _calls}
    return measurements[document["what"]](document, say)


def _loop(document: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """A search from its begin to its end, on so many Ray workers, or on none."""
    ready = launch.plan(noop.config(document["candidates"], document["seed"]))
    function = NoOp.of(ready.stages)
    workers = document["workers"]
    executor: Executor
    if workers:
        say(f"starting {workers} workers", 0, document["candidates"])
        executor = RayExecutor(function, workers=workers)
    else:
        executor = InlineExecutor(function)
    algorithm = ready.algorithm()
    directory = Path(document["directory"])
    with closing(executor), Journal.create(directory, {}) as journal:
        gauge = Gauge(algorithm, say)
        Loop(algorithm, journal, executor, ready.config.virtual_workers, gauge).run()
        gauge.mark(document["candidates"])
    return _found(gauge)


def _resume(document: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The same search once more, over the journal of the finished one."""
    begin, cpu = time.perf_counter(), time.process_time()
    ready = launch.plan(noop.config(document["candidates"], document["seed"]))
    with Journal.open(document["directory"]) as journal:
        algorithm = ready.algorithm(journal.recall())
        gauge = Gauge(algorithm, say, begin=begin, cpu=cpu)
        executor = InlineExecutor(NoOp.of(ready.stages))
        Loop(algorithm, journal, executor, ready.config.virtual_workers, gauge).run()
        gauge.mark(document["candidates"])
    if gauge.replayed != gauge.units:
        again = gauge.units - gauge.replayed
        raise SearchError(f"resuming has run {again} units again, expected all in the journal")
    return _found(gauge)


def _found(gauge: Gauge) -> dict[str, Any]:
    pool = json.dumps(gauge.algorithm.standing()).encode()
    return {
        "marks": [asdict(mark) for mark in gauge.marks],
        "peak": peak(),
        "pool": hashlib.sha256(pool).hexdigest()[:16],
        "funnel": gauge.algorithm.funnel(),
    }


def _calls(document: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Milliseconds of a unit when nothing is around it: `direct` in this process, `processes` in
    Python's own pool, `ray` on the workers of a search, without search and journal. All keep as
    many calls in flight."""
    workers, count = document["workers"], document["count"]
    with tempfile.TemporaryDirectory(dir=document["folder"]) as folder:
        function = small(Path(folder) / "run", SAMPLE, document["seed"])
    payloads = function.payloads
    found = {"units": count}
    say("calls in this process", 0, 3)
    found["direct"] = _timed(_direct(function.inner, _cycled(payloads, count)), count)
    say("calls through a process pool", 1, 3)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        calls = _pooled(pool, function.inner, _cycled(payloads, count), workers)
        found["processes"] = _timed(calls, count)
    say("calls through Ray", 2, 3)
    with closing(RayExecutor(function.inner, workers=workers)) as executor:
        found["ray"] = _timed(_submitted(executor, _cycled(payloads, count), workers), count)
    return found


def _cycled(payloads: Sequence[dict[str, Any]], count: int) -> Iterable[dict[str, Any]]:
    return itertools.islice(itertools.cycle(payloads), count + WARM_UP)


def _timed(results: Iterable[object], count: int) -> float:
    """Milliseconds of each, but for the first `WARM_UP`."""
    running = iter(results)
    for _ in itertools.islice(running, WARM_UP):
        pass
    begin = time.perf_counter()
    for _ in running:
        pass
    return 1e3 * (time.perf_counter() - begin) / count


def _direct(function: NoOp, payloads: Iterable[dict[str, Any]]) -> Iterable[object]:
    return map(function, payloads)


def _pooled(
    pool: ProcessPoolExecutor, function: NoOp, payloads: Iterable[dict[str, Any]], workers: int
) -> Iterable[object]:
    left = iter(payloads)
    running = {pool.submit(function, p) for p in itertools.islice(left, WINDOW * workers)}
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(function, p) for p in itertools.islice(left, len(finished))}
        yield from (future.result() for future in finished)


def _submitted(
    executor: Executor, payloads: Iterable[dict[str, Any]], workers: int
) -> Iterable[object]:
    left = enumerate(payloads)
    for number, payload in itertools.islice(left, WINDOW * workers):
        executor.submit(number, payload)
    while outcomes := executor.wait():
        for number, payload in itertools.islice(left, len(outcomes)):
            executor.submit(number, payload)
        yield from outcomes


@dataclass
class Recorder:
    """The no-op, and what it was called with."""

    inner: NoOp
    payloads: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        self.payloads.append(payload)
        return self.inner(payload)


def small(directory: Path, candidates: int, seed: int) -> Recorder:
    """A little search in this process, for its rows and its payloads."""
    ready = launch.plan(noop.config(candidates, seed))
    recorder = Recorder(NoOp.of(ready.stages))
    with Journal.create(directory, {}) as journal:
        executor = InlineExecutor(recorder)
        virtual = ready.config.virtual_workers
        Loop(ready.algorithm(), journal, executor, virtual, Silent()).run()
    return recorder


def resident() -> int:
    """Bytes of memory that this process holds now; where the system does not say, held at most."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return peak()


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    child.serve(answer)

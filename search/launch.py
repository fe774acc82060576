"""From a configuration to a running search and back: run directories, resuming, replaying.

The journal holds all that a run depends on (configuration, seed cells, checksums of the data);
`config.yaml` beside it says the same to people and can be launched again. Nothing of a run is
written before everything it needs is there.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import cellgraph as cg
from cellgraph import CellGraph
from search import funnel, work
from search.algorithms import Algorithm, Recall, create, nothing
from search.cluster import RayExecutor
from search.config import Config
from search.errors import SearchError
from search.executor import Executor, InlineExecutor, UnitFunction
from search.funnel import Stage
from search.journal import FILE, EventRow, Journal
from search.loop import Loop, Observer
from search.versions import installed

CONFIG = "config.yaml"
FINISHED = "finished"  #: the kind of the event at the end of a run
PACKAGES = ("cellsearch", "torch", "ray", "numpy", "networkx", "music21")


@dataclass(frozen=True)
class Plan:
    """A configuration with everything it names loaded and checked, tags as the names of cells."""

    config: Config
    stages: list[Stage]
    seeds: list[CellGraph]

    def algorithm(self, recall: Recall = nothing) -> Algorithm:
        """recall: what a journal holds already, if it is to be trusted."""
        return create(self.config, self.stages, self.seeds, recall)

    def environment(self) -> dict[str, Any]:
        """Versions, platform and the data with their checksums."""
        return {
            "versions": {
                "python": platform.python_version(),
                **{name: installed(name) for name in PACKAGES},
            },
            "platform": f"{platform.system()} {platform.machine()}",
            "data": {stage.name: stage.task.describe() for stage in self.stages},
        }


def plan(config: Config, seeds: Sequence[str] | None = None) -> Plan:
    """Load tasks, data and seed cells (from `seeds`, cell texts, where given) and check that they
    compile.

    Raises SearchError, DataError, CellError.
    """
    if seeds is None:
        config = funnel.resolved(config)
        cells = funnel.seeds(config)
    else:
        cells = [cg.parse(text) for text in seeds]
    for cell in cells:
        if len(cell.widths) > 1:
            raise SearchError(
                f"seed {cell.name} has states of width {cell.widths[1]}, expected width H only"
            )
        cg.compile(cell, 2, 2, backend=config.backend)
    made = Plan(config, funnel.stages(config), cells)
    made.algorithm()  # checks what it needs of the configuration
    return made


def launch(
    config: Config,
    directory: Path,
    *,
    address: str | None,
    watch: Callable[[Algorithm, Plan], Observer],
) -> None:
    """Start a new run in `directory` and carry it to its end. Raises SearchError, DataError,
    CellError."""
    if (directory / FILE).exists():
        raise SearchError(
            f"{directory} holds a run already, expected a new name, "
            f"or: cellsearch resume {directory}"
        )
    ready = plan(config)
    with ExitStack() as stack:
        executor = stack.enter_context(closing(_executor(ready, address)))
        environment = ready.environment()
        meta = {
            "config": json.dumps(ready.config.to_dict(), sort_keys=True),
            "environment": json.dumps(environment),
            "seeds": json.dumps([str(cell) for cell in ready.seeds]),
            "stages": json.dumps([_about(stage) for stage in ready.stages]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        journal = stack.enter_context(Journal.create(directory, meta))
        _write_config(directory, ready.config, environment)
        _carry(ready, journal, executor, watch, "launched", address)


def resume(
    directory: Path,
    *,
    workers: int | None,
    address: str | None,
    watch: Callable[[Algorithm, Plan], Observer],
) -> None:
    """Carry a run on from its journal, on any number of workers; one that is finished needs none.
    Raises SearchError, DataError, CellError."""
    with ExitStack() as stack:
        journal = stack.enter_context(Journal.open(directory))
        ready = _planned(journal, directory)
        if not (directory / CONFIG).exists():  # killed just after the journal was made
            _write_config(directory, ready.config, json.loads(journal.meta["environment"]))
        if workers is not None:
            ready = replace(ready, config=replace(ready.config, workers=workers))
        events = journal.events()
        if events and events[-1].kind == FINISHED and _through(ready, journal, watch)[1]:
            return
        executor = stack.enter_context(closing(_executor(ready, address)))
        _carry(ready, journal, executor, watch, "resumed", address)


def replay(
    directory: Path, *, watch: Callable[[Algorithm, Plan], Observer], verify: bool = True
) -> tuple[Algorithm, bool]:
    """Rebuild every proposal and the pool from the journal, without training.

    Returns the algorithm in its last state, and whether the run had come to its end. With `verify`
    every proposal is drawn again; SearchError where the journal differs from what its configuration
    leads to. Without, the journal's proposals are taken as they are, many times faster.
    """
    with Journal.read(directory) as journal:
        ready = _planned(journal, directory)
        return _through(ready, journal, watch, verify=verify)


def _through(
    ready: Plan,
    journal: Journal,
    watch: Callable[[Algorithm, Plan], Observer],
    *,
    verify: bool = False,
) -> tuple[Algorithm, bool]:
    """As far as a journal goes: the algorithm then, and whether that is the end of the run."""
    algorithm = ready.algorithm() if verify else ready.algorithm(journal.recall())
    virtual, observer = ready.config.virtual_workers, watch(algorithm, ready)
    return algorithm, Loop(algorithm, journal, None, virtual, observer, verify=verify).run()


def _carry(
    ready: Plan,
    journal: Journal,
    executor: Executor,
    watch: Callable[[Algorithm, Plan], Observer],
    kind: str,
    address: str | None,
) -> None:
    algorithm = ready.algorithm(journal.recall())
    journal.write(events=[EventRow(kind, {"workers": executor.workers, "address": address})])
    observer = watch(algorithm, ready)
    loop = Loop(algorithm, journal, executor, ready.config.virtual_workers, observer)
    try:
        with _stopping(loop):
            complete = loop.run()
    except KeyboardInterrupt:
        journal.write(events=[EventRow("interrupted", loop.use.to_dict())])
        raise
    kind = FINISHED if complete else "interrupted"
    journal.write(events=[EventRow(kind, loop.use.to_dict())])
    if not complete:
        raise KeyboardInterrupt


@contextmanager
def _stopping(loop: Loop) -> Iterator[None]:
    """Ctrl-C lets the workers finish what they are at; a second one stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if loop.stopping:
            raise KeyboardInterrupt
        loop.stop()
        print("stopping when the workers are done; again to stop now", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _planned(journal: Journal, directory: Path) -> Plan:
    """The plan of an existing run; its data must still be those it started with."""
    try:
        config = Config.from_dict(json.loads(journal.meta["config"]), source=str(directory))
        before = json.loads(journal.meta["environment"])["data"]
        then = {name: _checksum(described) for name, described in before.items()}
        seeds = [str(text) for text in json.loads(journal.meta["seeds"])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SearchError):
            raise
        raise SearchError(
            f"{directory}: its journal does not describe a run ({error}), "
            "expected one that cellsearch has launched"
        ) from None
    if len(seeds) != len(config.search.seeds):
        raise SearchError(
            f"{directory}: its journal holds {len(seeds)} seed cells, "
            f"expected {len(config.search.seeds)}"
        )
    ready = plan(config, seeds)
    for name, described in ready.environment()["data"].items():
        now = _checksum(described)
        if now != then.get(name):
            raise SearchError(
                f"{directory}: the data of task {name} are not those the run started with "
                f"({then.get(name)} then, {now} now)"
            )
    return ready


def _executor(ready: Plan, address: str | None) -> Executor:
    config = ready.config
    function = work.Evaluator.of(ready.stages, config.backend, config.seed)
    return executor(config, ready.stages, function, address)


def executor(
    config: Config, stages: Sequence[Stage], function: UnitFunction, address: str | None
) -> Executor:
    """Workers that call `function`, with the data of the stages in place."""
    sets = work.data_sets(stages)
    if config.workers == 0 and address is None:
        work.prepare(sets)
        return InlineExecutor(function)
    return RayExecutor(
        function,
        workers=config.workers or None,
        address=address,
        timeout=config.timeout,
        attempts=config.attempts,
        recycle=config.recycle,
        setup=work.prepare,
        setup_args=(sets,),
    )


def _about(stage: Stage) -> dict[str, Any]:
    task = stage.task
    return {
        "name": stage.name,
        "metric": task.metric,
        "maximise": task.maximise,
        "unit": task.unit,
        "family": task.family,
        "filter": stage.is_filter,
        "threshold": stage.threshold,
        "abandons": stage.abandons,
        "relative": stage.relative,
        "steps": stage.budget.steps,
        "settings_in_grid": len(stage.grid),
    }


def _write_config(directory: Path, config: Config, environment: Mapping[str, Any]) -> None:
    """The resolved configuration, launchable as it is; versions and checksums stand in its
    comments."""
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    lines = [
        f"# Resolved configuration of {config.name}.",
        f"# {versions}; {environment['platform']}",
    ]
    for name, described in environment["data"].items():
        lines.append(f"# data of {name}: {_checksum(described)}")
    text = "\n".join(lines) + "\n" + yaml.safe_dump(config.to_dict(), sort_keys=False)
    draft = directory / f"{CONFIG}.new"
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, directory / CONFIG)  # all of it or nothing
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SearchError(f"{directory / CONFIG}: cannot be written ({error.strerror})") from None


def _checksum(described: Mapping[str, Any] | None) -> str:
    data = (described or {}).get("data")
    return f"{data['name']} sha256 {data['sha256']}" if data else "generated"

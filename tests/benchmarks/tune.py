"""Candidates per hour: `cellsearch launch` against Ray Tune with eager cells.

    python tests/benchmarks/tune.py /tmp/tune --candidates 60

First a search on two Ray workers. Then what one would write instead: a Ray Tune experiment (a
function trainable, reuse_actors, max_concurrent_trials=2) in which each trial takes one of the
cells that the search has proposed through the same funnel: the same stages in the same order, the
same settings, budgets, rungs and bars, one thread a worker, with the cell as torch operations
(backend="eager"). Tune is given the cells, the settings and the bars; the search also finds them.

Compared is the time of the candidates alone: of the search from its first proposal to its end, of
Tune from `Tuner.fit` to its return. Start-up and the training of the seeds, which Tune is spared,
are told separately. Exit status 1 when the ratio is below 5.

With `--config quick` it takes about five minutes on two cores; `--candidates 6` is a first try.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from trial import Course, Step, run  # noqa: E402

from search import funnel  # noqa: E402
from search.config import Config  # noqa: E402
from search.funnel import Stage  # noqa: E402
from search.journal import FILE, CandidateRow, Journal, UnitRow  # noqa: E402
from search.storage import scratch  # noqa: E402
from search.work import Evaluator  # noqa: E402

WORKERS = 2
TARGET = 5.0


@dataclass(frozen=True)
class Finished:
    """A search that has come to its end, and what it was asked to do with its candidates."""

    config: Config
    stages: list[Stage]
    candidates: list[CandidateRow]  # those that were evaluated
    units: dict[tuple[int, str], UnitRow]  # by candidate and stage
    baseline: dict[str, float]  # its best metric by stage
    best: dict[tuple[int, str], float | None]  # of a unit, by candidate and stage
    not_compiled: int  # units of candidates for which torch did the work


def main() -> int:
    options = _options()
    options.runs.mkdir(parents=True, exist_ok=True)
    directory = options.runs / "search"
    start_up, ours = _search(directory, options)
    finished = _read(directory)
    courses = _courses(finished)
    evaluator = Evaluator.of(finished.stages, "eager", finished.config.seed)
    theirs, results = _tune(courses, evaluator, options.runs / "tune")
    count = len(courses)
    passed = [_passed(finished, row, course) for row, course in
              zip(finished.candidates, courses, strict=True)]  # fmt: skip
    alike = sum(a == b["passed"] for a, b in zip(passed, results, strict=True))
    document = {
        "candidates": count,
        "search": {"seconds": ours, "an_hour": 3600 * count / ours, "before": start_up},
        "tune": {"seconds": theirs, "an_hour": 3600 * count / theirs},
        "ratio": theirs / ours,
        "same_stages_passed": alike,
        "units": len(finished.units),
        "units_not_compiled": finished.not_compiled,
    }
    print(json.dumps(document, indent=2) if options.json else _text(document))
    return 0 if theirs / ours >= TARGET else 1


def _options() -> argparse.Namespace:
    head, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="an empty folder for both runs")
    parser.add_argument("--config", default="standard", help="of the search (standard)")
    parser.add_argument("--candidates", type=int, default=60, help="how many (60)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one value; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.candidates < 1:
        parser.error("--candidates: expected at least 1")
    if options.runs.is_dir() and any(options.runs.iterdir()):
        parser.error(f"{options.runs} is not empty")
    return options


def _text(document: Mapping[str, Any]) -> str:
    count = document["candidates"]
    lines = [f"{count} candidates on {WORKERS} workers"]
    for name, label in (("search", "cellsearch launch"), ("tune", "Ray Tune, eager cells")):
        row = document[name]
        lines.append(
            f"{label:22} {row['seconds']:8.1f} s  {row['an_hour']:8.0f} candidates an hour"
        )
    if document["units_not_compiled"]:
        eager = f"{document['units_not_compiled']} of {document['units']}"
        lines.append(f"{eager} units of the search were not compiled: see `cellsearch doctor`")
    state = "ok" if document["ratio"] >= TARGET else "missed"
    lines += [
        f"before its first candidate the search has spent {document['search']['before']:.1f} s on "
        "starting and on its seeds",
        f"{document['same_stages_passed']} of {count} have passed the same stages in both",
        f"ratio {document['ratio']:.2f}, should be >= {TARGET:g}: {state}",
    ]
    return "\n".join(lines)


# -- the search


def _search(directory: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds until the first candidate, and from there to the end."""
    # Tune has no pool, so that the search must not end anything for the sake of its own.
    alike = ["search.reevaluate=0", "search.abandon=false"]
    overrides = [f"search.candidates={options.candidates}", *alike, *options.set]
    words = ["launch", options.config, "--run", str(directory), "--workers", str(WORKERS)]
    words += [word for override in overrides for word in ("--set", override)]
    begin = time.time()
    first: float | None = None
    with subprocess.Popen(
        [sys.executable, "-m", "search.cli", *words], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(0.1)
            if first is None and (directory / FILE).exists():
                with Journal.read(directory) as journal:
                    if any(row.origin != "seed" for row in journal.candidates()):
                        first = time.time()
    if process.returncode != 0:
        raise SystemExit(f"tune.py: the search has failed with status {process.returncode}")
    with Journal.read(directory) as journal:
        end = next(event.at for event in journal.events() if event.kind == "finished")
    assert first is not None
    return first - begin, end - first


def _read(directory: Path) -> Finished:
    with Journal.read(directory) as journal:
        config = Config.from_dict(json.loads(journal.meta["config"]))
        rows = {row.id: row for row in journal.candidates()}
        units, results = journal.units(), {row.unit: row for row in journal.results()}
    stages = funnel.stages(config)
    by_name = {stage.name: stage for stage in stages}
    baseline_name = config.search.baseline
    tried: dict[str, list[float | None]] = {stage.name: [] for stage in stages}
    mine: dict[tuple[int, str], UnitRow] = {}
    best: dict[tuple[int, str], float | None] = {}
    not_compiled = 0
    for unit in units:
        row, stage, result = rows[unit.candidate], by_name[unit.stage], results[unit.id]
        records = result.records if result.status == "ok" else ()
        metrics = [stage.metric(record) for record in records]
        if row.origin == "seed" and row.name == baseline_name:
            tried[stage.name] += metrics
        elif row.origin != "seed":
            mine[row.id, stage.name] = unit
            not_compiled += any("fallback" in record for record in records)
            best[row.id, stage.name] = stage.best(metrics)
    bases = {stage.name: stage.best(tried[stage.name]) for stage in stages}
    evaluated = dict.fromkeys(candidate for candidate, _ in mine)
    return Finished(
        config=config,
        stages=stages,
        candidates=[rows[candidate] for candidate in evaluated],
        units=mine,
        baseline={name: value for name, value in bases.items() if value is not None},
        best=best,
        not_compiled=not_compiled,
    )


# -- the same candidates for Tune


def _courses(finished: Finished) -> list[Course]:
    return [
        Course(row.cell, [_step(finished, row.id, stage) for stage in finished.stages])
        for row in finished.candidates
    ]


def _step(finished: Finished, candidate: int, stage: Stage) -> Step:
    """As the search has done it; or, where it came to no such stage, as it would have done."""
    unit = finished.units.get((candidate, stage.name))
    if unit is not None:
        plan = _plan(unit)
    else:
        rng = random.Random(f"{finished.config.seed}/{candidate}/{stage.name}")
        count = 1 if stage.is_filter else finished.config.search.settings
        settings = [stage.grid[index].to_dict() for index in stage.grid.sample(rng, count)]
        others = [u for (_, name), u in finished.units.items() if name == stage.name]
        plan = {"rungs": [], **(_plan(others[0]) if others else {}), "settings": settings}
    task = stage.task
    bar = _bar(finished, stage)
    return Step(stage.name, task.metric, task.maximise, plan, stage.screen, bar)


def _plan(unit: UnitRow) -> dict[str, Any]:
    """What a unit trains."""
    named = ("settings", "rungs", "target")
    return {name: unit.payload[name] for name in named if name in unit.payload}


def _bar(finished: Finished, stage: Stage) -> float:
    """The metric that passes a stage."""
    if stage.is_filter and not stage.relative:
        return stage.threshold
    bar = stage.bar(stage.threshold, finished.baseline.get(stage.name))
    if bar is None:
        raise SystemExit(f"tune.py: the search has no bar for {stage.name}")
    return bar


def _passed(finished: Finished, row: CandidateRow, course: Course) -> int:
    """How many stages a candidate has passed in the search."""
    passed = 0
    for step in course.steps:
        best = finished.best.get((row.id, step.stage))
        if best is None or (best < step.bar if step.maximise else best > step.bar):
            break
        passed += 1
    return passed


def _tune(
    courses: Sequence[Course], evaluator: Evaluator, directory: Path
) -> tuple[float, list[Mapping[str, Any]]]:
    """Seconds, and what every trial has reported, in the order of the courses."""
    with scratch("cellsearch-tune-", 39) as folder:
        os.environ |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": str(folder),
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
            "RAY_memory_monitor_refresh_ms": "0",
        }
        import ray
        from ray import tune

        ray.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            tuner = tune.Tuner(
                tune.with_parameters(run, courses=courses, evaluator=evaluator),
                param_space={"candidate": tune.grid_search(list(range(len(courses))))},
                tune_config=tune.TuneConfig(max_concurrent_trials=WORKERS, reuse_actors=True),
                run_config=tune.RunConfig(storage_path=str(directory.resolve()), verbose=0),
            )
            begin = time.perf_counter()
            with redirect_stdout(sys.stderr):  # Tune prints, verbose or not
                found = tuner.fit()
            seconds = time.perf_counter() - begin
        finally:
            ray.shutdown()
    trials = [found[index] for index in range(len(found))]
    for trial in trials:
        if trial.error is not None:
            raise SystemExit(f"tune.py: a trial has failed: {trial.error}")
    metrics = [trial.metrics or {} for trial in trials]
    return seconds, sorted(metrics, key=lambda row: row["config"]["candidate"])


if __name__ == "__main__":
    sys.exit(main())

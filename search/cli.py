"""The commands. One short function each; the words are in `arguments.py`, the work is done by the
packages.

Exit status 0 on success, 2 on bad input with one line on standard error, 130 after Ctrl-C.
Heavy imports (torch, pandas, ray) happen inside the commands that need them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellgraph as cg
from cellgraph import CellError
from evaluators.errors import DataError
from search import arguments
from search.errors import SearchError
from search.journal import FILE
from search.versions import installed

if TYPE_CHECKING:
    from cellgraph.exporters import Design, Difference
    from search.algorithms import Algorithm
    from search.launch import Plan
    from search.loop import Observer


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = arguments.parser().parse_args(argv)
    options.words = tuple(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # equations and curves are not ASCII
    try:
        return _COMMANDS[options.command](options) or 0
    except (CellError, DataError, SearchError) as error:
        print(f"cellsearch: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `cellsearch zoo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk behind standard output, a path that is too long
        print(f"cellsearch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cellsearch: interrupted; nothing that was acknowledged is lost", file=sys.stderr)
        return 130


# -- running


def _launch(options: argparse.Namespace) -> None:
    from search import config as configuration
    from search import launch

    config = configuration.load(options.config, options.set)
    if options.workers is not None:
        config = replace(config, workers=options.workers)
    directory = Path(options.run) if options.run else _free(Path("runs"), config.name)
    print(f"run {directory}: {config.search.candidates} candidates, seed {config.seed}", flush=True)
    with _running(directory) as watch:
        launch.launch(config, directory, address=options.address, watch=watch)
    _finish(directory)


def _resume(options: argparse.Namespace) -> None:
    from search import launch

    directory = Path(options.run)
    with _running(directory) as watch:
        launch.resume(directory, workers=options.workers, address=options.address, watch=watch)
    _finish(directory)


def _replay(options: argparse.Namespace) -> None:
    from search import launch
    from search.progress import Silent

    algorithm, complete = launch.replay(Path(options.run), watch=lambda algorithm, plan: Silent())
    state = "complete" if complete else "unfinished"
    print(f"{options.run}: every proposal follows from the journal; the run is {state}")
    for score, name in algorithm.standing()[:10]:
        print(f"  {score:.4f}  {name}")


@contextmanager
def _running(directory: Path) -> Iterator[Callable[[Algorithm, Plan], Observer]]:
    """Show progress as soon as there is an algorithm."""

    with _terminable(), ExitStack() as stack:

        def watch(algorithm: Algorithm, plan: Plan) -> Observer:
            from rich.console import Console

            from search.progress import Progress

            return stack.enter_context(Progress(str(directory), algorithm, Console()))

        try:
            yield watch
        except KeyboardInterrupt:
            if (directory / FILE).exists():
                print(f"go on with: cellsearch resume {directory}", file=sys.stderr)
            raise


@contextmanager
def _terminable() -> Iterator[None]:
    """A polite kill (SIGTERM) stops like Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free(folder: Path, name: str) -> Path:
    """folder/name, or the first of name-2, name-3, … that is not there yet."""
    directory, number = folder / name, 1
    while directory.exists():
        number += 1
        directory = folder / f"{name}-{number}"
    return directory


def _finish(directory: Path) -> None:
    """Leaderboard and report of a run that came to its end."""
    from reports import collect, page, tables

    run = collect.read(directory)
    tables.leaderboard(run, 10)
    print(f"report: {page.write(run, directory / 'report.html')}")


def _confirm(options: argparse.Namespace) -> None:
    from rich.console import Console

    from reports import collect, confirmed, measured, page
    from search.confirmation import Options, confirm
    from search.confirmation.progress import Progress

    directory = Path(options.run)
    given = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    with _terminable(), Progress(f"confirm {directory}", Console(stderr=True)) as watch:
        try:
            confirm(directory, given, workers=options.workers, address=options.address, watch=watch)
        except KeyboardInterrupt:
            print(f"go on with: cellsearch confirm {directory}", file=sys.stderr)
            raise
    document = measured.read(directory)
    report = page.write(collect.read(directory), directory / "report.html")
    if options.json:
        _print_json(document)
    else:
        print(f"{confirmed.text(document)}\nreport: {report}")


# -- looking


def _status(options: argparse.Namespace) -> None:
    from reports import collect, tables

    run = collect.read(options.run)
    if options.json:
        _print_json(tables.status_data(run))
    else:
        tables.status(run)


def _inspect(options: argparse.Namespace) -> None:
    from reports import collect, tables

    target: str = options.target
    if options.schedule:
        _schedule(target, options.hidden, options.json)
        return
    directory, colon, key = target.rpartition(":")
    if os.path.isdir(target) and target not in cg.zoo.names():
        run = collect.read(target)
        if options.json:
            _print_json(tables.leaderboard_data(run, options.top))
        else:
            tables.leaderboard(run, options.top)
    elif colon and os.path.isdir(directory):
        run = collect.read(directory)
        if options.json:
            _print_json(tables.cell_data(run, key))
        else:
            tables.cell_page(run, key)
    else:
        cell = cg.load(target)
        info = cg.zoo.info(cell.name) if cell.name in cg.zoo.names() else None
        if options.json:
            _print_json(tables.named_cell_data(cell, info))
        else:
            tables.named_cell_page(cell, info)


def _schedule(target: str, hidden: int, as_json: bool) -> None:
    from cellgraph.kernels.describe import schedule

    cell = cg.load(target)
    made = schedule(cell, hidden, hidden, widths=dict.fromkeys(cell.widths[1:], hidden))
    if as_json:
        _print_json(made.data())
    else:
        print(made.text())


def _report(options: argparse.Namespace) -> None:
    from reports import collect, page

    if options.parquet is not None:
        from reports import parquet

        for path in parquet.write(collect.read(options.run), options.parquet or None):
            print(path)
        if options.out is None:
            return
    out = Path(options.out or Path(options.run) / "report.html")
    if out.exists() and out.suffix.lower() not in (".html", ".htm"):
        raise SearchError(f"{out} exists and is no page, expected a name that ends in .html")
    print(page.write(collect.read(options.run), out))


def _zoo(options: argparse.Namespace) -> None:
    from reports import structure

    rows = structure.zoo(options.tag, near=options.json)
    if options.json:
        _print_json(rows)
    else:
        terminal = sys.stdout.isatty()
        print(structure.zoo_text(rows, shutil.get_terminal_size().columns if terminal else None))


def _mutate(options: argparse.Namespace) -> None:
    parent = cg.load(options.cell)
    rng = random.Random(options.seed)
    made, draws = 0, 0
    while made < options.count:
        draws += 1
        if draws > 1000 * options.count:
            raise SearchError(
                f"{made} children of {parent.name} in {draws - 1} draws, expected {options.count}"
            )
        child = cg.mutate(parent, rng, edits=options.edits)
        if child is not None:
            print(child if made == 0 else f"\n{child}", end="")
            made += 1


def _export(options: argparse.Namespace) -> None:
    from search import exporting

    terminal = sys.stderr.isatty()

    def say(done: int, total: int) -> None:
        if terminal:
            end = "\n" if done >= total else ""
            print(f"\rtraining: step {done} of {total}", end=end, file=sys.stderr, flush=True)

    note = _card(options) if options.card else None
    for line in exporting.export(options, say, note):
        print(line)


def _sample(options: argparse.Namespace) -> None:
    from search import exporting

    made = exporting.sample(options)
    if isinstance(made, str):
        print(made)


def _card(options: argparse.Namespace) -> Callable[[Design, Difference | None], str]:
    """What writes the card of an export."""
    from cellgraph.exporters import FORMATS, SIZES
    from evaluators.data.catalogue import DATA_SETS
    from reports import card

    def text(design: Design, difference: Difference | None) -> str:
        computes = FORMATS[options.format].check is not None
        export = card.Export(
            file=Path(options.out).name,
            about=FORMATS[options.format].about,
            sizes={**SIZES, **design.sizes} if computes else {},
            difference=difference,
            command=shlex.join(["cellsearch", *options.words]),
            versions={name: installed(name) for name in ("cellsearch", "torch")},
            licence=options.licence,
            weights=_weights(options),
            licences={name: entry.licence for name, entry in DATA_SETS.items()},
        )
        return card.card(design.cell, export, card.origin(options.target))

    return text


def _weights(options: argparse.Namespace) -> str | None:
    """What the card says of trained weights."""
    if options.weights is None:
        return None
    file = Path(options.out).with_suffix(".safetensors").name
    return f"Those of the best training on {options.task or 'the task of the run'}, in {file}."


# -- surroundings


def _data_list(options: argparse.Namespace) -> None:
    from evaluators import data

    rows = data.names()
    if options.json:
        _print_json(rows)
        return
    for name, row in rows.items():
        print(f"{name:<12} {'here   ' if row['available'] else 'missing'} {row['description']}")
        print(f"{'':<20} {row['where']}")


def _data_fetch(options: argparse.Namespace) -> None:
    from evaluators import data

    terminal = sys.stderr.isatty()

    def progress(path: str, got: int, total: int) -> None:
        end = "\n" if got == total else ""
        print(f"\r{path}: {got:,} of {total:,} bytes", end=end, file=sys.stderr, flush=True)

    for name in options.names:
        for path in data.fetch(name, options.to, progress=progress if terminal else None):
            print(path)


def _data_path(options: argparse.Namespace) -> None:
    from evaluators import data

    for label, folder in data.path().items():
        print(f"{label:<16} {folder or 'not set'}")


def _bench_kernels(options: argparse.Namespace) -> None:
    from search.bench import kernels, summary
    from search.bench.request import LONG_SHAPES, MUTANTS, SHAPES, Request

    mutants = options.mutants
    if mutants is None:
        mutants = MUTANTS if options.cells is None else 0
    request = Request(
        cells=options.cells,
        shapes=tuple(options.shapes or SHAPES),
        long_shapes=tuple(options.shapes or LONG_SHAPES),
        mutants=mutants,
        seed=options.seed,
        dtype=options.dtype,
        input_grad=options.input_grad,
        interpreter=options.interpreter,
        parts=options.parts,
    )
    _bench(kernels, summary, request, options.json)


def _bench_search(options: argparse.Namespace) -> None:
    from search.bench import search, search_summary
    from search.bench.request import SearchRequest

    request = SearchRequest(
        candidates=tuple(options.candidates),
        workers=options.workers,
        seed=options.seed,
        parts=options.parts,
        folder=options.folder,
    )
    _bench(search, search_summary, request, options.json)


def _bench_export(options: argparse.Namespace) -> None:
    from search.bench import exports, exports_summary
    from search.bench.request import EXPORT_MUTANTS, ExportRequest

    mutants = options.mutants
    if mutants is None:
        mutants = EXPORT_MUTANTS if options.cells is None else 0
    request = ExportRequest(options.cells, mutants, options.formats, options.seed, options.parts)
    _bench(exports, exports_summary, request, options.json)


def _bench(measurement: Any, summary: Any, request: Any, as_json: bool) -> None:
    """Two modules of `search.bench`: what is measured, and how it is told."""
    from rich.console import Console

    from search.bench.progress import Progress

    with Progress(Console(stderr=True)) as progress:
        found = measurement.measure(request, progress)
    if as_json:
        _print_json(summary.data(found))
    else:
        print(summary.text(found))


def _doctor(options: argparse.Namespace) -> int:
    from search import doctor

    findings = []
    for finding in doctor.examine():
        findings.append(finding)
        if not options.json:
            print(f"{finding.state:<8} {finding.what}: {finding.detail}", flush=True)
    missing = [f for f in findings if f.state == "missing"]
    if options.json:
        _print_json([vars(f) for f in findings])
    if missing:
        names = ", ".join(f.what for f in missing)
        print(f"cellsearch: this machine lacks: {names}", file=sys.stderr)
    return 2 if missing else 0


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "launch": _launch,
    "resume": _resume,
    "status": _status,
    "replay": _replay,
    "confirm": _confirm,
    "inspect": _inspect,
    "report": _report,
    "export": _export,
    "sample": _sample,
    "zoo": _zoo,
    "mutate": _mutate,
    "data list": _data_list,
    "data fetch": _data_fetch,
    "data path": _data_path,
    "bench kernels": _bench_kernels,
    "bench search": _bench_search,
    "bench export": _bench_export,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())

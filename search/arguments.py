"""The words of the command line: commands, options and their help. What they do stands in
`cli.py`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from search.bench import request
from search.versions import installed

_CELL = "RUN:KEY, a zoo name, a .cell file, or a recipe or graph in a .json file"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line on standard error, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """The parser of `cellsearch`; the chosen command stands in `command`, e.g. "data list"."""
    top = Parser(prog="cellsearch", description="Neural architecture search over recurrent cells.")
    version = f"cellsearch {installed('cellsearch')}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> Parser:
        made: Parser = commands.add_parser(name, help=text, description=f"{text}.".capitalize())
        made.set_defaults(command=name)
        return made

    _runs(command)
    _cells(command)
    data = commands.add_parser("data", help="data sets: list, fetch, path")
    _data(data.add_subparsers(metavar="list|fetch|path", required=True))
    bench = commands.add_parser("bench", help="how fast this machine is: kernels, search, export")
    kinds = bench.add_subparsers(metavar="kernels|search|export", required=True)
    _bench_kernels(kinds)
    _bench_search(kinds)
    _bench_export(kinds)
    doctor = command("doctor", "what this machine has, what it lacks, and how to get it")
    _json(doctor)
    return top


def _runs(command: Callable[[str, str], Parser]) -> None:
    made = command("launch", "start a search from a configuration")
    made.add_argument("config", help="a YAML file, or a bundled one: quick, standard, …")
    made.add_argument("--run", help="the run directory (default: runs/NAME, numbered if it exists)")
    made.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override one value; repeatable"
    )
    _workers(made)
    made = command("resume", "carry a run on after an interruption, a crash or a kill")
    _run(made)
    _workers(made)
    made = command("status", "how far a run is")
    _run(made)
    _json(made)
    _run(command("replay", "rebuild every proposal of a run from its journal, without training"))
    made = command("inspect", "the leaderboard of a run, or everything about one cell")
    made.add_argument("target", help=f"a run directory, {_CELL}")
    made.add_argument("--top", type=whole(1), default=20, metavar="N", help="rows to show (20)")
    made.add_argument(
        "--schedule",
        action="store_true",
        help="how a cell is compiled: stages, stored values, FLOPs and bytes of a step",
    )
    made.add_argument(
        "--hidden", type=whole(1), default=64, metavar="N", help="H and X for --schedule (64)"
    )
    _json(made)
    made = command("report", "write the page of a run, or its candidates and curves as data")
    _run(made)
    made.add_argument("--out", help="the HTML file (default: RUN/report.html)")
    made.add_argument(
        "--parquet",
        nargs="?",
        const="",
        metavar="DIR",
        help="candidates.parquet and curves.parquet instead, into DIR (default: RUN); unit and "
        "meaning of every column are in their metadata",
    )
    _confirm(command("confirm", "retrain the best cells and baselines: results, not search scores"))


def _confirm(made: Parser) -> None:
    """Defaults stand in `search.confirmation.Options`: what is left out when a confirmation goes on
    is what it began with."""
    _run(made)
    add = made.add_argument
    add("--top", type=whole(1), metavar="N", help="so many of the best cells found (10)")
    add("--random", type=whole(0), metavar="N", help="random cells that passed the filter (5)")
    add("--settings", type=whole(1), metavar="N", help="to choose from, the same for all cells (8)")
    add("--seeds", type=whole(2), metavar="N", help="fresh ones, measured on test data (5)")
    add("--tasks", type=words, metavar="NAME,…", help="of the run (all)")
    add("--steps-scale", type=number(math.inf), metavar="X", help="steps, times the search's (1)")
    add("--alpha", type=number(1), metavar="P", help="level of all tests together (0.05)")
    _workers(made)
    _json(made)


def _cells(command: Callable[[str, str], Parser]) -> None:
    made = command("export", "write a cell as a file for other programs")
    made.add_argument("target", help=_CELL)
    made.add_argument(
        "--format",
        required=True,
        help="torch or keras (a .py file that needs nothing else), onnx, pt2 (torch.export), c (a "
        "C99 file for inference), latex, svg, dot, json (the graph), cell (notation) or nasbench "
        "(a recipe, if it is one)",
    )
    made.add_argument("--out", required=True, help="the file to write")
    made.add_argument("--force", action="store_true", help="replace existing files")
    made.add_argument("--licence", metavar="TEXT", help="of the file, for its card")
    made.add_argument(
        "--no-card", dest="card", action="store_false", help="no card (OUT.md) beside the file"
    )
    made.add_argument("--input-size", type=whole(1), metavar="X", help="of the layer (64)")
    made.add_argument("--hidden-size", type=whole(1), metavar="H", help="of the layer (64)")
    made.add_argument("--num-layers", type=whole(1), metavar="L", help="of the layer (1)")
    made.add_argument("--bidirectional", action="store_true", default=None, help="both directions")
    made.add_argument("--int8", action="store_true", help="matrices as int8 (format c)")
    made.add_argument(
        "--weights",
        choices=["best"],
        help="of RUN:KEY: its best training is done once more; the whole model goes into a file "
        "beside --out that ends in .safetensors",
    )
    made.add_argument(
        "--task", help="whose training: a task of the run, or language, music, arithmetic"
    )
    made = command("sample", "text or music that a trained model makes up")
    made.add_argument("file", help="what `export --weights` has written, a .safetensors file")
    made.add_argument("--task", choices=["language", "music"], help="what it must be")
    made.add_argument(
        "--length", type=whole(1), default=400, metavar="N", help="symbols or frames (400)"
    )
    made.add_argument(
        "--temperature",
        type=number(math.inf, zero=True),
        default=1.0,
        metavar="X",
        help="below 1 bolder, 0 always the likeliest (1)",
    )
    made.add_argument("--seed", type=whole(0), default=0, help="of the random generator (0)")
    made.add_argument("--prompt", default="", help="text to go on with")
    made.add_argument("--out", help="the file to write: text, or MIDI (default: standard output)")
    made = command("zoo", "the named cells: states, sizes, form of the recurrence")
    made.add_argument("--tag", metavar="TAG", help="only those with this tag")
    _json(made)
    made = command("mutate", "print random children of a cell")
    made.add_argument("cell", help=_CELL)
    made.add_argument("--seed", type=whole(0), default=0, help="of the random generator (0)")
    made.add_argument("--count", type=whole(1), default=1, help="how many children (1)")
    made.add_argument(
        "--edits",
        type=edits,
        metavar="LOW-HIGH",
        help="so many transformations, such as 1-3 (default: every node with probability p)",
    )


def _data(kinds: argparse._SubParsersAction[Parser]) -> None:
    def command(name: str, text: str) -> Parser:
        made = kinds.add_parser(name, help=text, description=f"{text}.".capitalize())
        made.set_defaults(command=f"data {name}")
        return made

    _json(command("list", "every data set, and whether it is here"))
    made = command("fetch", "download data sets and check them")
    made.add_argument("names", nargs="+", metavar="NAME", help="as `data list` names them")
    made.add_argument("--to", help="the folder (default: the cache directory)")
    command("path", "the folders that are searched for data")


def _bench_kernels(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "compiled cells beside what they replace, on one thread; about 25 minutes"
    made = kinds.add_parser("kernels", help=text, description=f"{text}.".capitalize())
    made.set_defaults(command="bench kernels")
    made.add_argument(
        "--cells", type=words, metavar="NAME,…", help=f"each {_CELL} (default: the zoo and mutants)"
    )
    made.add_argument(
        "--shapes",
        type=shape,
        nargs="+",
        metavar="T,B,H",
        help=f"time steps, batch rows, units and input width ({_listed(request.SHAPES)}; "
        f"scans: {_listed(request.LONG_SHAPES)})",
    )
    made.add_argument(
        "--mutants",
        type=whole(0),
        metavar="N",
        help=f"random cells besides ({request.MUTANTS}; with --cells none)",
    )
    made.add_argument("--seed", type=whole(0), default=0, help="of mutants and numbers (0)")
    made.add_argument("--dtype", choices=request.DTYPES, default="float32")
    made.add_argument("--input-grad", action="store_true", help="gradients of the input as well")
    made.add_argument(
        "--interpreter", action="store_true", help="the interpreter for every cell and shape"
    )
    _parts(made, request.PARTS)
    _json(made)


def _listed(shapes: tuple[request.Shape, ...]) -> str:
    return " ".join(",".join(map(str, shape)) for shape in shapes)


def _bench_search(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "what a search costs beside its trainings, with evaluations that do nothing"
    made = kinds.add_parser("search", help=text, description=f"{text}.".capitalize())
    made.set_defaults(command="bench search")
    made.add_argument(
        "--candidates",
        type=whole(20),
        nargs="+",
        default=request.CANDIDATES,
        metavar="N",
        help=f"sizes of the searches ({' '.join(map(str, request.CANDIDATES))})",
    )
    made.add_argument("--workers", type=whole(1), default=2, metavar="N", help="of Ray (2)")
    made.add_argument("--seed", type=whole(0), default=0, help="of searches and mutants (0)")
    _parts(made, request.SEARCH_PARTS)
    made.add_argument("--folder", help="where journals are written (default: temporary files)")
    _json(made)


def _bench_export(kinds: argparse._SubParsersAction[Parser]) -> None:
    text = "every cell through the formats that compute, and how fast one is there"
    made = kinds.add_parser("export", help=text, description=f"{text}.".capitalize())
    made.set_defaults(command="bench export")
    made.add_argument("--cells", type=words, metavar="NAME,…", help=f"each {_CELL} (the zoo)")
    made.add_argument(
        "--mutants",
        type=whole(0),
        metavar="N",
        help=f"random cells besides ({request.EXPORT_MUTANTS}; with --cells none)",
    )
    made.add_argument(
        "--formats",
        type=words,
        default=request.EXPORT_FORMATS,
        metavar="NAME,…",
        help=f"({','.join(request.EXPORT_FORMATS)})",
    )
    made.add_argument("--seed", type=whole(0), default=0, help="of the mutants (0)")
    _parts(made, request.EXPORT_PARTS)
    _json(made)


def _parts(made: Parser, known: tuple[str, ...]) -> None:
    made.add_argument(
        "--parts",
        type=parts(known),
        default=known,
        metavar="PART,…",
        help=f"only these measurements ({','.join(known)})",
    )


def _run(made: Parser) -> None:
    made.add_argument("run", help="the run directory")


def _json(made: Parser) -> None:
    made.add_argument("--json", action="store_true", help="print one JSON document")


def _workers(made: Parser) -> None:
    made.add_argument("--address", help="an existing Ray cluster: auto, HOST:PORT, ray://HOST:PORT")
    made.add_argument(
        "--workers", type=whole(0), metavar="N", help="default: all cores; 0: no Ray, this process"
    )


def whole(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}, expected a whole number of at least {least}"
            )
        return int(text)

    return read


def number(below: float, *, zero: bool = False) -> Callable[[str], float]:
    """A reader of numbers between 0 and `below`, without 0 unless `zero`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 < value < below or (zero and value == 0)):
            most = f" and below {below:g}" if below < math.inf else ""
            least = "a number of at least 0" if zero else "a number above 0"
            raise argparse.ArgumentTypeError(f"{text!r}, expected {least}{most}")
        return value

    return read


def edits(text: str) -> tuple[int, int]:
    """`1-3` as (1, 3)."""
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise argparse.ArgumentTypeError(f"{text!r}, expected LOW-HIGH such as 1-3")
    return int(low), int(high)


def words(text: str) -> tuple[str, ...]:
    """`gru,lstm` as ("gru", "lstm")."""
    found = tuple(text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}, expected names with commas between them")
    return found


def shape(text: str) -> request.Shape:
    """`35,20,64` as a shape."""
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) >= 1 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}, expected T,B,H such as 35,20,64")
    return request.Shape(*map(int, sizes))


def parts(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of some of the known names: `rates,cells` as ("rates", "cells")."""

    def read(text: str) -> tuple[str, ...]:
        found = words(text)
        for name in found:
            if name not in known:
                expected = f"expected some of {', '.join(known)}"
                raise argparse.ArgumentTypeError(f"no part {name!r}, {expected}")
        return found

    return read

"""`cellsearch bench export`: does every cell come through every format whole, and how fast is it
there?

Letters: T time steps, B batch rows, H units and input width.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import cellgraph as cg
from cellgraph import CellError, CellGraph
from cellgraph.exporters import FORMATS, write
from cellgraph.exporters.c_check import compile_c
from cellgraph.exporters.c_source import CFile
from evaluators.train import prepare_process
from search.bench import machine
from search.bench.population import mutants, named
from search.bench.request import ExportRequest, Request, Shape
from search.bench.timing import Effort, interleaved

VERSION = 2  #: of the JSON document
SIZES = {"input_size": 24, "hidden_size": 32}  #: of the layers that are checked
SPEED = Shape(100, 1, 128)  #: a stream on a small device
EAGER, NATIVE, ONNX, C = "eager", "native", "onnxruntime", "C"
#: Of the C file that is timed: what its user would compile it with.
FLAGS = ("-std=c99", "-O3", "-march=native", "-shared", "-fPIC")
EFFORT = Effort(seconds=5.0, least=5, most=60)


@dataclass(frozen=True)
class Row:
    """One cell in one format. difference, step: the largest from the interpreter, of everything and
    of single steps, None where the export failed, and `error` says why."""

    cell: str
    mutant: bool
    format: str
    seconds: float
    difference: float | None
    step: float | None
    error: str | None = None


@dataclass
class Findings:
    """What has been measured. ms: of a pass through an LSTM without gradients, each way."""

    request: ExportRequest
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=dict)
    over: dict[str, float] = field(default_factory=dict)  # eager's time over that of each way

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "version": VERSION,
            "machine": self.machine,
            "request": asdict(self.request),
            "exports": [asdict(row) for row in self.rows],
            "speed": {"shape": list(SPEED), "ms": self.ms, "eager_over": self.over},
        }


def measure(request: ExportRequest, say: Callable[[str, int, int], None]) -> Findings:
    """Everything that is asked for; for the rest of the process there is one thread. Raises
    `CellError`."""
    computing = [name for name, made in FORMATS.items() if made.check is not None]
    for name in request.formats:
        if name not in computing:
            raise CellError(f"no format {name!r} to check, expected some of {', '.join(computing)}")
    prepare_process()
    found = Findings(request, machine.describe())
    if "checks" in request.parts:
        found.rows = list(_rows(request, say))
    if "speed" in request.parts:
        say("speed of an LSTM", 0, 1)
        found.ms, found.over = _speed()
    return found


def _rows(request: ExportRequest, say: Callable[[str, int, int], None]) -> Iterator[Row]:
    cells = named(Request(cells=request.cells))
    bred = mutants(request.seed, request.mutants)
    total = len(request.formats) * (len(cells) + len(bred))
    done = 0
    with tempfile.TemporaryDirectory(prefix="cellsearch-") as folder:
        for kind in request.formats:
            for index, cell in enumerate([*cells, *bred]):
                say(f"exports as {kind}", done, total)
                yield _row(cell, kind, Path(folder) / f"{kind}{index}", index >= len(cells))
                done += 1


def _row(cell: CellGraph, format: str, path: Path, mutant: bool) -> Row:
    begin, error = time.perf_counter(), None
    largest = step = None
    try:
        found = write(cell, path, format, sizes=SIZES).difference
        if found is not None:
            largest, step, _ = found
    except CellError as problem:
        error = str(problem).splitlines()[0]
    seconds = time.perf_counter() - begin
    path.unlink(missing_ok=True)
    name = f"mutant {cell.key()[:8]}" if mutant else cell.name
    return Row(name, mutant, format, seconds, largest, step, error)


def _speed() -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of a pass through an LSTM, and how many times as long as it eager takes."""
    hidden = SPEED.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = cg.compile("lstm", hidden, hidden, backend=EAGER).eval()
        x = torch.randn(SPEED)
    compiled = cg.compile("lstm", hidden, hidden, backend=NATIVE).eval()
    compiled.load_state_dict(layer.state_dict())
    with tempfile.TemporaryDirectory(prefix="cellsearch-") as folder, torch.no_grad():
        ways: dict[str, Callable[[], object]] = {
            EAGER: lambda: layer(x),
            NATIVE: lambda: compiled(x),
            ONNX: _in_onnxruntime(layer, x, Path(folder)),
            C: _in_c(layer, x, Path(folder)),
        }
        times = interleaved(ways, EFFORT)
    ms = {way: 1000 * times[way].median for way in ways}
    return ms, {way: times[EAGER].over(times[way]) for way in ways if way != EAGER}


def _in_onnxruntime(layer: cg.CellLayer, x: torch.Tensor, folder: Path) -> Callable[[], object]:
    path = write(layer, folder / "lstm.onnx", "onnx").path
    from cellgraph.exporters.onnx_check import open_session  # imports optional packages
    from cellgraph.exporters.onnx_graph import names_of

    session = open_session(path)
    inputs, outputs = names_of(layer)
    zeros = [torch.zeros(1, x.shape[1], size) for size in layer.state_sizes]
    given = {name: v.numpy() for name, v in zip(inputs, (x, *zeros), strict=True)}
    return lambda: session.run(outputs, given)


def _in_c(layer: cg.CellLayer, x: torch.Tensor, folder: Path) -> Callable[[], object]:
    """The exported file as a shared library; its only row starts from zero."""
    source = write(layer, folder / "lstm.c", "c").path
    seen = CFile(layer).interface
    library = folder / "lstm.so"
    compile_c([*FLAGS, "-o", str(library), str(source), "-lm"], folder)
    code = ctypes.CDLL(str(library))
    state = ctypes.create_string_buffer(seen.state_bytes)
    flat = x[:, 0].contiguous()
    y = torch.empty(len(flat), layer.output_size)
    reset, sequence = getattr(code, seen.reset), getattr(code, seen.sequence)

    def run() -> torch.Tensor:
        reset(state)
        places = (ctypes.c_void_p(value.data_ptr()) for value in (flat, y))
        sequence(state, *places, ctypes.c_int(len(flat)))
        return y

    torch.testing.assert_close(run(), layer(x)[0][:, 0], rtol=1e-4, atol=1e-5)
    return run

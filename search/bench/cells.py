"""Forward and backward through one layer: the compiled cell beside the ways that it replaces.

Letters: T time steps, B batch rows, H units and input width, N × K the shape of a matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.backends import Native
from cellgraph.graph import INPUT, MATMUL, PARAM, STATE, depends_on
from cellgraph.interpret import Runner
from cellgraph.sizes import concrete_widths
from search.bench.population import mutants, named
from search.bench.rates import Yardstick
from search.bench.request import Request, Shape
from search.bench.timing import Effort, interleaved

NATIVE, EAGER, INTERPRETER, LSTM = "native", "eager", "interpreter", "nn.LSTM"
SMALL_SHAPES = 2  #: the smallest ones: there mutants are measured as long as cells of the zoo
INTERPRETED = 128  #: H up to which the interpreter runs; beyond it takes seconds

NAMED = Effort(seconds=1.0)
FEW = Effort(seconds=0.3)


@dataclass(frozen=True)
class Row:
    """One cell at one shape.

    flops: of the matrix products, forward and backward. finite: outputs and gradients are.
    ms: the median of each variant; least_ms: its shortest turn, which others on the machine disturb
    least. over_native: how many times as long as the compiled cell the other variants take.
    of_best: the rate of native products over the machine's best in the same rounds; code_of_best:
    of what remains without the time that torch and Python take around the compiled functions.
    """

    cell: str
    key: str
    mutant: bool
    shape: Shape
    flops: int
    finite: bool
    rounds: int
    ms: dict[str, float]
    least_ms: dict[str, float]
    over_native: dict[str, float]
    of_best: float | None
    code_of_best: float | None

    def gflops(self, name: str) -> float:
        """The rate of a variant, if it computed the products alone and each of them once."""
        return self.flops / self.ms[name] / 1e6

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        alike = [name for name in self.ms if name != LSTM]  # that one has products of its own
        return {
            **vars(self),
            "shape": list(self.shape),
            "gflops": {name: self.gflops(name) for name in alike},
        }


def product_flops(cell: CellGraph, shape: Shape, *, input_grad: bool) -> int:
    """Operations of the matrix products of a pass forward and backward, a multiply-add being two.

    Each product of a row counts once forward and once for the gradient of its matrix, and once for
    that of its operand where there is a use for it. Products of parameters alone, which are
    computed once a sequence, do not count.
    """
    params = {p.name: p for p in cell.params}
    hidden = shape.hidden
    sizes = concrete_widths(cell, hidden, hidden, dict.fromkeys(cell.widths[1:], hidden))
    moving = depends_on(cell.roots, lambda leaf: leaf.op in (INPUT, STATE))
    leads = (STATE, PARAM, INPUT) if input_grad else (STATE, PARAM)  # to what wants a gradient
    back = depends_on(cell.roots, lambda leaf: leaf.op in leads)
    total = 0
    for node in cell.nodes:
        if node.op == MATMUL:
            matrix, operand = node.args
            once = 2 * prod(params[str(matrix.attr)].shape(sizes))
            total += once * (2 + back[operand]) if moving[operand] else 0
    return total * shape.steps * shape.rows


def measure(
    request: Request,
    yardstick: Yardstick | None,
    say: Callable[[str, int, int], None],
) -> Iterator[Row]:
    """Every cell at every shape, the shapes one after the other. Raises `CellError`."""
    cells, bred = named(request), mutants(request.seed, request.mutants)
    shapes = list(dict.fromkeys(request.shapes))
    small = sorted(shapes, key=lambda shape: shape.size)[:SMALL_SHAPES]
    done, total = 0, len(shapes) * (len(cells) + len(bred))
    for shape in shapes:
        for index, cell in enumerate([*cells, *bred]):
            mutant = index >= len(cells)
            effort = NAMED if not mutant or shape in small else FEW
            say(f"cells at {shape}", done, total)
            yield _row(cell, shape, mutant, request, yardstick, effort)
            done += 1


def _row(
    cell: CellGraph,
    shape: Shape,
    mutant: bool,
    request: Request,
    yardstick: Yardstick | None,
    effort: Effort,
) -> Row:
    ways = [NATIVE, EAGER]
    if request.interpreter or (not mutant and shape.hidden <= INTERPRETED):
        ways.append(INTERPRETER)
    if not mutant:
        ways.append(LSTM)
    dtype, generator = getattr(torch, request.dtype), torch.Generator().manual_seed(request.seed)
    x, weight = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    passes = {
        way: Pass(module, x, weight, input_grad=request.input_grad)
        for way, module in modules(cell, shape, dtype, ways, generator).items()
    }
    finite = passes[NATIVE].finite()
    variants: dict[str, Callable[[], object]] = dict(passes)
    if yardstick is not None and not mutant:
        variants["best"] = yardstick.run
        (module,) = modules(cell, shape, dtype, [NATIVE], generator).values()
        variants["code"] = Code(Pass(module, x, weight, input_grad=request.input_grad))
    times = interleaved(variants, effort)
    flops = product_flops(cell, shape, input_grad=request.input_grad)
    of_best = code_of_best = None
    if yardstick is not None and not mutant:
        relative = flops / yardstick.flops
        of_best = relative * times["best"].over(times[NATIVE])
        code_of_best = relative * times["best"].over(times["code"])
    key = cell.key()
    return Row(
        cell=f"mutant {key[:8]}" if mutant else cell.name,
        key=key,
        mutant=mutant,
        shape=shape,
        flops=flops,
        finite=finite,
        rounds=len(times[NATIVE].runs),
        ms={way: 1000 * times[way].median for way in ways},
        least_ms={way: 1000 * min(times[way].runs) for way in ways},
        over_native={way: times[way].over(times[NATIVE]) for way in ways if way != NATIVE},
        of_best=of_best,
        code_of_best=code_of_best,
    )


def modules(
    cell: CellGraph,
    shape: Shape,
    dtype: torch.dtype,
    ways: Sequence[str],
    generator: torch.Generator,
) -> dict[str, nn.Module]:
    """A layer computed in each of some ways, by the interpreter or a backend, with the same
    parameters; or torch's LSTM."""
    hidden = shape.hidden
    widths = dict.fromkeys(cell.widths[1:], hidden)

    def compiled(backend: str) -> cg.CellLayer:
        return cg.compile(cell, hidden, hidden, backend=backend, widths=widths, dtype=dtype)

    first = compiled(NATIVE)
    first.reset_parameters(generator=generator)
    made: dict[str, nn.Module] = {}
    for way in ways:
        if way == LSTM:
            made[way] = nn.LSTM(hidden, hidden, dtype=dtype)
        elif way == NATIVE:
            made[way] = first
        else:
            layer = compiled(EAGER if way == INTERPRETER else way)
            layer.load_state_dict(first.state_dict())
            if way == INTERPRETER:
                layer.run = Runner(cell)
            made[way] = layer
    return made


class Pass:
    """One call: the output, and the gradients of its inner product with a fixed tensor. That one
    enters as the gradient of the output, as a loss would hand it over: no time of the loss's."""

    def __init__(self, module: nn.Module, x: Tensor, weight: Tensor, *, input_grad: bool) -> None:
        """x, weight: (T, B, H)."""
        self.module, self.weight = module, weight
        self.x = x.clone().requires_grad_(input_grad)
        self.parameters = list(module.parameters())

    def __call__(self) -> Tensor:
        for value in (self.x, *self.parameters):
            value.grad = None
        y: Tensor = self.module(self.x)[0]  # (T, B, H)
        if y.requires_grad:  # a cell may have nothing to learn
            y.backward(self.weight)
        return y

    def finite(self) -> bool:
        """Are all numbers of a pass? Others may take another time."""
        y = self()
        grads = [value.grad for value in (self.x, *self.parameters) if value.grad is not None]
        return all(bool(t.isfinite().all()) for t in (y, *grads))


class Code:
    """The same call; it returns the seconds inside the compiled functions."""

    def __init__(self, run: Pass) -> None:
        """run: of a layer on the native backend that nothing else calls."""
        self.run, self.seconds = run, 0.0
        backend = cast("Native", cast("cg.CellLayer", run.module).run)
        kernel = backend.runner.kernel(run.x.dtype)
        kernel.forward_code = self._timed(kernel.forward_code)
        kernel.backward_code = self._timed(kernel.backward_code)

    def _timed(self, code: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            begin = time.perf_counter()
            code(*arguments)
            self.seconds += time.perf_counter() - begin

        return run

    def __call__(self) -> float:
        self.seconds = 0.0
        self.run()
        return self.seconds

"""A layer of native code in every form that a layer is called in: equal to the eager backend."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import cellgraph as cg
from cellgraph.kernels import compiler, native
from cellgraph.layer import CellLayer
from tests.cellgraph.native_cells import Shape, error, numbers
from tests.strategies import gradients
from tests.threads import held

#: Raw x and a static value, row inputs of their own, several widths, stages, an output of its own.
CELLS = {
    "lstm": "lstm",
    "mut1": "mut1",
    "prelude": "cell a(x, h)\n h' = tanh(U @ h + V @ tanh(x) + sigmoid(a) * (W @ P @ x))",
    "widths": "cell b(x, h, r: P) -> y\n r' = tanh(R @ h + S @ x)\n h' = tanh(U @ r' + h * s)\n"
    " y = x + h'\n scalar s",
}
GRAPHS = {name: cg.load(t) if t == name else cg.parse(t) for name, t in CELLS.items()}
EVERY = pytest.mark.parametrize("cell", GRAPHS.values(), ids=GRAPHS.keys())


@pytest.fixture(scope="module", autouse=True)
def _all_at_once() -> None:
    native.prepare(list(GRAPHS.values()), torch.float64)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both(cell: cg.CellGraph, *sizes: int, **options: Any) -> tuple[CellLayer, CellLayer]:
    """A native and an eager layer with the same parameters."""
    torch.manual_seed(0)
    options = {"widths": dict.fromkeys(cell.widths[1:], 3)} | options
    one = cg.compile(cell, *sizes, backend="native", **options)
    other = cg.compile(cell, *sizes, backend="eager", **options)
    other.load_state_dict(one.state_dict())
    return one, other


def state_of(layer: CellLayer, *rows: int) -> Any:
    """Random states that require gradients, as a call takes them."""
    count = layer.num_layers * layer.directions
    made = [torch.randn(count, *rows, size, requires_grad=True) for size in layer.state_sizes]
    return made[0] if len(made) == 1 else tuple(made)


def flat(value: Any) -> list[Tensor]:
    """All tensors of what a layer takes or returns."""
    if isinstance(value, Tensor):
        return [value]
    return [value.data] if hasattr(value, "batch_sizes") else [t for v in value for t in flat(v)]


def assert_same(
    layers: Sequence[CellLayer], call: Callable[[CellLayer], Any], leaves: Sequence[Tensor]
) -> None:
    """Values, and gradients by the leaves and all parameters."""
    found = []
    for layer in layers:
        torch.manual_seed(1)  # of dropout
        results = flat(call(layer))
        found.append([*results, *gradients(results, [*leaves, *layer.parameters()])])
    assert error(*found, floor=1e-6) < 1e-12


# -- the forms of a call --------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("inputs", [4, 7], ids=["projected", "as wide as H"])
def test_layers_directions_and_batch_first(cell: cg.CellGraph, inputs: int) -> None:
    layers = both(cell, inputs, 7, 2, True, bidirectional=True)
    x, state = torch.randn(3, 5, inputs, requires_grad=True), state_of(layers[0], 3)
    assert_same(layers, lambda layer: layer(x, state), [x, *flat(state)])
    assert_same(layers, lambda layer: layer(x), [x])


@EVERY
def test_packed_sequences(cell: cg.CellGraph) -> None:
    layers = both(cell, 4, 7, 2, bidirectional=True)
    for lengths in ([3, 5, 1, 5, 2], [1], [2, 2], [1, 9]):
        xs = [torch.randn(n, 4, requires_grad=True) for n in lengths]
        packed, state = pack_sequence(xs, enforce_sorted=False), state_of(layers[0], len(lengths))
        assert_same(layers, lambda layer: layer(packed, state), [*xs, *flat(state)])  # noqa: B023
        with torch.no_grad():
            assert_same(layers, lambda layer: layer(packed, state), [])  # noqa: B023


@EVERY
@pytest.mark.parametrize("entries", [6, 40], ids=["fewer entries", "fewer tokens"])
def test_lookup(cell: cg.CellGraph, entries: int) -> None:
    layers = both(cell, 4, 7, 2, bidirectional=True)
    table, state = torch.randn(entries, 4, requires_grad=True), state_of(layers[0], 4)
    tokens = torch.randint(0, entries - 1, (5, 4))  # one that nobody looks up: its gradient is zero
    for given in (tokens, tokens.int(), torch.zeros_like(tokens)):
        call = lambda layer: layer.lookup(table, given, state)  # noqa: B023, E731
        assert_same(layers, call, [table, *flat(state)])
        with torch.no_grad():
            assert_same(layers, call, [])
    y, _ = layers[0].lookup(table, tokens)
    assert (torch.autograd.grad(y.sum(), table)[0][-1] == 0).all()
    first = both(cell, 4, 7, batch_first=True)[0]
    assert error(flat(first.lookup(table, tokens.t())), flat(first(table[tokens.t()]))) < 1e-12


def test_tokens_that_are_no_entries() -> None:
    layer, _ = both(GRAPHS["lstm"], 4, 7)
    for wrong in (-1, 3):
        with pytest.raises(cg.CellError, match=f"token {wrong}, expected a number from 0 to 2"):
            layer.lookup(torch.randn(3, 4), torch.tensor([[0, 1, 2, wrong]] * 2))


@EVERY
def test_without_a_batch(cell: cg.CellGraph) -> None:
    layers = both(cell, 4, 7, 2, bidirectional=True)
    x, state = torch.randn(5, 4, requires_grad=True), state_of(layers[0])
    assert_same(layers, lambda layer: layer(x, state), [x, *flat(state)])


@EVERY
def test_dropout_draws_the_same_numbers(cell: cg.CellGraph) -> None:
    layers = both(cell, 4, 7, 3, dropout=0.5)
    x = torch.randn(5, 3, 4, requires_grad=True)
    assert_same(layers, lambda layer: layer(x), [x])
    kept = flat(layers[0](x))[0]
    assert error([flat(layers[0].eval()(x))[0]], [kept]) > 0.01


@EVERY
def test_tensors_that_do_not_lie_in_order(cell: cg.CellGraph) -> None:
    layers = both(cell, 4, 7)
    wide = torch.randn(8, 3, 10, requires_grad=True)
    x = wide.transpose(0, 1)[:, ::2, 1::2].flip(0)[..., :4]
    assert not x.is_contiguous()
    states = [torch.randn(size, 4, 1, requires_grad=True) for size in layers[0].state_sizes]
    state = [s.permute(2, 1, 0) for s in states]
    assert_same(layers, lambda layer: layer(x, state), [wide, *states])
    one = torch.randn(1, 1, 4, requires_grad=True).expand(5, 4, 4)  # all rows are one
    assert_same(layers, lambda layer: layer(one, state), states)


def test_results_may_be_changed_by_the_caller() -> None:
    """Nothing that the backward pass needs lies in them."""
    layer, _ = both(GRAPHS["lstm"], 4, 7)
    x = torch.randn(5, 3, 4, requires_grad=True)
    wanted = torch.autograd.grad(layer(x)[0].sum(), x)[0]
    y, (h, c) = layer(x)
    total = y.sum()
    with torch.no_grad():
        for tensor in (y, h, c):
            tensor.zero_()
    assert torch.equal(torch.autograd.grad(total, x)[0], wanted)


# -- what is kept ---------------------------------------------------------------------------------


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes how many bytes new tensors have."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and "empty" in str(func):
            self.largest = max(self.largest, result.nbytes)
        return result


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradients_keeps_nothing(mode: Callable[[], Any]) -> None:
    cell, steps, rows, hidden = GRAPHS["lstm"], 1000, 2, 16
    runner = native.Runner(cell)
    params = {p.name: torch.randn(16, 16) * 0.1 for p in cell.params if p.kind == "matrix"}
    params |= {
        p.name: torch.randn(16, requires_grad=True) for p in cell.params if p.kind == "vector"
    }
    x, state = torch.randn(steps, rows, hidden), [torch.randn(1, rows, hidden) for _ in "hc"]
    y, last = runner(params, x, state)
    with mode(), Recorder() as recorder:
        found = runner(params, x, state)
    assert torch.equal(found[0], y)
    assert all(torch.equal(a, b) for a, b in zip(found[1], last, strict=True))
    assert recorder.largest == y.nbytes  # the output; tape and histories are smaller
    kernel = runner.kernel(torch.float64)
    batch, widths = native.Batch(steps, rows), {"H": 16, "X": 16}
    kept, nothing = (kernel.sizes(batch, widths, recording) for recording in (True, False))
    assert kept.tape >= steps * rows * 5 * hidden
    assert nothing.tape <= (native.CHUNK_ROWS + rows) * (5 * hidden + kernel.matrices.lanes)
    assert nothing.histories == (2 * rows * hidden,) * 2


def test_what_nothing_learns_from_keeps_nothing() -> None:
    """Gradients are enabled, and no tensor asks for one."""
    cell = GRAPHS["mut1"]
    at = numbers(cell, Shape(500, 2, 8, 8), torch.float64, seed=0)
    for leaf in at.leaves:
        leaf.requires_grad_(False)
    runner = native.Runner(cell)
    runner(at.params, at.x, [s.unsqueeze(0) for s in at.state])
    with Recorder() as recorder:
        y, _ = runner(at.params, at.x, [s.unsqueeze(0) for s in at.state])
    assert recorder.largest == y.nbytes
    assert not y.requires_grad


# -- a module like any other ----------------------------------------------------------------------


@EVERY
def test_copies_and_files(cell: cg.CellGraph) -> None:
    layer, _ = both(cell, 4, 7, 2)
    x = torch.randn(5, 3, 4)
    wanted = flat(layer(x))  # so that its kernels are loaded
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert error(flat(other(x)), wanted) == 0
        with torch.no_grad():
            next(other.parameters()).add_(1)
    assert error(flat(layer(x)), wanted) == 0


def test_weights_travel_between_backends() -> None:
    native_layer, eager_layer = both(GRAPHS["widths"], 4, 7, 2, bidirectional=True)
    with torch.no_grad():
        for parameter in eager_layer.parameters():
            parameter.mul_(0.5)
    native_layer.load_state_dict(eager_layer.state_dict())
    x = torch.randn(5, 3, 4)
    assert error(flat(native_layer(x)), flat(eager_layer(x))) < 1e-12


def test_another_type_after_the_first_call() -> None:
    torch.set_default_dtype(torch.float32)
    layer = cg.compile("lstm", 4, 7, backend="native")
    x = torch.randn(5, 3, 4)
    single, _ = layer(x)
    double, _ = layer.to(torch.float64)(x.double())
    assert double.dtype == torch.float64
    assert error([single], [double]) < 1e-6
    again, _ = layer.float()(x)
    assert torch.equal(again, single)


def test_several_threads_on_one_layer() -> None:
    layer, _ = both(GRAPHS["lstm"], 4, 33, 2, bidirectional=True)
    xs = [torch.randn(20 + i, 3, 4) for i in range(8)]
    parameters = list(layer.parameters())

    def work(x: Tensor) -> list[Tensor]:
        y, state = layer(x)
        results = [y, *state]
        return [*results, *torch.autograd.grad([r.sum() for r in results], parameters)]

    wanted = [work(x) for x in xs]
    found: list[list[list[Tensor]]] = [[] for _ in xs]

    def repeat(i: int) -> None:
        for _ in range(10):
            found[i].append(work(xs[i]))

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(found, wanted, strict=True):
        assert len(mine) == 10
        for results in mine:
            assert all(torch.equal(a, b) for a, b in zip(results, theirs, strict=True))


def test_more_shapes_than_are_remembered() -> None:
    kernel = native.Runner(GRAPHS["lstm"]).kernel(torch.float64)
    widths = {"H": 7, "X": 4}
    first = kernel.sizes(native.Batch(1, 1), widths, True)
    for steps in range(1, 600):
        assert kernel.sizes(native.Batch(steps, 1), widths, True).array[0] == steps
    again = kernel.sizes(native.Batch(1, 1), widths, True)
    assert list(again.array) == list(first.array)
    assert len(kernel._sizes) < 300


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads and fork: the point of it
def test_a_child_process_goes_on_with_the_kernels_of_its_parent() -> None:
    layer, _ = both(GRAPHS["lstm"], 4, 7)
    x = torch.randn(5, 3, 4)
    wanted, _ = layer(x)
    torch.autograd.grad(wanted.sum(), list(layer.parameters()))
    with held(compiler._process.lock):
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # rather than to wait for ever
            try:
                native.Runner(GRAPHS["mut1"]).kernel(torch.float64)
                # Not of autograd: torch itself cannot go back in a child of a process that has.
                os._exit(0 if torch.equal(layer(x)[0], wanted) else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Native code as a part of autograd: which gradients are asked for, how often, and what may change
between forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from cellgraph.kernels import native
from cellgraph.layer import CellLayer
from tests.cellgraph.native_cells import Shape, compiled, defined, error, evolved, numbers, results
from tests.cellgraph.test_native_layer import CELLS, both, flat, state_of

EXTRA = {
    "gru": "gru",
    "lstm_peephole": "lstm_peephole",
    "fgr": "fgr",
    "two matrices of one operand": "cell a(x, h)\n h' = tanh(U @ h + V @ h + W @ x + W @ (x * x))",
    "a chain of products": "cell a(x, h)\n h' = tanh(U @ V @ U @ h + W @ x)",
    "a product of a sum": "cell a(x, h)\n n = U @ h + W @ x\n h' = tanh(V @ n) * n",
    "scalars": "cell a(x, h, c)\n scalar s, t\n c' = s * c + t * (W @ x)\n h' = tanh(s * c' + h)",
    "a scalar of two widths": "cell a(x, h, r: P)\n scalar s\n h' = tanh(U @ r + s * h + W @ x)\n"
    " r' = s * tanh(R @ h)",
    "a sum read again after its gate": "cell a(x, h)\n n = U @ h + W @ x\n g = tanh(n)\n"
    " h' = tanh(V @ (g * h)) + n",
    "a gate read again after its gradient": "cell a(x, h)\n z = sigmoid(U @ h + W @ x)\n"
    " h' = z * tanh(V @ (step(z - 0.5) * h))",
    "a skew matrix": "cell a(x, h)\n skew U\n h' = tanh(U @ h + W @ x + U @ b)",
    "a state nobody reads": "cell a(x, h, c)\n c' = tanh(W @ x)\n h' = tanh(U @ h + V @ x)",
    "a bare parameter": "cell a(x, h, c) -> y\n c' = b\n h' = tanh(W @ x + U @ h * c)\n y = b",
}
GRAPHS = {n: cg.load(t) if n == t else cg.parse(t) for n, t in (CELLS | EXTRA).items()}
EVERY = pytest.mark.parametrize("cell", GRAPHS.values(), ids=GRAPHS.keys())


@pytest.fixture(scope="module", autouse=True)
def _all_at_once() -> None:
    native.prepare([*GRAPHS.values(), *evolved(4, seed=11)], torch.float64)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@EVERY
@pytest.mark.parametrize("shape", [Shape(1, 1, 1, 1, 1), Shape(3, 2, 5, 4, 2), Shape(6, 3, 17, 17)])
def test_equals_the_interpreter(cell: cg.CellGraph, shape: Shape) -> None:
    at = numbers(cell, shape, torch.float64, seed=2)
    found, wanted = results(compiled(cell), at), results(defined(cell), at)
    assert error(found[0], wanted[0]) < 1e-12
    assert error(found[1], wanted[1], floor=1e-6) < 1e-11


@EVERY
def test_gradcheck(cell: cg.CellGraph) -> None:
    at = numbers(cell, Shape(3, 2, 3, 2, 2), torch.float64, seed=0)
    names, count = list(at.params), len(at.params)
    runner = compiled(cell)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        params = dict(zip(names, tensors[:count], strict=True))
        y, last = runner(params, tensors[count], tensors[count + 1 :])
        return y, *last

    assert torch.autograd.gradcheck(run, tuple(at.leaves))


# -- only some gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("cell", evolved(4, seed=11), ids=range(4))
def test_every_gradient_alone(cell: cg.CellGraph) -> None:
    at = numbers(cell, Shape(3, 2, 5, 4), torch.float64, seed=0, scale=0.5)
    _, wanted = results(defined(cell), at)
    for index, leaf in enumerate(at.leaves):
        for other in at.leaves:
            other.requires_grad_(other is leaf)
        y, last = compiled(cell)(at.params, at.x, at.state)
        rng = torch.Generator().manual_seed(1)  # as `gradients` draws
        total = sum((r * torch.randn(r.shape, generator=rng)).sum() for r in (y, *last))
        found = torch.autograd.grad(total, leaf, allow_unused=True)[0]
        found = torch.zeros_like(leaf) if found is None else found
        assert error([found], [wanted[index]], floor=1e-6) < 1e-11


@EVERY
def test_frozen_parameters(cell: cg.CellGraph) -> None:
    layers = both(cell, 4, 4, 2)
    x = torch.randn(5, 3, 4)
    for layer in layers:
        for index, parameter in enumerate(layer.parameters()):
            parameter.requires_grad_(index % 2 == 1)
        flat(layer(x))[0].sum().backward()
    for mine, theirs in zip(*(layer.parameters() for layer in layers), strict=True):
        assert (mine.grad is None) >= (not mine.requires_grad)
        if theirs.grad is not None:
            assert mine.grad is not None
            assert error([mine.grad], [theirs.grad], floor=1e-6) < 1e-12


@pytest.mark.parametrize("name", ["lstm", "a bare parameter", "widths", "a state nobody reads"])
def test_only_some_results_are_used(name: str) -> None:
    cell = GRAPHS[name]
    layers = both(cell, 4, 4)
    x, state = torch.randn(5, 3, 4, requires_grad=True), state_of(layers[0], 3)
    count = 1 + len(layers[0].state_sizes)
    for used in itertools.product([True, False], repeat=count):
        if not any(used):
            continue
        found: list[list[Tensor]] = []
        for layer in layers:
            leaves = [x, *flat(state), *layer.parameters()]
            chosen = [r for r, use in zip(flat(layer(x, state)), used, strict=True) if use]
            total = sum((r * r.cos()).sum() for r in chosen)
            grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            found.append(list(grads))
        assert error(*found, floor=1e-6) < 1e-12, used


def test_gradients_that_do_not_lie_in_order() -> None:
    layers = both(GRAPHS["lstm"], 4, 4)
    x, given = torch.randn(5, 3, 4), torch.randn(4, 3, 5).permute(2, 1, 0)
    found = []
    for layer in layers:
        y, (h, _) = layer(x)
        found.append(torch.autograd.grad([y, h], list(layer.parameters()), [given, given[:1]]))
    assert error(*found) < 1e-12
    y, _ = layers[0](x)  # expanded from one number
    assert (
        error(
            torch.autograd.grad(y.sum(), list(layers[0].parameters())),
            torch.autograd.grad(layers[1](x)[0].sum(), list(layers[1].parameters())),
        )
        < 1e-12
    )


# -- more than once -------------------------------------------------------------------------------


@EVERY
def test_back_twice_through_one_graph(cell: cg.CellGraph) -> None:
    layer, _ = both(cell, 4, 4, 2)
    x = torch.randn(5, 3, 4, requires_grad=True)
    y = flat(layer(x))[0]
    leaves = [x, *layer.parameters()]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    first, second, third = (
        torch.autograd.grad(y.sum(), leaves, retain_graph=again, **options)
        for again in (True, True, False)
    )
    for other in (second, third):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), leaves, **options)


def test_gradients_add_up() -> None:
    layer, _ = both(GRAPHS["lstm"], 4, 4)
    x = torch.randn(5, 3, 4)
    layer(x)[0].sum().backward()
    once = [p.grad.clone() for p in layer.parameters()]
    layer(x)[0].sum().backward()
    assert error([p.grad for p in layer.parameters()], [2 * g for g in once]) < 1e-12


def test_second_derivatives_name_the_backend_that_has_them() -> None:
    layer, eager = both(GRAPHS["lstm"], 4, 4)
    x = torch.randn(5, 3, 4, requires_grad=True)
    first = torch.autograd.grad(layer(x)[0].sin().sum(), x, create_graph=True)[0]
    assert error([first], list(torch.autograd.grad(eager(x)[0].sin().sum(), x))) < 1e-12
    for leaf in (x, layer.cells[0].U_i):
        with pytest.raises(cg.CellError, match=r'second derivatives.*backend="eager"'):
            torch.autograd.grad(first.sum(), leaf, retain_graph=True)
    with pytest.raises(cg.CellError, match=r'second derivatives.*backend="eager"'):
        torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


# -- between forward and backward -----------------------------------------------------------------


def changed(layer: CellLayer, x: Tensor, state: tuple[Tensor, ...], what: Tensor) -> None:
    y, _ = layer(x, state)
    with torch.no_grad():
        what.mul_(2)
    y.sum().backward()


@pytest.mark.parametrize("which", ["x", "state", "matrix", "vector"])
def test_a_change_in_place_is_noticed(which: str) -> None:
    layer, _ = both(GRAPHS["lstm"], 4, 4)
    x, state = torch.randn(5, 3, 4), (torch.randn(1, 3, 4), torch.randn(1, 3, 4))
    what = {"x": x, "state": state[0], "matrix": layer.cells[0].U_f, "vector": layer.cells[0].b_f}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed(layer, x, state, what[which])


def test_tensors_of_inference_mode_are_refused_as_usual() -> None:
    layer, _ = both(GRAPHS["lstm"], 4, 4)
    with torch.inference_mode():
        x = torch.randn(5, 3, 4)
        y, _ = layer(x)
    assert y.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        layer(x)


def test_a_step_of_an_optimizer_between_two_passes() -> None:
    layers = both(GRAPHS["gru"], 4, 4, 2)
    x, target = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    losses = []
    for layer in layers:
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            loss = (layer(x)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)

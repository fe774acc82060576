"""The flat optimiser, compiled and in torch, against torch's own optimisers and clipping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from cellgraph.kernels import compiler
from evaluators import optimizer
from evaluators.optimizer import FlatOptimizer
from evaluators.settings import OptimizerName

Way = Literal["compiled", "torch"]
Make = Callable[..., FlatOptimizer]
#: Around one vector of the compiled code (4 to 16 floats), and no multiples of one.
SHAPES = [(7, 5), (1,), (16,), (3, 16), (15,), (17,), (), (2, 33, 5), (1029,)]


@pytest.fixture(params=["compiled", "torch"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes optimisers that take this way."""
    if request.param == "torch":
        monkeypatch.setattr(optimizer, "_library", lambda double: (None, "no compiler"))

    def made(parameters: Sequence[nn.Parameter], name: OptimizerName) -> FlatOptimizer:
        flat = FlatOptimizer(parameters, name)
        assert flat.fallback == ("no compiler" if request.param == "torch" else None)
        return flat

    return made


def _parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in SHAPES]


def _give(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else gradient.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.5), ("adam", 0.05)])
@pytest.mark.parametrize("largest", [0.7, 1e6])
def test_it_moves_as_torch_does(
    make: Make, name: OptimizerName, lr: float, largest: float, dtype: torch.dtype
) -> None:
    """Over 300 updates with sizes of gradients from 1e-4 to 1e4, some of them missing or zero."""
    ours, theirs = _parameters(dtype), _parameters(dtype)
    flat = make(ours, name)
    reference = (torch.optim.Adam if name == "adam" else torch.optim.SGD)(theirs, lr)
    rng = torch.Generator().manual_seed(1)
    exact = dtype == torch.float64
    for step in range(300):
        size = 10.0 ** (step % 9 - 4)
        gradients = [size * torch.randn(s, generator=rng, dtype=dtype) for s in SHAPES]
        if step % 4 == 3:
            gradients[step % len(SHAPES)].zero_()
        missing = step % len(SHAPES) if step % 5 == 4 else None
        _give(ours, [None if i == missing else g for i, g in enumerate(gradients)])
        # torch leaves the moments of a parameter without a gradient alone; here it is a zero.
        _give(theirs, [g * (i != missing) for i, g in enumerate(gradients)])
        norm = flat.clip(largest)
        flat.step(lr / (1 + step / 50))
        reference.param_groups[0]["lr"] = lr / (1 + step / 50)
        expected = float(nn.utils.clip_grad_norm_(theirs, largest))
        reference.step()
        assert norm == pytest.approx(expected, rel=1e-12 if exact else 2e-6)
    for p, q in zip(ours, theirs, strict=True):
        # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
        close = {"rtol": 1e-5, "atol": 2e-5} if largest < 1 or not exact else {}
        torch.testing.assert_close(p, q, **close)


def test_gradients_as_small_as_epsilon(make: Make) -> None:
    """There Adam's epsilon decides, and where it stands: outside the root."""
    ours, theirs = _parameters(), _parameters()
    flat, reference = make(ours, "adam"), torch.optim.Adam(theirs, 0.1)
    rng = torch.Generator().manual_seed(4)
    for _ in range(30):
        gradients = [1e-8 * torch.randn(shape, generator=rng) for shape in SHAPES]
        _give(ours, gradients)
        _give(theirs, gradients)
        flat.clip(1.0)
        flat.step(0.1)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_both_ways_agree(name: OptimizerName) -> None:
    ways = [_parameters(), _parameters()]
    flats = [
        FlatOptimizer(p, name, compiled) for p, compiled in zip(ways, (True, False), strict=True)
    ]
    rng = torch.Generator().manual_seed(2)
    for _ in range(200):
        gradients = [torch.randn(shape, generator=rng) for shape in SHAPES]
        for parameters, flat in zip(ways, flats, strict=True):
            _give(parameters, gradients)
            norm = flat.clip(1.0)
            assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
            flat.step(0.01)
    for p, q in zip(*ways, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_gradients_of_any_layout(make: Make, name: OptimizerName) -> None:
    """Expanded, transposed and cut out of something larger: what counts is the elements."""
    rng = torch.Generator().manual_seed(3)
    odd = [
        torch.tensor(0.25).expand(6, 7),
        torch.randn(7, 6, generator=rng).t(),
        torch.randn(9, 20, generator=rng)[1:7, 3:17:2],
        torch.zeros(6, 7),
    ]
    norms, moved = [], []
    for gradients in (odd, [g.contiguous() for g in odd]):
        parameters = [nn.Parameter(torch.ones(6, 7)) for _ in odd]
        flat = make(parameters, name)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        norms.append(flat.clip(1.0))
        flat.step(0.1)
        moved.append(torch.stack([p.detach() for p in parameters]))
    assert norms[0] == norms[1]
    assert torch.equal(moved[0], moved[1])
    assert (moved[0][:3] != 1).all()
    assert (moved[0][3] == 1).all()


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("nothing", [True, False])
def test_zero_gradients_leave_everything_in_place(
    make: Make, name: OptimizerName, nothing: bool
) -> None:
    parameters = _parameters()
    before = copy.deepcopy(parameters)
    flat = make(parameters, name)
    _give(parameters, [None if nothing else torch.zeros(shape) for shape in SHAPES])
    assert flat.clip(1.0) == 0.0
    flat.step(0.1)
    for p, q in zip(parameters, before, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(len(SHAPES)))
def test_a_norm_that_is_no_number_is_reported(make: Make, value: float, place: int) -> None:
    parameters = _parameters()
    flat = make(parameters, "sgd")
    _give(parameters, [torch.ones(shape) for shape in SHAPES])
    gradient = parameters[place].grad
    assert gradient is not None
    gradient.view(-1)[-1] = value  # the end, which is in no whole vector
    assert not math.isfinite(flat.clip(1.0))


def test_a_norm_beyond_floats_is_infinite(make: Make) -> None:
    parameters = [nn.Parameter(torch.zeros(5))]
    flat = make(parameters, "adam")
    parameters[0].grad = torch.full((5,), 3e38)
    assert not math.isfinite(flat.clip(1.0))


def test_an_update_needs_a_gradient(make: Make) -> None:
    """The one that `clip` has seen, whatever has become of p.grad since, and each of them once."""
    parameters = [nn.Parameter(torch.ones(3))]
    flat = make(parameters, "sgd")
    parameters[0].grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="expected a call of clip"):
        flat.step(0.1)
    assert flat.clip(10.0) == pytest.approx(math.sqrt(3))
    flat.zero_grad()
    torch.full((3,), 7.0)  # would lie where the gradient was
    flat.step(0.5)
    assert parameters[0].tolist() == [0.5] * 3
    with pytest.raises(RuntimeError, match="expected a call of clip"):
        flat.step(0.1)


def test_gradients_do_not_add_up(make: Make) -> None:
    parameters = [nn.Parameter(torch.ones(3))]
    flat = make(parameters, "sgd")
    for _ in range(3):
        flat.zero_grad()
        (2 * parameters[0]).sum().backward()
        assert flat.clip(100.0) == pytest.approx(math.sqrt(12))


def test_a_module_goes_on_using_its_parameters(make: Make) -> None:
    """They become views of one vector: shapes, values and autograd stay."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    before = copy.deepcopy(model.state_dict())
    flat = make(list(model.parameters()), "adam")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.data_ptr() % 64 == flat.values.data_ptr() % 64
    kept = flat.copy()
    model(torch.ones(2, 5)).sum().backward()
    flat.clip(1.0)
    flat.step(0.1)
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    flat.restore(kept)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_lies_between_parameters_stays_zero(make: Make) -> None:
    """The compiled Adam works on whole vectors, and may write there nothing but zeros."""
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(20))]
    flat = make(parameters, "adam")
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    flat.clip(1.0)
    flat.step(0.1)
    gaps = torch.ones(48, dtype=torch.bool)
    gaps[:3] = gaps[16:36] = False
    for vector in (flat.values, flat.mean, flat.square):
        assert vector.shape == (48,)
        assert not vector[gaps].any()
        assert vector[~gaps].all()


def test_a_compiler_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*_: object, **__: object) -> None:
        asked.append(1)
        raise compiler.CompilerError("cc: exit status 1")

    monkeypatch.setattr(compiler, "load", load)
    optimizer._library.cache_clear()
    try:
        flats = [FlatOptimizer(_parameters(), "adam") for _ in range(3)]
        assert asked == [1]
        assert {f.fallback for f in flats} == {
            "the optimiser could not be compiled: cc: exit status 1"
        }
        eager = FlatOptimizer(_parameters(), "adam", compiled=False)
        assert (eager.fallback, asked) == (None, [1])
    finally:
        optimizer._library.cache_clear()


def test_no_compiler_for_who_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "_library", lambda double: pytest.fail("asked for"))
    FlatOptimizer(_parameters(), "adam", compiled=False)

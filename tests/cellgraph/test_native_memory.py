"""Native code reads bare addresses: what is no plain memory, or changes meanwhile, stays outside.

Each of these once ended the process or gave wrong numbers.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import cellgraph as cg

F64 = torch.float64

# Parts of torch import others that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(0)
    return cg.compile("lstm", 6, 6, dtype=F64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 6, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_tokens_that_change_after_the_forward_pass(layer: Any) -> None:
    table = torch.randn(5, 6, dtype=F64).requires_grad_()
    tokens = torch.randint(0, 5, (20, 3))
    kept = tokens.clone()
    y, _ = layer.lookup(table, tokens)
    tokens.fill_(10_000_000)
    (gradient,) = torch.autograd.grad(y.sum(), table)
    (expected,) = torch.autograd.grad(layer.lookup(table, kept)[0].sum(), table)
    assert torch.equal(gradient, expected)


def test_tokens_without_rows(layer: Any) -> None:
    table = torch.randn(5, 6, dtype=F64)
    assert layer.lookup(table, torch.empty(4, 0, dtype=torch.int64))[0].shape == (4, 0, 6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.bool, torch.float32])
def test_tokens_of_another_type(layer: Any, dtype: torch.dtype) -> None:
    for steps in (1, 20):
        with pytest.raises(cg.CellError, match="expected whole numbers"):
            layer.lookup(torch.randn(5, 6, dtype=F64), torch.zeros(steps, 3, dtype=dtype))


def test_parameters_that_move_before_the_backward_pass(layer: Any, x: Tensor) -> None:
    y, _ = layer(x)
    layer.float()
    with pytest.raises(cg.CellError, match=r"torch.float32 .* expected torch.float64"):
        y.sum().backward()


def test_tensors_that_are_no_memory(layer: Any, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x))[0].shape == (4, 3, 6)
    zeros = torch._efficientzerotensor(x.shape, dtype=F64)
    torch.testing.assert_close(layer(zeros)[0], layer(torch.zeros_like(x))[0])
    y, _ = layer(x)
    (gradient,) = torch.autograd.grad(
        y, layer.cells[0].b_i, torch._efficientzerotensor(y.shape, dtype=F64)
    )
    assert not gradient.any()


def test_views_that_mean_the_negative(layer: Any, x: Tensor) -> None:
    torch.testing.assert_close(layer(torch._neg_view(x))[0], layer(-x)[0])
    y, _ = layer(x)
    seed = torch.randn_like(y)
    bias = layer.cells[0].b_i
    (gradient,) = torch.autograd.grad(y, bias, torch._neg_view(seed), retain_graph=True)
    (expected,) = torch.autograd.grad(y, bias, -seed)
    assert torch.equal(gradient, expected)


def test_forward_mode_derivatives_run_on_eager(layer: Any, x: Tensor) -> None:
    with torch.no_grad(), forward_ad.dual_level():
        y, _ = layer(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(y).tangent is not None


def test_transformations_run_on_eager(layer: Any, x: Tensor) -> None:
    params = {name: value.detach() for name, value in layer.named_parameters()}

    def call(given: Tensor) -> Tensor:
        return functional_call(layer, params, (given,))[0]

    both = vmap(call)(torch.stack([x, -x]))
    torch.testing.assert_close(both, torch.stack([call(x), call(-x)]))
    traced = make_fx(call)(x)
    torch.testing.assert_close(traced(2 * x), call(2 * x))


def test_batched_gradients_name_the_eager_backend(layer: Any, x: Tensor) -> None:
    y, _ = layer(x)
    seeds = torch.randn(2, *y.shape, dtype=F64)
    with pytest.raises(cg.CellError, match='backend="eager"'):
        torch.autograd.grad(y, layer.cells[0].b_i, seeds, is_grads_batched=True)


def test_a_fallback_stays_where_it_happened(layer: Any, x: Tensor) -> None:
    layer.run.fallback = "no compiler here"
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert other.fallback is None
        torch.testing.assert_close(other(x)[0], layer(x)[0])

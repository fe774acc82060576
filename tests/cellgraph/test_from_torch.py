"""Weights from torch and back: the same function, values and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import cellgraph as cg
from tests.strategies import gradients

X, H, P = 3, 5, 2

MODULES: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "LSTM with proj_size": (nn.LSTM, {"proj_size": P}),
    "GRU": (nn.GRU, {}),
    "RNN, tanh": (nn.RNN, {}),
    "RNN, relu": (nn.RNN, {"nonlinearity": "relu"}),
}
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 3, "dropout": 0.25},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]
CASES = [
    pytest.param(kind, more | options, id=f"{name} {options}")
    for (name, (kind, more)), options in itertools.product(MODULES.items(), OPTIONS)
]


def states(module: nn.RNNBase, rows: int) -> list[Tensor]:
    """One state of each kind that is not zero, and requires a gradient."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or H, H] if isinstance(module, nn.LSTM) else [H]
    made = [torch.randn(count, rows, size, dtype=torch.float64) for size in sizes]
    return [value.requires_grad_() for value in made]


def flat(y: Any, state: Any) -> list[Tensor]:
    return [y, *(state if isinstance(state, tuple) else (state,))]


def assert_same(ours: nn.Module, theirs: nn.RNNBase) -> None:
    """Outputs, last states, and gradients of x and the states."""
    state = states(theirs, 4)
    x = torch.randn((4, 6, X) if theirs.batch_first else (6, 4, X), dtype=torch.float64)
    leaves = [x.requires_grad_(), *state]
    given = state[0] if len(state) == 1 else tuple(state)
    found, wanted = flat(*ours(x, given)), flat(*theirs(x, given))
    pairs = zip(found + gradients(found, leaves), wanted + gradients(wanted, leaves), strict=True)
    for value, expected in pairs:
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_there_and_back(kind: type[nn.RNNBase], options: Mapping[str, Any]) -> None:
    theirs = kind(X, H, **options).double().eval()
    before = torch.get_rng_state()
    layer = cg.from_torch(theirs, backend="eager")
    again = cg.to_torch(layer)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(layer, theirs)
    assert type(again) is kind
    assert repr(again) == repr(theirs)
    assert_same(layer, again)
    back = cg.from_torch(again)
    for name, value in layer.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_the_weights(name: str) -> None:
    kind, options = MODULES[name]
    theirs = kind(X, H, **options).double()
    layer = cg.from_torch(theirs, backend="eager")
    x = torch.randn(6, 4, X, dtype=torch.float64)
    theirs(x)[0].square().sum().backward()
    layer(x)[0].square().sum().backward()
    # Stacked as torch stacks them, our gradients are those of torch, both of whose biases have the
    # gradient of their sum.
    shadow = cg.compile(layer.cell, X, H, widths=dict.fromkeys(layer.cell.widths[1:], P)).double()
    found = {f"cells.0.{n}": p.grad for n, p in layer.cells[0].named_parameters()}
    shadow.load_state_dict({name: value for name, value in found.items() if value is not None})
    stacked = dict(cg.to_torch(shadow).named_parameters())
    for weight, value in theirs.named_parameters():
        if weight.startswith("bias_hh"):
            continue
        assert value.grad is not None
        torch.testing.assert_close(stacked[weight].detach(), value.grad, rtol=1e-12, atol=1e-12)


def test_copies_share_nothing() -> None:
    theirs = nn.LSTM(X, H, 2, proj_size=P)
    layer = cg.from_torch(theirs)
    again = cg.to_torch(layer)
    before = [value.clone() for value in layer.state_dict().values()]
    for value in (*theirs.parameters(), *again.parameters()):
        value.data.add_(1)
    assert all(map(torch.equal, before, layer.state_dict().values()))
    assert not any(p.is_meta for p in layer.parameters())


def test_a_module_in_use_keeps_dtype_and_mode() -> None:
    theirs = nn.GRU(X, H, 2, dropout=0.5).to(torch.bfloat16).eval()
    layer = cg.from_torch(theirs, backend="eager")
    assert layer.backend == "eager"
    assert not layer.training
    assert layer.dropout == 0.5
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert cg.from_torch(theirs.train()).training
    assert cg.to_torch(layer).weight_hh_l1.dtype is torch.bfloat16
    assert not cg.to_torch(layer).training


def test_a_layer_that_was_read_trains() -> None:
    layer = cg.from_torch(nn.LSTM(X, H))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x, losses = torch.randn(5, 4, X), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (layer(x)[0] - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_packed_sequences() -> None:
    theirs = nn.GRU(X, H, 2, bidirectional=True).double()
    packed = pack_sequence(
        [torch.randn(n, X, dtype=torch.float64) for n in (2, 5, 1)], enforce_sorted=False
    )
    (y, last), (wanted, wanted_last) = cg.from_torch(theirs)(packed), theirs(packed)
    torch.testing.assert_close(y.data, wanted.data)
    torch.testing.assert_close(last, wanted_last)


OTHER_NAMES: Sequence[tuple[str, type[nn.RNNBase]]] = [
    ("lstm_b", nn.LSTM),
    ("np", nn.LSTM),
    ("irnn", nn.RNN),
    (
        "cell mine(x, s, t)\n a = tanh(p + M @ x + N @ s)\n b = sigmoid(O @ s + P @ x + q)\n"
        " d = sigmoid(r + Q @ s + R @ x)\n e = sigmoid(S @ x + T @ s + v)\n"
        " t' = a * d + t * e\n s' = tanh(t') * b",
        nn.LSTM,
    ),
    (
        "cell mine(x, s)\n z = sigmoid(A @ s + B @ x)\n r = sigmoid(C @ x + D @ s)\n"
        " s' = z * s + tanh(r * (E @ s) + F @ x) * (1 - z)",
        nn.GRU,
    ),
]


@pytest.mark.parametrize(("cell", "kind"), OTHER_NAMES)
def test_the_same_cell_under_other_names(cell: str, kind: type[nn.RNNBase]) -> None:
    graph = cg.parse(cell) if "\n" in cell else cg.load(cell)
    layer = cg.compile(graph, X, H, 2, bidirectional=True, backend="eager").double()
    theirs = cg.to_torch(layer)
    assert type(theirs) is kind
    assert_same(layer, theirs)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("gru", {}),
        ("mgu", {}),
        ("lstm_peephole", {}),
        ("lstm_projection_torch", {}),  # r as wide as c: torch wants it narrower
        ("cell late(x, c, h) -> h\n" + str(cg.load("lstm")).split("(x, h, c)\n")[1], {}),
        ("cell dead(x, h, c)\n h' = tanh(W @ x + U @ h + b)\n c' = h", {}),
        ("cell half(x, h)\n h' = tanh(W @ x - U @ h + b)", {}),
        ("cell some(x, h)\n h' = tanh(W @ x + U @ h + b + d)", {}),
    ],
)
def test_cells_that_torch_has_not(cell: str, options: Mapping[str, Any]) -> None:
    graph = cg.parse(cell) if "\n" in cell else cg.load(cell)
    with pytest.raises(cg.CellError) as caught:
        cg.to_torch(cg.compile(graph, X, H, **options))
    assert str(caught.value).startswith(f"torch has no cell like {graph.name}, expected lstm, ")


def test_a_projection_that_torch_refuses() -> None:
    layer = cg.compile("lstm_projection_torch", X, H, proj_size=H + 1)
    message = "torch does not take this lstm_projection_torch: proj_size has to be smaller"
    with pytest.raises(cg.CellError, match=message):
        cg.to_torch(layer)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.LSTMCell(2, 2), None])
def test_modules_that_are_no_recurrent_layer(module: Any) -> None:
    with pytest.raises(cg.CellError, match=r"a \w+ cannot be read, expected nn.LSTM, nn.GRU or"):
        cg.from_torch(module)
    with pytest.raises(cg.CellError, match=r"a \w+ cannot become a module of torch"):
        cg.to_torch(module)

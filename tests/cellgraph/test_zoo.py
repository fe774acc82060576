"""Every named cell against a second implementation, values and gradients in float64.

Torch's own three against torch.nn, the others against `reference_cells.py`.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

import pytest
import torch
from torch import Tensor

from cellgraph import CellError, parse, zoo
from cellgraph.graph import CellGraph, Init
from cellgraph.interpret import unroll
from tests.cellgraph import reference_cells as reference
from tests.strategies import gradients

T, B, X, H = 6, 3, 4, 5
SAME_FUNCTION = {
    "lstm",
    "lstm_b",
    "np",
}  # LSTM-b differs in its start alone, Greff's NP is the LSTM


def seeded(label: str, *shape: int) -> Tensor:
    """The same tensor for the same label and shape, whichever cell asks."""
    rng = torch.Generator().manual_seed(int(hashlib.sha256(label.encode()).hexdigest()[:12], 16))
    return torch.randn(shape, generator=rng, dtype=torch.float64).mul_(0.8).requires_grad_()


def leaves(
    cell: CellGraph, inputs: int = X
) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...]]:
    """Parameters, x (T, B, X), nonzero states (B, H); equal names in two cells, equal tensors."""
    widths = {"H": H, "X": H if cell.raw_x else inputs}
    params = {p.name: seeded(p.name, *p.shape(widths)) for p in cell.params}
    return (
        params,
        seeded("x", T, B, widths["X"]),
        tuple(seeded(f"state {s.name}", B, H) for s in cell.states),
    )


def assert_same(results: list[Tensor], expected: list[Tensor], over: list[Tensor]) -> None:
    """Values, and the gradient of a random projection of outputs and last states by every leaf."""
    assert len(results) == len(expected)
    pairs = [*zip(results, expected, strict=True)]
    pairs += zip(gradients(results, over), gradients(expected, over), strict=True)
    for result, wanted in pairs:
        torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    assert all(bool((g != 0).any()) for g in gradients(results, over)), (
        "a leaf without gradient proves nothing"
    )


@pytest.mark.parametrize("name", zoo.names())
def test_cell_agrees_with_second_implementation(name: str) -> None:
    cell = zoo.get(name)
    params, x, state = leaves(cell)
    outputs, last = unroll(cell, params, x, state)
    wanted, wanted_last = reference.unroll(reference.STEPS[name], params, x, state)
    assert_same([outputs, *last], [wanted, *wanted_last], [*params.values(), x, *state])


def test_every_cell_has_a_second_implementation() -> None:
    assert sorted(reference.STEPS) == zoo.names()


@pytest.mark.parametrize("name", zoo.names())
def test_second_implementation_of_another_cell_disagrees(name: str) -> None:
    """The proof above can fail: no cell computes what another is meant to compute."""
    # x as wide as h, so that every parameter has one shape in all cells; one state of each name.
    params, _, states = {}, None, {}
    for other in zoo.names():
        own, x, own_states = leaves(zoo.get(other), inputs=H)
        params |= own
        states |= {
            s.name: value for s, value in zip(zoo.get(other).states, own_states, strict=True)
        }
    outputs, _ = unroll(zoo.get(name), params, x, [states[s.name] for s in zoo.get(name).states])
    for other, step in reference.STEPS.items():
        start = tuple(states[s.name] for s in zoo.get(other).states)
        distance = float(
            (outputs - reference.unroll(step, params, x, start)[0]).abs().max().detach()
        )
        if other == name or {name, other} <= SAME_FUNCTION:
            assert distance < 1e-12, other
        else:
            assert distance > 1e-2, other


def _torch_layer(
    kind: type[torch.nn.Module], params: dict[str, Tensor], order: str
) -> torch.nn.Module:
    """A torch layer with the weights of the cell; its two biases of a gate share the cell's one."""
    layer = kind(X, H).double()
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.cat([params[f"W_{gate}"] for gate in order]))
        layer.weight_hh_l0.copy_(torch.cat([params[f"U_{gate}"] for gate in order]))
        bias = torch.cat([params[f"b_{gate}"] for gate in order])
        hidden_bias = 0.25 * bias
        if kind is torch.nn.GRU:
            hidden_bias[-H:] = params["b_gh"]
        layer.bias_hh_l0.copy_(hidden_bias)
        layer.bias_ih_l0.copy_(bias - hidden_bias)
        if kind is torch.nn.GRU:
            layer.bias_ih_l0[-H:] = params["b_g"]
    return layer


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("tanh_rnn", torch.nn.RNN, "h"),
        ("lstm", torch.nn.LSTM, "ifgo"),
        ("gru_reset_after", torch.nn.GRU, "rzg"),
    ],
)
def test_cell_agrees_with_torch(name: str, kind: type[torch.nn.Module], order: str) -> None:
    """Values and all gradients of torch.nn.RNN, LSTM and GRU, after copying the weights."""
    cell = zoo.get(name)
    params, x, state = leaves(cell)
    layer = _torch_layer(kind, params, order)
    start = tuple(s[None] for s in state)  # torch's (layers, B, H)
    wanted, last = layer(x, start if kind is torch.nn.LSTM else start[0])
    expected = [wanted, *(s[0] for s in (last if kind is torch.nn.LSTM else (last,)))]
    outputs, ends = unroll(cell, params, x, state)
    results = [outputs, *ends]
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-12, atol=1e-12)

    by_x = gradients(expected, [x, *state])
    weight_ih, weight_hh, bias_ih, bias_hh = gradients(expected, [*layer.parameters()])
    by_torch = {}
    for index, gate in enumerate(order):
        rows = slice(index * H, (index + 1) * H)
        by_torch |= {
            f"W_{gate}": weight_ih[rows],
            f"U_{gate}": weight_hh[rows],
            f"b_{gate}": bias_ih[rows],
        }
    if kind is torch.nn.GRU:
        by_torch["b_gh"] = bias_hh[-H:]
    ours = gradients(results, [x, *state, *params.values()])
    wanted_all = [*by_x, *(by_torch[p] for p in params)]
    for label, result, value in zip(
        ["x", *(s.name for s in cell.states), *params], ours, wanted_all, strict=True
    ):
        assert bool((value != 0).any()), label
        torch.testing.assert_close(
            result, value, rtol=1e-12, atol=1e-12, msg=lambda m, at=label: f"{at}: {m}"
        )


@pytest.mark.parametrize("name", zoo.names())
def test_file_is_what_the_cell_prints(name: str) -> None:
    text = (files("cellgraph.zoo") / f"{name}.cell").read_text(encoding="utf-8")
    assert str(parse(text)) == text
    assert parse(text) == zoo.get(name)
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", zoo.names())
def test_record_is_complete(name: str) -> None:
    info = zoo.info(name)
    assert info.name == name
    assert info.title.endswith(".")
    assert len(info.title) < 100
    assert any(
        year in info.reference for year in ("1990", "1997", "2014", "2015", "arXiv 1503.04069")
    )
    assert info.tags
    assert info.notes
    for field in ("reference:", "tags:", "aliases:", "notes:"):
        assert field not in info.title + info.reference + info.notes, (
            "a field was swallowed by another"
        )


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("rnn", "tanh_rnn"),
        ("elman", "tanh_rnn"),
        ("vanilla", "lstm_peephole"),
        ("peephole", "lstm_peephole"),
        ("gru_reset_before", "gru"),
        ("gru_torch", "gru_reset_after"),
        ("gru-v1", "gru_reset_after"),
        ("cuDNN_GRU", "gru_reset_after"),
        ("LSTM-f", "lstm_f"),
        ("MUT1", "mut1"),
        ("NIG", "nig"),
    ],
)
def test_other_names(alias: str, name: str) -> None:
    assert zoo.get(alias) is zoo.get(name)
    assert zoo.info(alias).name == name


def test_unknown_name() -> None:
    with pytest.raises(
        CellError,
        match=r"no cell named 'lstm_jozefowitz' \(did you mean lstm_jozefowicz\?\), expect",
    ):
        zoo.get("lstm_jozefowitz")
    with pytest.raises(
        CellError, match=r"no cell named '../gru'.*expected one of cifg, fgr, gru, "
    ):
        zoo.info("../gru")


@pytest.mark.parametrize(
    ("name", "width"), [("mut1", "H"), ("mut2", "H"), ("mut3", None), ("gru", None)]
)
def test_raw_x(name: str, width: str | None) -> None:
    """MUT1 and MUT2 use x outside a matrix, as printed; so x must have the hidden width."""
    assert zoo.get(name).raw_x == width


def test_forget_bias_of_lstm_b_starts_at_one() -> None:
    def starts(name: str) -> dict[str, Init]:
        return {p.name: p.init for p in zoo.get(name).params if p.init is not None}

    assert starts("lstm_b") == {"b_f": Init("constant", 1.0)}
    assert starts("lstm") == {}


@pytest.mark.parametrize(
    ("name", "matrices"),
    [
        ("lstm", 8),
        ("gru", 6),
        ("mut1", 4),
        ("mut2", 5),
        ("mut3", 6),
        ("fgr", 17),
        ("cifg", 6),
        ("tanh_rnn", 2),
    ],
)
def test_number_of_matrices(name: str, matrices: int) -> None:
    """As counted from the printed equations."""
    assert sum(p.kind == "matrix" for p in zoo.get(name).params) == matrices

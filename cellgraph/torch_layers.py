"""Weights to and from torch: nn.LSTM, nn.GRU and nn.RNN as our layers, and our layers as those.

Torch stacks the matrices of all gates and keeps two biases for each, of which a cell here needs
their sum; only the candidate of the GRU has a bias inside its reset, where torch's second one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from cellgraph import layer as layers
from cellgraph import zoo
from cellgraph.canonical import Canonical, canonical
from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.layer import CellLayer
from cellgraph.normal import form_of
from cellgraph.notation import parse
from cellgraph.parameters import Cell
from cellgraph.variants import with_projection, without_biases

_RELU = """\
# Simple recurrent network with a ReLU, as torch.nn.RNN(nonlinearity="relu").
cell relu_rnn(x, h)
    h' = relu(W_h @ x + U_h @ h + b_h)
"""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A layer of torch: its class and what else makes it, our cell, and the gates in the order in
    which torch stacks them. `inner`: the bias, by gate, that takes torch's second one alone."""

    make: Callable[..., nn.LSTM | nn.GRU | nn.RNN]
    cell: CellGraph
    gates: str
    inner: Mapping[str, str]
    projection: str = ""  # our name of weight_hr
    options: Mapping[str, str] | None = None


@cache
def _kinds() -> dict[str, _Kind]:
    """By the `mode` of torch's class, and _PROJECTED for an LSTM that has a projection."""
    projected, _ = with_projection(zoo.get("lstm_projection_torch"))
    return {
        "LSTM": _Kind(nn.LSTM, zoo.get("lstm"), "ifgo", {}),
        "LSTM_PROJECTED": _Kind(nn.LSTM, projected, "ifgo", {}, "V_r"),
        "GRU": _Kind(nn.GRU, zoo.get("gru_reset_after"), "rzg", {"g": "b_gh"}),
        "RNN_TANH": _Kind(nn.RNN, zoo.get("tanh_rnn"), "h", {}, "", {"nonlinearity": "tanh"}),
        "RNN_RELU": _Kind(nn.RNN, parse(_RELU), "h", {}, "", {"nonlinearity": "relu"}),
    }


def from_torch(module: nn.Module, backend: str = "auto") -> CellLayer:
    """An nn.LSTM, nn.GRU or nn.RNN as our layer: the same function of x and state, with copies of
    its weights, on its device and in its dtype, in training or not.

    All of their options are taken: layers, directions, batch_first, dropout, bias, proj_size and
    the nonlinearity of nn.RNN. The layer has one bias where torch has two that are added, so that
    it trains in its own way. Raises `CellError` for any other module.
    """
    if not isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)):
        raise CellError(
            f"a {type(module).__name__} cannot be read, expected nn.LSTM, nn.GRU or nn.RNN"
        )
    kind = _kinds()[module.mode + ("_PROJECTED" if module.proj_size else "")]
    first = cast("Tensor", module.weight_ih_l0)
    layer = layers.compile(
        kind.cell,
        module.input_size,
        module.hidden_size,
        module.num_layers,
        module.batch_first,
        module.dropout,
        module.bidirectional,
        backend,
        bias=module.bias,
        proj_size=module.proj_size,
        device="meta",  # nothing is drawn, and no generator moves
        dtype=first.dtype,
    )
    weights: dict[str, Tensor] = {}
    for index, suffix in enumerate(_suffixes(module)):
        for name, value in _ours(module, kind, suffix).items():
            weights[f"cells.{index}.{name}"] = value
    layer.load_state_dict(weights, assign=True)
    return layer.train(module.training)


def to_torch(layer: CellLayer) -> nn.LSTM | nn.GRU | nn.RNN:
    """Our layer as the module of torch that computes the same function, the other way round: for
    cells that are the LSTM (with a projection, too), the GRU with the reset after its matrix, or
    the simple network of torch, under whatever names.

    Our bias becomes the first of torch's two, and the second is zero. Raises `CellError` for a
    cell that torch does not have.
    """
    if not isinstance(layer, CellLayer):
        raise CellError(f"a {type(layer).__name__} cannot become a module of torch, expected ours")
    kind, biased, names = _found(layer.cell)
    options: dict[str, Any] = dict(kind.options or {})
    if kind.projection:
        options["proj_size"] = layer.state_sizes[0]
    try:
        made = kind.make(
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            bias=biased,
            batch_first=layer.batch_first,
            dropout=layer.dropout,
            bidirectional=layer.bidirectional,
            device="meta",
            dtype=next(layer.parameters()).dtype,
            **options,
        )
    except ValueError as error:  # a projection that is not smaller than what it projects
        raise CellError(f"torch does not take this {layer.cell.name}: {error}") from None
    weights: dict[str, Tensor] = {}
    for cell, suffix in zip(cast("Iterable[Cell]", layer.cells), _suffixes(layer), strict=True):
        values = cell.tensors()
        named = {name: values[ours].detach().clone() for name, ours in names.items()}
        weights |= {f"{name}_{suffix}": value for name, value in _stacked(named, kind).items()}
    made.load_state_dict(weights, assign=True)
    made.flatten_parameters()
    return made.train(layer.training)


def _suffixes(module: nn.RNNBase | CellLayer) -> list[str]:
    """How torch ends the names of a layer's parameters: l0, l0_reverse, l1 …"""
    directions = ("", "_reverse")[: 2 if module.bidirectional else 1]
    return [f"l{layer}{end}" for layer in range(module.num_layers) for end in directions]


def _ours(module: nn.RNNBase, kind: _Kind, suffix: str) -> dict[str, Tensor]:
    """The parameters of one layer and direction under our names, in memory of their own."""

    def parts(name: str) -> Sequence[Tensor]:
        value: Tensor = getattr(module, f"{name}_{suffix}")
        return value.detach().clone().chunk(len(kind.gates))

    values: dict[str, Tensor] = {}
    for letter, name in (("W", "weight_ih"), ("U", "weight_hh")):
        values |= {f"{letter}_{g}": p.clone() for g, p in zip(kind.gates, parts(name), strict=True)}
    if kind.projection:
        values[kind.projection] = getattr(module, f"weight_hr_{suffix}").detach().clone()
    if module.bias:
        outer, inner = parts("bias_ih"), parts("bias_hh")
        for gate, first, second in zip(kind.gates, outer, inner, strict=True):
            if gate in kind.inner:
                values[f"b_{gate}"], values[kind.inner[gate]] = first.clone(), second.clone()
            else:
                values[f"b_{gate}"] = first + second
    return values


def _stacked(values: Mapping[str, Tensor], kind: _Kind) -> dict[str, Tensor]:
    """Our parameters as torch stacks them, without the end of the name."""
    found = {
        "weight_ih": torch.cat([values[f"W_{gate}"] for gate in kind.gates]),
        "weight_hh": torch.cat([values[f"U_{gate}"] for gate in kind.gates]),
    }
    if kind.projection:
        found["weight_hr"] = values[kind.projection]
    if f"b_{kind.gates[0]}" in values:
        outer = [values[f"b_{gate}"] for gate in kind.gates]
        inner = [
            values[kind.inner[g]] if g in kind.inner else torch.zeros_like(b)
            for g, b in zip(kind.gates, outer, strict=True)
        ]
        found |= {"bias_ih": torch.cat(outer), "bias_hh": torch.cat(inner)}
    return found


def _found(cell: CellGraph) -> tuple[_Kind, bool, dict[str, str]]:
    """What a cell is in torch, with biases or not, and its parameters by our usual names. Raises
    `CellError`."""
    own = _canonical(cell)
    if len(own.states) == len(cell.states):
        for kind in _kinds().values():
            for biased in (True, False):
                usual = _usual(kind.cell, biased)
                # The states change hands as a tuple, so that their order counts.
                order = [own.states.index(state.name) for state in cell.states]
                if usual.text == own.text and order == _order(kind.cell, usual):
                    return kind, biased, dict(zip(usual.params, own.params, strict=True))
    raise CellError(
        f"torch has no cell like {cell.name}, expected lstm, gru_reset_after, tanh_rnn, its ReLU, "
        "or lstm_projection_torch with proj_size, with all biases or without any"
    )


@cache
def _usual(cell: CellGraph, biased: bool) -> Canonical:
    return _canonical(cell if biased else without_biases(cell))


def _canonical(cell: CellGraph) -> Canonical:
    """The canonical text of a cell without its starts, which are no part of the function."""
    plain = replace(cell, params=tuple(replace(p, init=None) for p in cell.params))
    return canonical(plain, *form_of(plain))


def _order(cell: CellGraph, text: Canonical) -> list[int]:
    return [text.states.index(state.name) for state in cell.states]

"""Every named cell against a second implementation, values and gradients in float64.

Torch's own three, and the LSTM with a projection, against torch.nn; all against
`reference_cells.py`. What has been proved stands in a table at the end of the tests' output
(conftest.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files

import pytest
import torch
from torch import Tensor

from cellgraph import CellError, count_parameters, facts, parse, zoo
from cellgraph.graph import CellGraph, Init
from cellgraph.interpret import unroll
from tests.cellgraph import reference_cells as reference
from tests.strategies import assert_round_trip, gradients

T, B, X, H = 6, 3, 4, 5
#: Cells that are one function under equal names: LSTM-b differs in its start alone, Greff's NP is
#: the LSTM.
SAME_FUNCTION = ({"lstm", "lstm_b", "np"},)
#: States that are sums of positive numbers; near zero the sLSTM divides by almost nothing.
POSITIVE = {("slstm", "n")}
#: States that are only emitted: no gradient reaches their past.
UNREAD = {("intersection_rnn", "y")}
#: Their files have constants or repeats.
COMPACT = {"antisymmetric_rnn", "antisymmetric_rnn_gated", "janet", "rhn2", "rhn5", "rhn10"}


def seeded(label: str, *shape: int) -> Tensor:
    """The same tensor for the same label and shape, whichever cell asks."""
    rng = torch.Generator().manual_seed(int(hashlib.sha256(label.encode()).hexdigest()[:12], 16))
    return torch.randn(shape, generator=rng, dtype=torch.float64).mul_(0.8).requires_grad_()


def leaves(
    cell: CellGraph, inputs: int = X
) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...]]:
    """Parameters, x (T, B, X), nonzero states (B, H); equal names and shapes in two cells, equal
    tensors."""
    widths = {"H": H, "X": H if cell.raw_x else inputs}
    params = {p.name: seeded(p.name, *p.shape(widths)) for p in cell.params}
    states = [seeded(f"state {s.name}", B, H) for s in cell.states]
    for state, value in zip(cell.states, states, strict=True):
        if (cell.name, state.name) in POSITIVE:
            value.detach().abs_().add_(0.5)
    return params, seeded("x", T, B, widths["X"]), tuple(states)


def by_reference(
    name: str, params: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The outputs and last states of the second implementation."""
    step = reference.STEPS[name]
    return reference.unroll(step, params, x, state, emits=name in reference.EMITS)


def assert_same(results: list[Tensor], expected: list[Tensor], over: list[Tensor]) -> float:
    """Values, and the gradient of a random projection of outputs and last states by every leaf.
    Returns the largest difference."""
    assert len(results) == len(expected)
    pairs = [*zip(results, expected, strict=True)]
    pairs += zip(gradients(results, over), gradients(expected, over), strict=True)
    for result, wanted in pairs:
        torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    assert all(bool((g != 0).any()) for g in gradients(results, over)), (
        "a leaf without gradient proves nothing"
    )
    return _largest_difference(pairs)


def _largest_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return max(float((ours - theirs).detach().abs().max()) for ours, theirs in pairs)


#: pytest's `record_property`.
Note = Callable[[str, object], None]


def proved(note: Note, cell: CellGraph, against: str, difference: float) -> None:
    """A row of the table in the tests' output."""
    note("proof", [cell.name, count_parameters(cell, 64, 64), against, difference])


@pytest.mark.parametrize("name", zoo.names())
def test_cell_agrees_with_second_implementation(name: str, record_property: Note) -> None:
    cell = zoo.get(name)
    params, x, state = leaves(cell)
    outputs, last = unroll(cell, params, x, state)
    wanted, wanted_last = by_reference(name, params, x, state)
    read = [
        value for s, value in zip(cell.states, state, strict=True) if (name, s.name) not in UNREAD
    ]
    over = [*params.values(), x, *read]
    difference = assert_same([outputs, *last], [wanted, *wanted_last], over)
    proved(record_property, cell, "second implementation", difference)


def test_every_cell_has_a_second_implementation() -> None:
    assert sorted(reference.STEPS) == zoo.names()


@cache
def _meant_outputs() -> dict[str, Tensor]:
    """What every cell is meant to compute. x is as wide as h, so that a parameter of one name and
    kind is the same tensor in all cells."""
    return {
        name: by_reference(name, *leaves(zoo.get(name), inputs=H))[0].detach()
        for name in zoo.names()
    }


@pytest.mark.parametrize("name", zoo.names())
def test_second_implementation_of_another_cell_disagrees(name: str) -> None:
    """The proof above can fail: no cell computes what another is meant to compute."""
    outputs = unroll(zoo.get(name), *leaves(zoo.get(name), inputs=H))[0].detach()
    for other, wanted in _meant_outputs().items():
        distance = float((outputs - wanted).abs().max())
        if other == name or any({name, other} <= group for group in SAME_FUNCTION):
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
def test_cell_agrees_with_torch(
    name: str, kind: type[torch.nn.Module], order: str, record_property: Note
) -> None:
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
    pairs = zip([*results, *ours], [*expected, *wanted_all], strict=True)
    proved(record_property, cell, f"torch.nn.{kind.__name__}", _largest_difference(pairs))


def test_projection_agrees_with_torch(record_property: Note) -> None:
    """With a width of its own for r the cell is torch's LSTM with proj_size, values and
    gradients."""
    size = 2
    text = str(zoo.get("lstm_projection_torch"))
    cell = parse(text.replace("(x, r, c)", "(x, r: P, c)"))
    widths = {"H": H, "X": X, "P": size}
    params = {p.name: seeded(p.name, *p.shape(widths)) for p in cell.params}
    x, r, c = seeded("x", T, B, X), seeded("state r", B, size), seeded("state c", B, H)
    outputs, ends = unroll(cell, params, x, (r, c))
    stacked = [torch.cat([params[f"{kind}_{g}"] for g in "ifgo"]) for kind in "WUb"]
    flat = [stacked[0], stacked[1], stacked[2], torch.zeros_like(stacked[2]), params["V_r"]]
    layer = torch.nn.LSTM(X, H, proj_size=size).double()
    named = dict(zip((name for name, _ in layer.named_parameters()), flat, strict=True))
    wanted, last = torch.func.functional_call(layer, named, (x, (r[None], c[None])))
    over = [*params.values(), x, r, c]
    difference = assert_same([outputs, *ends], [wanted, *(s[0] for s in last)], over)
    full = zoo.get("lstm_projection_torch")  # whose r is as wide as c
    proved(record_property, full, "torch.nn.LSTM, proj_size", difference)


@pytest.mark.parametrize("name", zoo.names())
def test_file_is_what_the_cell_prints(name: str) -> None:
    """But for constants and repeats, which a printed cell has no more."""
    text = (files("cellgraph.zoo") / f"{name}.cell").read_text(encoding="utf-8")
    cell = zoo.get(name)
    assert parse(text) == cell
    if name in COMPACT:
        assert_round_trip(cell)
        assert "const " in text
    else:
        assert str(cell) == text
    above = text.split("\ncell ")[0].splitlines()
    assert str(cell).splitlines()[: len(above)] == above
    assert max(map(len, text.splitlines())) <= 100
    longest = {"enas": 14, "nas_cell": 15}  # of twelve nodes, and of sixteen
    assert len(text.splitlines()) - len(above) <= longest.get(name, 12)


@pytest.mark.parametrize("name", zoo.names())
def test_record_is_complete(name: str) -> None:
    info = zoo.info(name)
    assert info.name == name
    assert info.title.endswith(".")
    assert len(info.title) < 100
    assert re.search(r"(19|20)\d\d\b(?!\.\d)", info.reference) or "arXiv 1503." in info.reference
    assert re.search(r"arXiv \d{4}\.\d|doi 10\.|PMLR v|ICFHR|report", info.reference)
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
        ("minGRU", "min_gru"),
        ("LSTMP", "lstm_projection"),
        ("NASCell", "nas_cell"),
        ("T-LSTM", "t_lstm"),
    ],
)
def test_other_names(alias: str, name: str) -> None:
    assert zoo.get(alias) is zoo.get(name)
    assert zoo.info(alias).name == name


def test_tags() -> None:
    assert zoo.tags() == sorted({tag for name in zoo.names() for tag in zoo.info(name).tags})
    assert {"gated", "torch"} <= set(zoo.tags())
    assert zoo.tagged("gated") == [n for n in zoo.names() if "gated" in zoo.info(n).tags]
    with pytest.raises(CellError, match=r"no tag 'gatd' \(did you mean gated\?\), expected one"):
        zoo.tagged("gatd")


@pytest.mark.parametrize(
    ("reference", "year"),
    [
        ("Elman 1990, Finding Structure in Time, doi 10.1207/s15516709cog1402_1", 1990),
        ("Hochreiter, Schmidhuber 1997, doi 10.1162/neco.1997.9.8.1735; Gers et al. 2000", 1997),
        ("Greff et al., LSTM: A Search Space Odyssey, arXiv 1503.04069", 2015),
        ("Feng et al., arXiv 2410.01201v2", 2024),
        ("doi 10.1162/089976600300015015", None),
        ("doi 10.1162/neco.1997.9.8.1735", None),
        ("", None),
    ],
)
def test_year_of_a_reference(reference: str, year: int | None) -> None:
    assert zoo.Info("a", "A.", reference, (), (), "", {}).year == year


def test_every_named_cell_has_a_year() -> None:
    assert all(1980 <= (zoo.info(name).year or 0) <= 2040 for name in zoo.names())


def test_unknown_name() -> None:
    with pytest.raises(
        CellError,
        match=r"no cell named 'lstm_jozefowitz' \(did you mean lstm_jozefowicz\?\), expect",
    ):
        zoo.get("lstm_jozefowitz")
    with pytest.raises(
        CellError, match=r"no cell named '../gru'.*expected one of antisymmetric_rnn, "
    ):
        zoo.info("../gru")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mut1", "H"),
        ("mut2", "H"),
        ("sru", "H"),
        ("qrnn", "H"),
        ("t_gru", "H"),
        ("intersection_rnn", "H"),
        ("mut3", None),
        ("gru", None),
        ("t_rnn", None),
        ("min_gru", None),
    ],
)
def test_raw_x(name: str, width: str | None) -> None:
    """MUT1 and MUT2 use x outside a matrix, as printed, or a cell keeps it for the next step; so x
    must have the hidden width."""
    assert zoo.get(name).raw_x == width


def test_forget_bias_of_lstm_b_starts_at_one() -> None:
    def starts(name: str) -> dict[str, Init]:
        return {p.name: p.init for p in zoo.get(name).params if p.init is not None}

    assert starts("lstm_b") == {"b_f": Init("constant", 1.0)}
    assert starts("lstm") == {}


def test_starts_that_the_papers_give() -> None:
    found = {
        (name, p.name): str(p.init)
        for name in zoo.names()
        for p in zoo.get(name).params
        if p.init is not None and not name.startswith("rhn")
    }
    assert found == {
        ("lstm_b", "b_f"): "1",
        ("irnn", "U_h"): "identity(1)",
        ("irnn", "b_h"): "0",
        ("fastrnn", "alpha"): "-3",
        ("fastrnn", "beta"): "3",
        ("fastgrnn", "zeta"): "1",
        ("fastgrnn", "nu"): "-4",
        ("unicornn", "b_s"): "0",
        ("lstm_slope", "s"): "1",
        **{(f"lstm_slope_{kind}", f"s_{g}"): "1" for kind in ("unit", "gate") for g in "ifo"},
    }
    for depth in (2, 5, 10):
        starts = {p.name: str(p.init) for p in zoo.get(f"rhn{depth}").params if p.init}
        assert starts == {f"b_t_{level}": "-2" for level in range(1, depth + 1)}


def test_which_matrices_are_skew() -> None:
    found = {name: zoo.get(name).skews for name in zoo.names() if zoo.get(name).skews}
    assert found == {"antisymmetric_rnn": ("U_h",), "antisymmetric_rnn_gated": ("U_h",)}
    counted = facts(zoo.get("antisymmetric_rnn_gated"), X, H)
    assert (counted.recurrent_matrices, counted.input_matrices, counted.vectors) == (1, 2, 2)
    assert counted.parameters == H * H + 2 * H * X + 2 * H, "all that is stored"


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
        ("fastgrnn", 2),
        ("atr", 2),
        ("sgrn", 2),
        ("brc", 3),
        ("mgu3", 2),
        ("min_gru", 2),
        ("sru", 3),
        ("qrnn", 6),
        ("wmc_lstm", 11),
        ("multiplicative_lstm", 10),
        ("lstm_projection", 9),
        ("dcm", 8),
        ("rhn2", 6),
        ("rhn10", 22),
        ("nas_cell", 16),
        ("darts_v1", 20),
        ("enas", 26),
        ("janet", 4),
        ("antisymmetric_rnn", 2),
        ("antisymmetric_rnn_gated", 3),
    ],
)
def test_number_of_matrices(name: str, matrices: int) -> None:
    """As counted from the printed equations."""
    assert sum(p.is_matrix for p in zoo.get(name).params) == matrices

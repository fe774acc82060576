"""The layer: equal to its definition in float64, and in the manners of torch.nn.LSTM."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import cellgraph as cg
from cellgraph.interpret import unroll
from cellgraph.layer import CellLayer
from tests.strategies import cells, gradients

H, X = 5, 3  # odd and different

#: Cells at the edges of what the notation can say.
EDGES = {
    "state is a bare parameter": "cell a(x, h, c)\n c' = b\n h' = tanh(W @ x + U @ c + h)",
    "state is made of parameters": "cell a(x, h, c)\n c' = tanh(B @ b)\n h' = tanh(W @ x + U @ c)",
    "state is x": "cell a(x, h, c)\n h' = tanh(W @ x + U @ h * c)\n c' = x",
    "state needs no state": "cell a(x, h, c)\n c' = tanh(V @ x)\n h' = tanh(U @ h + c)",
    "state never changes": "cell a(x, h, c)\n h' = tanh(W @ x + U @ c)\n c' = c",
    "states swap": "cell a(x, h, c)\n h' = tanh(c) + W @ x\n c' = h",
    "states share a next value": "cell a(x, h, c)\n h' = tanh(W @ x + U @ h + c)\n c' = h'",
    "no x": "cell a(x, h)\n h' = tanh(U @ h + b)",
    "no parameters": "cell a(x, h)\n h' = tanh(x - h)",
    "output needs no state": "cell a(x, h) -> y\n y = tanh(W @ x + b)\n h' = tanh(U @ h + y)",
    "output is x": "cell a(x, h) -> y\n y = x\n h' = tanh(U @ h + x)",
    "output is a parameter": "cell a(x, h) -> y\n y = b\n h' = tanh(U @ h + W @ x)",
    "output is the old state": "cell a(x, h) -> y\n y = h\n h' = tanh(U @ h + W @ x)",
    "output of another width": "cell a(x, h, r: P) -> r\n h' = tanh(U @ h + W @ x)\n r' = R @ h'",
    "raw x meets another width": "cell a(x, h, r: P)\n r' = x * r\n h' = tanh(R @ r' + U @ h)",
    "scalars and numbers": "cell a(x, h)\n scalar s, t\n h' = tanh(s * h - (2 - t) * (W @ x))",
    "skew matrices": "cell a(x, h, r: P)\n skew A, R\n r' = tanh(R @ r + V @ A @ h)\n"
    " h' = tanh(A @ x + Q @ r' + A @ b)",
    "a matrix used twice": "cell a(x, h)\n h' = tanh(U @ h + W @ x) * sigmoid(U @ (h * h))",
}


def compiled(cell: cg.CellGraph | str, x: int = X, hidden: int = H, **options: Any) -> CellLayer:
    """A float64 layer; a declared width gets 2 units."""
    cell = cg.load(cell) if isinstance(cell, str) else cell
    widths = dict.fromkeys(cell.widths[1:], 2)
    return cg.compile(cell, x, hidden, widths=widths, dtype=torch.float64, **options)


def tensors(*shapes: Sequence[int], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=rng, dtype=torch.float64) * 0.7 for shape in shapes]
    return [value.requires_grad_() for value in made]


def entering(layer: CellLayer, steps: int, rows: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """x (T, B, X) and one (L·D, B, width) tensor a state, all of which require gradients."""
    states = [(len(layer.cells), rows, size) for size in layer.state_sizes]
    x, *state = tensors((steps, rows, layer.input_size), *states, seed=seed)
    return x, state


def given_state(state: Sequence[Tensor]) -> Any:
    return state[0] if len(state) == 1 else tuple(state)


def flat(y: Tensor, state: Any) -> list[Tensor]:
    return [y, *(state if isinstance(state, tuple) else (state,))]


def by_definition(layer: CellLayer, x: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """What a layer should compute: the interpreter, layer over layer, and on reversed time."""
    lasts = []
    for level in range(layer.num_layers):
        ys = []
        for direction in range(layer.directions):
            index = level * layer.directions + direction
            cell = layer.cells[index]
            z = x.flip(0) if direction else x
            if cell.input_projection is not None:
                z = z @ cell.input_projection.T
            params = {p.name: getattr(cell, p.name) for p in layer.cell.params}
            y, last = unroll(layer.cell, params, z, [s[index] for s in state])
            ys.append(y.flip(0) if direction else y)
            lasts.append(last)
        x = torch.cat(ys, dim=-1)
    return [x, *(torch.stack(values) for values in zip(*lasts, strict=True))]


def assert_equal(
    results: Sequence[Tensor],
    expected: Sequence[Tensor],
    over: Sequence[Tensor] = (),
    tolerance: float = 1e-10,
) -> None:
    """Values, and gradients of a random projection of outputs and last states by every leaf."""
    pairs = list(zip(results, expected, strict=True))
    if over:
        pairs += zip(gradients(results, over), gradients(expected, over), strict=True)
    for result, wanted in pairs:
        torch.testing.assert_close(result, wanted, rtol=tolerance, atol=tolerance)


def assert_defined(layer: CellLayer, steps: int, rows: int, tolerance: float = 1e-10) -> None:
    x, state = entering(layer, steps, rows)
    results = flat(*layer(x, given_state(state)))
    assert_equal(
        results, by_definition(layer, x, state), [*layer.parameters(), x, *state], tolerance
    )


# -- values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("name", cg.zoo.names())
def test_zoo_cell_equals_its_definition(name: str) -> None:
    for steps, rows in [(1, 3), (2, 1), (7, 3)]:
        assert_defined(compiled(name), steps, rows)


@pytest.mark.parametrize("text", EDGES.values(), ids=EDGES.keys())
def test_cell_at_the_edge_equals_its_definition(text: str) -> None:
    cell = cg.parse(text)
    for steps in (1, 2, 5):
        assert_defined(compiled(cell), steps, 3)
    assert_defined(compiled(cell, num_layers=2, bidirectional=True), 3, 1)


@settings(max_examples=60, deadline=None)
@given(cells(smooth=True), st.sampled_from([1, 2, 7]), st.sampled_from([1, 3]))
def test_drawn_cell_equals_its_definition(cell: cg.CellGraph, steps: int, rows: int) -> None:
    # Reordered sums round differently, and seven steps of a drawn cell may amplify that.
    assert_defined(compiled(cell), steps, rows, tolerance=1e-7)


@settings(max_examples=25, deadline=None)
@given(cells(smooth=True, max_lines=5), st.integers(1, 3), st.booleans())
def test_drawn_stack_equals_its_definition(cell: cg.CellGraph, layers: int, both: bool) -> None:
    layer = compiled(cell, num_layers=layers, bidirectional=both)
    assert_defined(layer, 3, 2, tolerance=1e-7)


@pytest.mark.parametrize("name", ["gru", "lstm_peephole", "fgr", "mut1", "mut2"])
@pytest.mark.parametrize(("layers", "both"), [(1, True), (3, False), (2, True)])
def test_stacked_and_bidirectional_layers(name: str, layers: int, both: bool) -> None:
    assert_defined(compiled(name, num_layers=layers, bidirectional=both), 4, 2)


def test_a_hidden_size_of_one() -> None:
    for name in ("lstm", "mut1"):
        assert_defined(compiled(name, x=1, hidden=1), 3, 2)
        assert_defined(compiled(name, x=2, hidden=1), 3, 2)


def test_second_derivatives() -> None:
    layer = compiled("mut1", x=2, hidden=2, backend="eager")
    names = [name for name, _ in layer.named_parameters()]
    x, state = entering(layer, 2, 1)

    def function(x: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        params = dict(zip(names, values, strict=True))
        return tuple(flat(*torch.func.functional_call(layer, params, (x, state))))

    assert torch.autograd.gradgradcheck(function, (x, state[0], *layer.parameters()))


def test_float32() -> None:
    exact = compiled("lstm", num_layers=2)
    single = copy.deepcopy(exact).float()
    x, _ = entering(exact, 20, 3)
    y, (h, c) = single(x.float())
    assert {t.dtype for t in (y, h, c)} == {torch.float32}
    torch.testing.assert_close(y.double(), exact(x)[0], rtol=1e-5, atol=1e-5)
    assert {p.dtype for p in cg.compile("gru", 3, 4).parameters()} == {torch.float32}


# -- the shapes of torch.nn.LSTM ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gru", "lstm", "mut2"])
def test_batch_first_and_no_batch(name: str) -> None:
    layer = compiled(name, num_layers=2, bidirectional=True)
    other = compiled(name, num_layers=2, bidirectional=True, batch_first=True)
    other.load_state_dict(layer.state_dict())
    x, state = entering(layer, 4, 3)
    y, last = layer(x, given_state(state))
    swapped, same = other(x.transpose(0, 1), given_state(state))
    assert_equal(flat(swapped.transpose(0, 1), same), flat(y, last))
    for module in (layer, other):  # batch_first says nothing about x without a batch
        single, single_last = module(x[:, 1], given_state([s[:, 1] for s in state]))
        wanted = [y[:, 1], *(s[:, 1] for s in flat(y, last)[1:])]
        assert_equal(flat(single, single_last), wanted)


@pytest.mark.parametrize("name", ["gru", "lstm", "mut1"])
@pytest.mark.parametrize("lengths", [[5, 4, 2, 1], [2, 5, 1, 5], [3, 3, 3]], ids=str)
def test_packed_sequences_equal_runs_one_by_one(name: str, lengths: list[int]) -> None:
    layer = compiled(name, num_layers=2, bidirectional=True)
    sequences = tensors(*((n, X) for n in lengths))
    _, state = entering(layer, 1, len(lengths), seed=1)
    packed = pack_sequence(sequences, enforce_sorted=False)
    y, last = layer(packed, given_state(state))
    assert isinstance(y, PackedSequence)
    outputs, found = pad_packed_sequence(y)
    assert found.tolist() == lengths
    results, wanted = [], []
    for i, sequence in enumerate(sequences):
        alone = layer(sequence, given_state([s[:, i] for s in state]))
        wanted += flat(*alone)
        results += [outputs[: len(sequence), i], *(s[:, i] for s in flat(y, last)[1:])]
    assert_equal(results, wanted, [*layer.parameters(), *sequences, *state])


def test_what_lies_behind_the_end_of_a_sequence_leaves_gradients_finite() -> None:
    layer = compiled(cg.parse("cell a(x, h)\n h' = tanh(sqrt(abs(V @ x)) + U @ h)"), num_layers=2)
    sequences = tensors((4, X), (1, X))
    y, last = layer(pack_sequence(sequences))
    outputs, _ = pad_packed_sequence(y)
    results = [outputs[:4, 0], outputs[:1, 1]]
    wanted = [layer(sequence)[0] for sequence in sequences]
    assert_equal(results, wanted, [*layer.parameters(), *sequences])
    assert all(g.isfinite().all() for g in gradients([last], list(layer.parameters())))


def test_packed_sequences_sorted_by_the_caller() -> None:
    layer = compiled("lstm", bidirectional=True)
    sequences = tensors((4, X), (4, X), (1, X))
    y, last = layer(pack_sequence(sequences))
    unsorted, same = layer(pack_sequence(sequences, enforce_sorted=False))
    assert y.sorted_indices is None
    assert_equal([y.data, *last], [unsorted.data, *same])


def test_a_packed_sequence_keeps_its_own_order_of_equal_lengths() -> None:
    layer = compiled("gru")
    first, second = tensors((3, X), (3, X))
    plain = pack_sequence([second, first])
    order = torch.tensor([1, 0])
    packed = PackedSequence(plain.data, plain.batch_sizes, order, order)
    outputs, _ = pad_packed_sequence(layer(packed)[0])
    assert_equal([outputs[:, 0], outputs[:, 1]], [layer(first)[0], layer(second)[0]])


GATES: dict[str, tuple[type[nn.RNNBase], str, dict[str, str]]] = {
    # ours -> torch's class, the order of its gates, and the parameters that are not W_, U_ and b_
    "lstm": (nn.LSTM, "ifgo", {}),
    "gru_reset_after": (nn.GRU, "rzg", {"b_gh": "g"}),
    "tanh_rnn": (nn.RNN, "h", {}),
}


def same_weights(name: str, layer: CellLayer, theirs: nn.RNNBase) -> None:
    _, gates, inner = GATES[name]
    directions = ["", "_reverse"][: layer.directions]
    suffixes = [f"l{i}{reverse}" for i in range(layer.num_layers) for reverse in directions]
    for cell, suffix in zip(layer.cells, suffixes, strict=True):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(theirs, f"{kind}_{suffix}").detach().chunk(len(gates))
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        values = {name: b_hh[gates.index(gate)] for name, gate in inner.items()}
        for i, gate in enumerate(gates):
            values[f"W_{gate}"], values[f"U_{gate}"] = w_ih[i], w_hh[i]
            values[f"b_{gate}"] = b_ih[i] if gate in inner.values() else b_ih[i] + b_hh[i]
        cell.load_state_dict(values)


@pytest.mark.parametrize("name", GATES)
def test_equals_torch(name: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    theirs = GATES[name][0](X, H, **options).double()
    layer = compiled(name, **options)
    same_weights(name, layer, theirs)
    x, state = entering(layer, 4, 6)
    x = x.transpose(0, 1)  # (B, T, X)
    hidden = given_state(state)
    assert_equal(flat(*layer(x, hidden)), flat(*theirs(x, hidden)), [x, *state])
    assert_equal(flat(*layer(x)), flat(*theirs(x)), [x])
    assert_equal(flat(*layer(x[0])), flat(*theirs(x[0])), [x])
    sequences = tensors((2, X), (5, X), (5, X), (1, X))
    packed = pack_sequence(sequences, enforce_sorted=False)
    state = [s[:, :4] for s in state]
    (ours, last), (wanted, wanted_last) = (m(packed, given_state(state)) for m in (layer, theirs))
    assert_equal(flat(ours.data, last), flat(wanted.data, wanted_last), sequences)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(ours, field), getattr(wanted, field))
    assert sum(p.numel() for p in layer.parameters()) < sum(p.numel() for p in theirs.parameters())


def test_state_is_a_tensor_for_one_state_and_a_tuple_for_several() -> None:
    x = torch.zeros(4, 2, 3)
    y, state = cg.compile("gru", 3, 5, num_layers=2, bidirectional=True)(x)
    assert y.shape == (4, 2, 10)
    assert isinstance(state, Tensor)
    assert state.shape == (4, 2, 5)
    y, state = cg.compile("lstm", 3, 5)(x)
    assert y.shape == (4, 2, 5)
    assert isinstance(state, tuple)
    assert [s.shape for s in state] == [(1, 2, 5)] * 2
    torch.testing.assert_close(y[-1], state[0][0])
    wide = cg.compile(cg.parse(EDGES["output of another width"]), 3, 5, widths={"P": 2})
    y, state = wide(x)
    assert y.shape == (4, 2, 2)
    assert [s.shape for s in state] == [(1, 2, 5), (1, 2, 2)]


def test_a_sequence_in_two_pieces_equals_the_whole() -> None:
    layer = compiled("lstm", num_layers=2)
    x, _ = entering(layer, 6, 2)
    first, state = layer(x[:2])
    second, last = layer(x[2:], state)
    assert_equal([torch.cat([first, second]), *last], flat(*layer(x)))


def test_zeros_are_the_state_that_is_not_given() -> None:
    layer = compiled("gru")
    x, state = entering(layer, 3, 2)
    assert_equal(flat(*layer(x)), flat(*layer(x, torch.zeros_like(state[0]))))
    assert_equal(flat(*layer(x)), flat(*layer(x, (torch.zeros_like(state[0]),))))


# -- dropout, parameters --------------------------------------------------------------------------


def test_dropout_acts_between_layers_in_training_only() -> None:
    torch.manual_seed(0)
    plain = compiled("gru", num_layers=2)
    dropped = compiled("gru", num_layers=2, dropout=0.5)
    dropped.load_state_dict(plain.state_dict())
    x, _ = entering(plain, 5, 4)
    y, last = plain(x)
    one, other = dropped(x), dropped(x)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1][0], last[0])  # nothing is dropped inside the first layer …
    # … and what reaches the second is the first layer's output, zeroed or doubled.
    below = compiled("gru")
    below.cells[0].load_state_dict(plain.cells[0].state_dict())
    above = compiled("gru", x=H)
    above.cells[0].load_state_dict(plain.cells[1].state_dict())
    torch.manual_seed(7)
    masked = nn.functional.dropout(below(x)[0], 0.5)
    torch.manual_seed(7)
    torch.testing.assert_close(dropped(x)[0], above(masked)[0])
    dropped.eval()
    assert_equal(flat(*dropped(x)), flat(y, last))
    single = compiled("gru", dropout=0.9)
    assert torch.equal(single(x)[0], single(x)[0])  # one layer has nothing between layers


def test_parameters_carry_the_names_and_shapes_of_the_equations() -> None:
    layer = cg.compile("mut1", 3, 5, num_layers=2, bidirectional=True)
    first = layer.cells[0]
    assert first.W_r.shape == (5, 5)  # x is projected to H before anything reads it
    assert first.U_r.shape == (5, 5)
    assert first.b_r.shape == (5,)
    assert first.input_projection.shape == (5, 3)
    assert layer.cells[2].input_projection.shape == (5, 10)
    assert cg.compile("gru", 3, 5).cells[0].W_r.shape == (5, 3)
    keys = list(cg.compile("mut1", 5, 5).state_dict())
    assert "cells.0.W_r" in keys
    assert not any("input_projection" in key for key in keys)


def test_parameters_start_uniformly_within_the_bound() -> None:
    layer = cg.compile("lstm", 64, 100)
    values = torch.cat([p.detach().flatten() for p in layer.parameters()])
    assert 0.0999 < values.abs().max() <= 0.1
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 0.1 / math.sqrt(3)) < 1e-3
    layer.reset_parameters(scale=2.8)
    assert 0.279 < max(p.abs().max() for p in layer.parameters()) <= 0.28


def test_declared_starts() -> None:
    text = (
        "cell a(x, h)\n scalar s\n h' = tanh(s * (U @ h) + V @ h + W @ x + b)\n"
        " init U = identity(0.9)\n init V = 0.5\n init b = -1\n init s = 2"
    )
    layer = cg.compile(cg.parse(text), 6, 100, bidirectional=True)
    for scale in (1.0, 0.3):
        layer.reset_parameters(scale)
        for cell in layer.cells:
            bound = scale / 10
            off = cell.U - torch.diag(cell.U.diagonal())
            assert 0.9 * bound < off.abs().max() <= bound
            assert (cell.U.diagonal() - 0.9).abs().max() <= bound + 1e-6
            assert (cell.U.diagonal() - 0.9).abs().max() > 0.5 * bound
            assert (cell.V == 0.5).all()
            assert (cell.b == -1).all()
            assert cell.s.shape == ()
            assert cell.s == 2
    assert (cg.compile("lstm_b", 2, 3).cells[0].b_f == 1).all()


def test_reset_parameters_follows_its_generator() -> None:
    def drawn(layer: CellLayer, seed: int) -> list[Tensor]:
        layer.reset_parameters(generator=torch.Generator().manual_seed(seed))
        return [p.detach().clone() for p in layer.parameters()]

    layer, other = cg.compile("lstm", 3, 4, num_layers=2), cg.compile("lstm", 3, 4, num_layers=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = drawn(layer, 1)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator was left alone
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(other, 1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, drawn(other, 2), strict=True))


# -- a module like any other ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "mut1"])
def test_copies_pickles_and_state_dicts(name: str) -> None:
    layer = compiled(name, num_layers=2, bidirectional=True)
    x, state = entering(layer, 3, 2)
    wanted = flat(*layer(x, given_state(state)))
    loaded = compiled(name, num_layers=2, bidirectional=True)
    loaded.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert other.cell == layer.cell
        assert_equal(flat(*other(x, given_state(state))), wanted)
    with torch.no_grad():
        next(iter(loaded.parameters())).add_(1)
    assert_equal(flat(*layer(x, given_state(state))), wanted)  # nothing is shared


def test_repr_shows_the_equations_and_the_projection() -> None:
    text = repr(cg.compile("mut1", 3, 5, num_layers=2, dropout=0.5))
    assert "mut1, 3, 5, num_layers=2, dropout=0.5, backend=" in text
    assert "h' = g * z + h * (1 - z)" in text
    assert "x is projected from 3 to 5" in text
    assert "projected" not in repr(cg.compile("mut1", 5, 5))
    assert "projected" not in repr(cg.compile("gru", 3, 5))


def test_training_moves_every_parameter() -> None:
    torch.manual_seed(0)
    layer = cg.compile("mut1", 3, 8, num_layers=2)
    before = [p.detach().clone() for p in layer.parameters()]
    x, target = torch.randn(6, 4, 3), torch.randn(6, 4, 8)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(layer(x)[0], target)
        steps = torch.autograd.grad(loss, list(layer.parameters()))
        with torch.no_grad():
            for parameter, step in zip(layer.parameters(), steps, strict=True):
                parameter.sub_(0.1 * step)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))

"""Our layer in the place of torch.nn.LSTM: programs written for that one run with ours, and what
torch can do with a module it can do with our layer.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cellgraph as cg
from cellgraph.layer import CellLayer
from cellgraph.variants import biases
from tests.cellgraph.torch_programs import Recurrent, classifier, forecaster, language_model
from tests.strategies import gradients

X, H = 3, 5
BACKENDS = pytest.mark.parametrize("backend", ["eager", "native"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def flat(y: Tensor, state: Any) -> list[Tensor]:
    return [y, *(state if isinstance(state, tuple) else (state,))]


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-6) -> None:
    for value, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


# -- programs that were written for torch.nn.LSTM and torch.nn.GRU ------------------------------


def ours(name: str) -> Recurrent:
    return partial(cg.compile, name)


@pytest.mark.parametrize(
    ("program", "recurrent"),
    [
        pytest.param(program, recurrent, id=f"{program.__name__}, {label}")
        for program, classes in (
            (
                language_model,
                {"torch": nn.LSTM, "lstm": ours("lstm"), "peephole": ours("lstm_peephole")},
            ),
            (classifier, {"torch": nn.LSTM, "lstm": ours("lstm"), "lem": ours("lem")}),
            (forecaster, {"torch": nn.GRU, "gru": ours("gru"), "mut1": ours("mut1")}),
        )
        for label, recurrent in classes.items()
    ],
)
def test_programs_run_with_the_class_swapped(
    program: Callable[[Recurrent], list[float]], recurrent: Recurrent
) -> None:
    losses = program(recurrent)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


# -- arguments of the constructor ------------------------------------------------------------------


@pytest.mark.parametrize("name", cg.zoo.names())
def test_without_biases_the_cell_computes_as_with_zeros(name: str) -> None:
    cell = cg.load(name)
    names = biases(cell)
    full = cg.compile(cell, X, H, backend="eager", dtype=torch.float64)
    bare = cg.compile(cell, X, H, backend="eager", dtype=torch.float64, bias=False)
    assert (bare.bias, full.bias) == (False, True)
    assert [p.name for p in bare.cell.params] == [
        p.name for p in cell.params if p.name not in names
    ]
    values = full.state_dict()
    for bias in names:
        values[f"cells.0.{bias}"].zero_()
    bare.load_state_dict({key: values[key] for key in bare.state_dict()})
    x = torch.randn(4, 2, X, dtype=torch.float64)
    assert_close(flat(*bare(x)), flat(*full(x)), 1e-12)
    assert cg.parse(str(bare.cell)) == bare.cell


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("h' = tanh(W @ x + U @ h + b)", ["W", "U"]),
        ("h' = b - U @ h - W @ x", ["W", "U"]),
        ("h' = tanh(W @ x + (b - d)) * h + (h - (1 - e))", ["W"]),
        ("h' = tanh(W @ x + b * h)", ["W", "b"]),  # a weight
        ("h' = tanh(W @ x) + (1 - b) * h", ["W", "b"]),  # a gate without x
        ("h' = tanh(W @ x + b) + b * h", ["W", "b"]),  # both
        ("h' = tanh(W @ x + U @ (h + b))", ["W", "U"]),
        ("h' = b", ["b"]),
        ("scalar b\n h' = tanh(W @ x + b)", ["W", "b"]),
    ],
)
def test_what_a_bias_is(line: str, found: list[str]) -> None:
    layer = cg.compile(cg.parse(f"cell a(x, h)\n {line}"), X, H, bias=False)
    assert sorted(p.name for p in layer.cell.params) == sorted(found)


def test_a_bias_that_the_widths_hang_on() -> None:
    text = "cell a(x, h, r: P)\n q = V @ h + b\n h' = tanh(U @ q)\n r' = tanh(W @ x + b + r)"
    message = r"cell a without its biases b has other widths \(U, V\), expected bias=True"
    with pytest.raises(cg.CellError, match=message):
        cg.compile(cg.parse(text), X, H, widths={"P": 2}, bias=False)


@pytest.mark.parametrize("name", ["lstm_projection_torch", "lstm_projection"])
def test_projection(name: str) -> None:
    layer = cg.compile(name, X, H, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
    theirs = nn.LSTM(X, H, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
    shapes = [(4, 6, X), (4, 6, 2), (4, 6, H)]
    x, *state = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for given in (None, tuple(state)):
        wanted = [value.shape for value in flat(*theirs(x, given))]
        assert [value.shape for value in flat(*layer(x, given))] == wanted
    assert layer.proj_size == 2
    assert cg.compile(name, X, H).proj_size == 0
    assert "proj_size=2" in repr(layer)
    same = cg.compile(layer.cell, X, H, 2, bidirectional=True, widths={"P": 2}).double()
    same.load_state_dict(layer.state_dict())
    assert_close(flat(*same(x)), flat(*layer(x)))
    assert cg.compile(layer.cell, X, H, proj_size=3).state_sizes == (3, H)


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("lstm", {"proj_size": 2}, "cell lstm has no projection, expected proj_size=0 or a cell whose"),
    ("lstm_projection", {"proj_size": -1}, "proj_size is -1, expected a whole number of at least"),
    ("lstm_projection", {"proj_size": 2, "widths": {"P": 2}}, "width P and proj_size are one size"),
    (
        "lstm_projection",
        {"proj_size": 2, "widths": {"Q": 2}},
        "cell lstm_projection has no width Q",
    ),
    ("lstm", {"bias": "no"}, "bias is 'no', expected True or False"),
    ("lstm", {"batch_first": 2}, "batch_first is 2, expected True or False"),
    ("lstm", {"bidirectional": 0.5}, "bidirectional is 0.5, expected True or False"),
    # What stands behind num_layers in torch's order: bias, batch_first, dropout.
    ("lstm", {"batch_first": True, "dropout": True}, "dropout is True, expected a number from 0"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.compile(name, X, H, **arguments)
    assert str(caught.value).startswith(message)


def test_repr_shows_what_was_asked_for_and_the_equations() -> None:
    text = repr(cg.compile("lstm", X, H, 2, bias=False, dropout=0.5))
    assert "lstm, 3, 5, num_layers=2, bias=False, dropout=0.5, backend=auto" in text
    assert "i  = sigmoid(W_i @ x + U_i @ h)" in text
    assert "h' = o * tanh(c')" in text
    assert "bias=" not in repr(cg.compile("lstm", X, H))


# -- one step at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gru", "lstm", "mut1"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_equal_the_sequence(name: str, batch_first: bool) -> None:
    layer = cg.compile(name, X, H, 2, batch_first, backend="eager")
    x = torch.randn(6, 4, X)
    y, last = layer(x.transpose(0, 1) if batch_first else x)
    found, state = [], None
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        assert y_t.shape == (4, H)
        found.append(y_t)
    wanted = y.transpose(0, 1) if batch_first else y
    assert_close(flat(torch.stack(found), state), flat(wanted, last))
    alone, state = [], None  # without a batch
    for x_t in x[:, 1]:
        y_t, state = layer.step(x_t, state)
        assert y_t.shape == (H,)
        alone.append(y_t)
    wanted_last = [value[:, 1] for value in flat(y, last)[1:]]
    assert_close(flat(torch.stack(alone), state), [wanted[:, 1], *wanted_last])


def test_steps_that_are_refused() -> None:
    layer = cg.compile("lstm", X, H)
    for x, found in (
        (torch.zeros(2, X + 1), "(2, 4)"),
        (torch.zeros(1, 2, X), "(1, 2, 3)"),
        (1, "int"),
    ):
        with pytest.raises(cg.CellError) as caught:
            layer.step(x)  # type: ignore[arg-type]
        assert str(caught.value) == f"x of a step is {found}, expected (batch, 3)"
    with pytest.raises(cg.CellError, match="state h has shape"):
        layer.step(torch.zeros(2, X), (torch.zeros(1, 3, H), torch.zeros(1, 3, H)))
    with pytest.raises(cg.CellError, match="a bidirectional layer cannot go step by step"):
        cg.compile("lstm", X, H, bidirectional=True).step(torch.zeros(2, X))


# -- what torch does with modules ------------------------------------------------------------------


@BACKENDS
def test_copies_and_files(backend: str) -> None:
    layer = cg.compile("lstm", X, H, 2, bias=False, backend=backend)
    x = torch.randn(4, 2, X)
    wanted = flat(*layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for other in (*copies, torch.load(file, weights_only=False)):
        assert_close(flat(*other(x)), wanted, 0)
        assert repr(other) == repr(layer)
        next(iter(other.parameters())).data.add_(1)
        assert not torch.equal(other(x)[0], wanted[0])
    assert_close(flat(*layer(x)), wanted, 0)


def replicated(module: nn.Module) -> nn.Module:
    """As torch.nn.parallel.replicate makes copies on other devices: the parameters of a replica are
    plain attributes, and the rest is shared."""
    replica = module._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    for name, child in module._modules.items():
        if child is not None:
            replica._modules[name] = replicated(child)
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter.clone())
    return replica  # type: ignore[no-any-return]


@BACKENDS
@pytest.mark.parametrize("name", ["lstm", "mut1"])
def test_replicas_of_data_parallel(backend: str, name: str) -> None:
    layer = cg.compile(name, X, H, 2, bidirectional=True, backend=backend)
    x = torch.randn(4, 6, X)
    wanted = layer(x)[0]
    halves = [replicated(layer)(part)[0] for part in x.chunk(2, dim=1)]
    found = torch.cat(halves, dim=1)
    assert_close([found], [wanted])
    over = list(layer.parameters())
    assert_close(gradients([found], over), gradients([wanted], over), 1e-5)
    whole = nn.DataParallel(layer, dim=1)  # without a device it calls the module itself
    assert_close([whole(x)[0]], [wanted])


@BACKENDS
def test_functional_call(backend: str) -> None:
    layer, other = (cg.compile("lstm", X, H, 2, backend=backend) for _ in range(2))
    x = torch.randn(4, 2, X)
    params = dict(other.named_parameters())
    found = torch.func.functional_call(layer, params, (x,))
    assert_close(flat(*found), flat(*other(x)), 0)
    over = list(other.parameters())
    assert_close(gradients([found[0]], over), gradients([other(x)[0]], over), 0)


def test_gradients_and_ensembles_of_torch_func() -> None:
    layers = [cg.compile("gru", X, H) for _ in range(3)]
    x = torch.randn(4, 2, X)

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        y, _ = torch.func.functional_call(layers[0], params, (x,))
        return y.square().sum()

    stacked, _ = torch.func.stack_module_state(layers)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, x)
    for i, layer in enumerate(layers):
        layer(x)[0].square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            assert_close([found[name][i]], [parameter.grad], 1e-5)


@BACKENDS
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(backend: str, reentrant: bool) -> None:
    layer = cg.compile("lstm", X, H, 2, backend=backend)
    x = torch.randn(4, 6, X, requires_grad=True)
    over = [x, *layer.parameters()]
    # A reentrant checkpoint gives gradients to a tuple of tensors and not to tuples in it (torch's
    # LSTM has the same), and knows one way of asking for them.
    count = 1 if reentrant else 3
    wanted = gradients(flat(*layer(x))[:count], over)
    results = flat(*checkpoint(layer, x, use_reentrant=reentrant))[:count]
    rng, total = torch.Generator().manual_seed(1), torch.zeros((), dtype=torch.float64)
    for value in results:
        total = total + (value * torch.randn(value.shape, generator=rng, dtype=total.dtype)).sum()
    total.backward()
    assert_close([v.grad for v in over if v.grad is not None], wanted, 1e-5)


@BACKENDS
def test_a_checkpoint_holds_nothing_that_it_can_compute_again(backend: str) -> None:
    layer = cg.compile("lstm", X, H, backend=backend)
    x = torch.randn(50, 8, X, requires_grad=True)

    def saved(run: Callable[[], Any]) -> int:
        """The numbers that are kept for a backward pass, in pieces that torch knows of."""
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value: (sizes.append(value.numel()), value)[1], lambda value: value
        ):
            run()
        return sum(sizes)

    assert saved(lambda: layer(x)) > 50 * 8 * 4 * H
    assert saved(lambda: checkpoint(layer, x, use_reentrant=False)) == x.numel()


@BACKENDS
def test_hooks_that_give_back_copies(backend: str) -> None:
    layer = cg.compile("gru", X, H, backend=backend)
    x = torch.randn(4, 2, X, requires_grad=True)
    over = [x, *layer.parameters()]
    wanted = gradients(flat(*layer(x)), over)
    for unpack in (lambda v: v.clone(), lambda v: torch.cat([v, v])[: len(v)].double().float()):
        with torch.autograd.graph.saved_tensors_hooks(lambda v: v.detach().clone(), unpack):
            results = flat(*layer(x))
        for _ in range(2):
            assert_close(gradients(results, over), wanted, 1e-5)


#: Every cell in bfloat16, some in the type that overflows.
LOW = [(name, torch.bfloat16) for name in cg.zoo.names()]
LOW += [(name, torch.float16) for name in ("gru", "lstm", "mut1", "slstm", "min_gru_log")]


@pytest.mark.parametrize(("name", "dtype"), LOW)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    layer = cg.compile(name, X, H)
    low = copy.deepcopy(layer).to(dtype)
    x = torch.rand(3, 2, X)
    y, last = low(x.to(dtype))
    assert {value.dtype for value in flat(y, last)} == {dtype}
    assert_close([y.float()], [layer(x)[0]], 0.1)
    y.float().square().sum().backward()
    assert all(p.grad is None or p.grad.dtype == dtype for p in low.parameters())
    assert any(p.grad is not None for p in low.parameters())


@pytest.mark.parametrize(("name", "dtype"), LOW)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    layer = cg.compile(name, X, H, 2)
    x = torch.rand(3, 2, X)
    with torch.autocast("cpu", dtype):
        y, last = layer(x)
        again, _ = layer(x, last)  # in whatever type it came back
        layer(x.to(dtype))
    assert_close([y.float()], [layer(x)[0]], 0.1)
    (y.float().sum() + again.float().sum()).backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


def test_moving_to_another_type_and_device() -> None:
    layer = cg.compile("lstm", X, H)
    x = torch.randn(4, 2, X)
    wanted = flat(*layer(x))
    assert_close([v.float() for v in flat(*layer.to(torch.float64)(x.double()))], wanted, 1e-5)
    assert_close(flat(*layer.to("cpu", torch.float32)(x)), wanted)
    assert layer.to("meta")(x.to("meta"))[0].shape == (4, 2, H)
    made = cg.compile("lstm", X, H, device="meta").to_empty(device="cpu")
    made.reset_parameters()
    assert made(x)[0].isfinite().all()


def test_the_attributes_of_torch() -> None:
    theirs = nn.LSTM(X, H, 2, bidirectional=True, batch_first=True, dropout=0.5)
    layer = cg.compile("lstm", X, H, 2, bidirectional=True, batch_first=True, dropout=0.5)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                 "bidirectional", "proj_size", "training"):  # fmt: skip
        assert getattr(layer, name) == getattr(theirs, name), name
    assert layer.flatten_parameters() is theirs.flatten_parameters() is None
    assert isinstance(layer, CellLayer)

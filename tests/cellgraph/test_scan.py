"""The scan backend: which cells it can run, and that it computes what a loop computes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

import cellgraph as cg
from cellgraph import CellError
from cellgraph.recurrence import solve
from cellgraph.scan import SHORT, scan
from tests.cellgraph.test_layer import (
    EDGES,
    assert_defined,
    assert_equal,
    compiled,
    entering,
    flat,
    given_state,
)
from tests.strategies import gradients

#: With the order in which their states are solved.
SOLVED = {
    "gated": (
        "cell a(x, h)\n z = sigmoid(W_z @ x + b_z)\n h' = (1 - z) * h + z * (W @ x + b)",
        ["h"],
    ),
    "by the difference": ("cell a(x, h)\n h' = h + sigmoid(W_z @ x) * (tanh(W @ x) - h)", ["h"]),
    "quotients": (
        "cell a(x, h)\n f = sigmoid(W_f @ x)\n i = sigmoid(W_i @ x)\n"
        " h' = f / (f + i) * h + (i * (W @ x) - h) / (f + i)",
        ["h"],
    ),
    "previous input": (
        "cell a(x, h, c, v)\n f = sigmoid(W_f @ x + V_f @ v)\n z = tanh(W_z @ x + V_z @ v)\n"
        " c' = f * c + (1 - f) * z\n h' = sigmoid(W_o @ x + V_o @ v) * c'\n v' = x",
        ["v", "c", "h"],
    ),
    "output of a function": (
        "cell a(x, h, c)\n f = sigmoid(W_f @ x)\n c' = f * c + (1 - f) * (W @ x)\n"
        " h' = f * tanh(c') + (1 - f) * x",
        ["c", "h"],
    ),
    "one state behind the other": (
        "cell a(x, h, c)\n c' = 0.9 * c + W @ x\n z = sigmoid(p * c + U @ c')\n"
        " h' = h - z * (U_h @ c + h) / 2",
        ["c", "h"],
    ),
    "fixed factor": ("cell a(x, h)\n scalar s\n h' = -(sigmoid(s) * h) + W @ x", ["h"]),
    "factor alone": ("cell a(x, h)\n h' = sigmoid(W @ x) * h", ["h"]),
    "no end": ("cell a(x, h)\n h' = h + W @ x", ["h"]),
    "swapped and solved": (
        "cell a(x, h, c) -> y\n c' = tanh(W @ x)\n h' = c\n y = h * c",
        ["c", "h"],
    ),
}

#: Cells that need a loop.
LOOPS = {
    "a matrix": "cell a(x, h)\n h' = U @ h + W @ x",
    "a function": "cell a(x, h)\n h' = tanh(W @ x + u * h)",
    "its square": "cell a(x, h)\n h' = h * h + W @ x",
    "a quotient": "cell a(x, h)\n h' = sigmoid(W @ x) / (2 + h)",
    "a gate that sees it": "cell a(x, h)\n h' = sigmoid(W @ x + u * h) * h",
    "around through another": "cell a(x, h, c)\n h' = c + W @ x\n c' = h / 2",
    "a greatest": "cell a(x, h)\n h' = max(h, W @ x)",
}


@pytest.mark.parametrize(("text", "order"), SOLVED.values(), ids=SOLVED)
def test_solved_states_equal_a_loop(text: str, order: list[str]) -> None:
    cell = cg.parse(text)
    found = solve(cell)
    assert found is not None
    assert [part.state for part in found] == order
    for steps in (1, SHORT - 1, SHORT, 30):
        assert_defined(compiled(cell, backend="scan"), steps, 3)
    assert_defined(compiled(cell, num_layers=2, bidirectional=True, backend="scan"), 17, 2)


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_what_needs_a_loop_is_refused(text: str) -> None:
    cell = cg.parse(text)
    assert solve(cell) is None
    with pytest.raises(CellError, match="the scan backend cannot run a: expected states that are"):
        cg.compile(cell, 3, 3, backend="scan")


def test_cells_at_the_edge() -> None:
    solvable = {name for name, text in EDGES.items() if solve(cg.parse(text)) is not None}
    assert solvable == {"state never changes", "state is made of parameters"}
    for name in solvable:
        assert_defined(compiled(cg.parse(EDGES[name]), backend="scan"), 12, 2)


@given(st.sampled_from([text for text, _ in SOLVED.values()]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_mutants_equal_a_loop(text: str, seed: int) -> None:
    child = cg.mutate(cg.parse(text), random.Random(seed))
    if child is None or solve(child) is None:
        return
    layer = compiled(child, backend="scan")
    loop = compiled(child, backend="eager")
    loop.load_state_dict(layer.state_dict())
    x, state = entering(layer, 13, 2)
    over = [*layer.parameters(), x, *state]
    results = flat(*layer(x, given_state(state)))
    if not all(bool(value.isfinite().all()) for value in results):
        return
    wanted = flat(*loop(x, given_state(state)))
    assert_equal(results, wanted)
    expected = gradients(wanted, [*loop.parameters(), x, *state])
    for ours, theirs in zip(gradients(results, over), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SOLVED)
def test_sequences_of_different_lengths(name: str) -> None:
    layer = compiled(cg.parse(SOLVED[name][0]), backend="scan")
    xs = [entering(layer, steps, 1, seed=steps)[0] for steps in (12, 9, 1)]
    _, state = entering(layer, 1, 3)
    y, last = layer(pack_sequence([x[:, 0] for x in xs]), given_state(state))
    alone = [layer(x, given_state([s[:, i : i + 1] for s in state])) for i, x in enumerate(xs)]
    wanted = pack_sequence([out[:, 0] for out, _ in alone]).data
    ends = [torch.cat(parts, 1) for parts in zip(*(flat(*a)[1:] for a in alone), strict=True)]
    over = [*layer.parameters(), *xs, *state]
    assert_equal([y.data, *flat(y, last)[1:]], [wanted, *ends], over)


def test_what_lies_behind_the_end_leaves_gradients_finite() -> None:
    """There the state would grow without end, and the root of what is left has no derivative."""
    cell = cg.parse("cell a(x, h, c)\n c' = 1e30 * c + W @ x\n h' = sqrt(square(c) + square(x))")
    layer = cg.compile(cell, 2, 2, backend="scan")
    long, short = torch.zeros(40, 2), torch.ones(1, 2)
    long[0] = 1.0
    x = [long.requires_grad_(), short.requires_grad_()]
    y, _ = layer(pack_sequence(x))
    (y.data[0] + y.data[1]).sum().backward()
    assert short.grad is not None
    assert short.grad.isfinite().all()


def test_float32_stays_within_1e_5_of_a_loop() -> None:
    cell = cg.parse(SOLVED["gated"][0])
    layer, loop = (cg.compile(cell, 8, 16, backend=b) for b in ("scan", "eager"))
    loop.load_state_dict(layer.state_dict())
    x = torch.randn(500, 3, 8, generator=torch.Generator().manual_seed(0))
    results, wanted = layer(x)[0], loop(x)[0]
    torch.testing.assert_close(results, wanted, rtol=1e-5, atol=1e-5)


def test_second_derivatives() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(SHORT + 3, 2, 2), (SHORT + 3, 2, 2), (2, 2)]
    inputs = [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(scan, inputs)
    assert torch.autograd.gradgradcheck(scan, inputs)


def test_a_factor_of_zero_and_large_ones() -> None:
    factor = torch.full((100, 1, 3), 2.0)
    factor[50, 0, 0], factor[:, 0, 1] = 0.0, 1e-30
    term, first = torch.ones(100, 1, 3), torch.ones(1, 3)
    wanted = first
    for step in range(100):
        wanted = factor[step] * wanted + term[step]
    torch.testing.assert_close(scan(factor, term, first)[-1], wanted)


def test_tokens_and_autocast() -> None:
    layer = cg.compile(cg.parse(SOLVED["previous input"][0]), 6, 6, backend="scan")
    table = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(5, (12, 3), generator=torch.Generator().manual_seed(1))
    y, _ = layer.lookup(table, tokens)
    torch.testing.assert_close(y, layer(table[tokens])[0])
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = layer(table[tokens])
    torch.testing.assert_close(rough.float(), y, rtol=0.1, atol=0.05)

"""The screen: every check rejects what it is for, known cells pass, and the numbers are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.interpret import unroll
from evaluators import DataError, probe
from evaluators.probe import LAG, LENGTH, Start, behaviours, draw, lasting
from evaluators.screen import NUMBERS, SCALES, check_graph, screen
from tests.strategies import cells


def of(*lines: str, header: str = "(x, h)") -> CellGraph:
    return cg.parse(f"cell a{header}\n" + "\n".join(f"    {line}" for line in lines))


def checked(cell: CellGraph, **options: int) -> str | None:
    found = screen(cell, **options)
    return None if found is None else found.check


# -- the graph ------------------------------------------------------------------------------------


def test_a_cell_that_ignores_x() -> None:
    assert checked(of("h' = tanh(U @ h + b)")) == "input"
    # x reaches a state, but no state that has seen it reaches the output.
    blind = of("h' = tanh(U @ h + b)", "c' = W @ x + c", header="(x, h, c)")
    assert checked(blind) == "input"


@pytest.mark.parametrize(
    "cell",
    [
        of("h' = tanh(W @ x + b)"),
        of("h' = tanh(W @ x + U @ h)", "y = tanh(V @ x)", header="(x, h) -> y"),
        of("c' = tanh(V @ c + b)", "h' = c + tanh(W @ x)", header="(x, h, c)"),
    ],
)
def test_a_cell_that_ignores_the_past(cell: CellGraph) -> None:
    assert checked(cell) == "past"


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("h' = sign(W @ x + U @ h + b)", "a previous state"),
        ("h' = tanh(W @ x + step(h))", "a previous state"),
        ("h' = 0.5 * h + 0.5 * x", "a parameter"),
        ("h' = 0.5 * h + sign(W @ x)", "a parameter"),
    ],
)
def test_a_gradient_that_cannot_flow_back(line: str, missing: str) -> None:
    found = screen(of(line))
    assert found is not None
    assert found.check == "path"
    assert missing in found.reason


def test_one_path_with_a_gradient_is_enough() -> None:
    assert check_graph(of("h' = tanh(W @ x + U @ h) * (2 + sign(h))")) is None
    # The parameter acts an earlier step: on the state that the output reads.
    later = of("y = h * x", "h' = tanh(W @ x + U @ h)", header="(x, h) -> y")
    assert check_graph(later) is None


# -- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "line"),
    [
        ("finite", "h' = 2 * h + W @ x"),
        ("finite", "h' = log(W @ x + U @ h)"),
        ("finite", "h' = sqrt(W @ x + U @ h)"),
        ("finite", "h' = (W @ x + U @ h) / h"),
        ("constant", "h' = 0 * tanh(W @ x + U @ h)"),
        ("constant", "h' = h * tanh(W @ x + b)"),
        ("constant", "h' = relu(W @ x + U @ h - 100)"),
        ("constant", "h' = 1000000 + tanh(W @ x + U @ h) * 0.00001"),
        ("exploding", "h' = 100 * h + W @ x"),
        ("exploding", "h' = tanh(W @ x + U @ h) + sqrt(W @ x - W @ x)"),  # inf - inf
        ("dead", "h' = x + 0 * tanh(W @ x + U @ h)"),
        ("dead", "h' = W @ x + relu(U @ h - 100)"),
        ("memory", "h' = tanh(W @ x + 0.01 * h)"),
    ],
)
def test_each_check_on_numbers(check: str, line: str) -> None:
    found = screen(of(line))
    assert found is not None
    assert found.check == check
    assert "\n" not in found.reason
    assert re.search(r" at parameter scale (0\.7|1\.4|2)$", found.reason)


def test_an_infinite_start_is_not_finite() -> None:
    huge = of("h' = tanh(W @ x + U @ h) + b", "init b = 1e300")
    assert checked(huge) == "finite"
    assert checked(of("h' = 1e300 * tanh(W @ x + U @ h)")) == "finite"


def test_a_delay_line_holds_nothing() -> None:
    delay = of("h' = tanh(U @ c)", "c' = tanh(W @ x)", header="(x, h, c)")
    assert checked(delay) == "dead"


def test_the_reason_counts_steps() -> None:
    found = screen(of("h' = 2 * h + W @ x"))
    assert found is not None
    count = re.fullmatch(r"not finite after (\d+) steps at parameter scale 0.7", found.reason)
    assert count is not None
    assert 125 <= int(count[1]) <= 132  # 2^128 is the largest number of float32


def test_steps_are_those_asked_for() -> None:
    doubling = of("h' = 2 * h + W @ x")
    assert checked(doubling, steps=100) is None
    assert checked(doubling, steps=1) is None
    for steps in (0, -1, True, 1.5):
        with pytest.raises(DataError, match="steps"):
            screen(doubling, steps=steps)  # type: ignore[arg-type]


def chain(length: int) -> CellGraph:
    """The state through `length` matrices: each has the spectral radius s / √3."""
    return of("h' = W @ x + " + "".join(f"U{i} @ " for i in range(length)) + "h")


def test_one_good_scale_is_enough() -> None:
    cell = chain(4)
    assert [n == 200 for n in lasting(cell, draw(cell, SCALES, 200, 0), 200)] == [True, True, False]
    assert screen(cell) is None


def test_different_faults_at_all_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, alone = chain(12), []
    for scale in SCALES:
        monkeypatch.setattr("evaluators.screen.SCALES", (scale,))
        alone.append(checked(cell))
    monkeypatch.setattr("evaluators.screen.SCALES", SCALES)
    assert None not in alone
    assert len(set(alone)) > 1
    assert checked(cell) == max((c for c in alone if c), key=NUMBERS.index)


# -- cells that have to pass ----------------------------------------------------------------------


#: The Jordan network sees its past through two sigmoids; ENAS, at most draws of its parameters,
#: through a dozen averaged ones.
FORGETFUL = {"jordan", "enas"}


@pytest.mark.parametrize("name", sorted({*cg.zoo.names()} - FORGETFUL))
def test_the_zoo_passes(name: str) -> None:
    cell = cg.load(name)
    assert [screen(cell, seed=seed) for seed in range(5)] == [None] * 5


@pytest.mark.parametrize("name", sorted(FORGETFUL))
def test_named_cells_that_forget(name: str) -> None:
    found = [screen(cg.load(name), seed=seed) for seed in range(8)]
    assert {rejection.check for rejection in found if rejection} == {"memory"}


@pytest.mark.parametrize(
    "cell",
    [
        of("r' = tanh(W @ x + U @ h)", "h' = V @ r' + 0.5 * h", header="(x, h, r: P)"),
        of("r' = tanh(W @ x + U @ r)", "h' = r' * x + 0.5 * h", header="(x, h, r) -> r"),
        of("y = O @ h", "h' = tanh(W @ x + U @ h)", "r' = y + 0 * r", header="(x, h, r: P) -> y"),
        of("scalar a", "h' = tanh(a * x + U @ h)", "init a = 0.9", "init U = identity(0.9)"),
        of("h' = 0.9 * h + W @ step(x)"),  # no gradient by x, and none needed
    ],
)
def test_unusual_cells_pass(cell: CellGraph) -> None:
    assert [screen(cell, seed=seed) for seed in range(5)] == [None] * 5


@pytest.mark.parametrize(
    "cell",
    [  # mutants that memorise; of 304 such the least memory, the largest gradient
        of("r = sigmoid(W_r @ x + U_r @ h + b_r)",
           "g = tanh(U_g @ (r * h) + sigmoid(x) + b_g)",
           "h' = g * x + h * U_z @ tanh(h)"),
        of("i = sigmoid(W_i @ x + U_i @ h + p_i * c + b_i)",
           "g = tanh(W_g @ x + U_g @ h + b_g)",
           "c' = (V @ h) * c + i * g",
           "o = sigmoid(W_o @ x + U_o @ h + p_o * c' + b_o)",
           "h' = o * tanh(c')", header="(x, h, c)"),
        of("h' = x - (W @ h + b)", "init W = identity(1.1)"),
    ],
)  # fmt: skip
def test_borderline_cells_pass(cell: CellGraph) -> None:
    assert [screen(cell, seed=seed) for seed in range(3)] == [None] * 3


@settings(max_examples=60, deadline=None)
@given(cell=cells())
def test_no_cell_raises(cell: CellGraph) -> None:
    found = screen(cell, steps=50)
    assert found == screen(cell, steps=50)
    if found is not None:
        assert found.check in ("input", "past", "path", *NUMBERS)
        assert found.reason
        assert "\n" not in found.reason


# -- what is measured -----------------------------------------------------------------------------


def at(start: Start, scale: int) -> dict[str, Tensor]:
    """The parameters of one scale in float64, as the interpreter takes them."""
    return {name: value[scale].double().mT for name, value in start.params.items()}


def interpreted(
    cell: CellGraph, params: dict[str, Tensor], x: Tensor, widths: dict[str, int]
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Outputs (T, B, N) and the states after every step."""
    shaped = {p.name: params[p.name].reshape(p.shape(widths)) for p in cell.params}
    state = tuple(x.new_zeros(x.shape[1], widths[s.width]) for s in cell.states)
    outputs, states = [], []
    for x_t in x:
        y, state = unroll(cell, shaped, x_t[None], state)
        outputs.append(y[0])
        states.append(state)
    return torch.stack(outputs), states


@settings(max_examples=40, deadline=None)
@given(cell=cells(smooth=True))
def test_unroll_is_the_interpreter(cell: CellGraph) -> None:
    if check_graph(cell) is not None:
        return
    start = draw(cell, SCALES, 6, 3)
    history = probe.unroll(cell, start, 6)
    for scale in range(len(SCALES)):
        x = start.x[:6, scale].double()
        outputs, states = interpreted(cell, at(start, scale), x, start.widths)
        for t in range(6):
            for found, expected in zip(history[t], (*states[t], outputs[t]), strict=True):
                got = found[scale].double()
                assert got.shape == expected.shape
                close = torch.isclose(got, expected, rtol=1e-3, atol=1e-4)
                assert bool((close | ~expected.isfinite() | (expected.abs() > 1e30)).all())


@pytest.mark.parametrize("name", ["gru", "lstm", "mut1", "antisymmetric_rnn"])
def test_behaviour_against_the_interpreter(name: str) -> None:
    cell = cg.load(name)
    start = draw(cell, SCALES, LENGTH, 1)
    for scale, found in enumerate(behaviours(cell, start)):
        params = {n: p.requires_grad_() for n, p in at(start, scale).items()}
        x = start.x[:LENGTH, scale].double()
        swapped = torch.cat([x[:1].roll(1, dims=1), x[1:]])
        asked, gradients = [], [torch.zeros_like(p) for p in params.values()]
        state = 0.0
        for rows in (x, swapped):
            y, states = interpreted(cell, params, rows, start.widths)
            asked.append(y[LAG:].detach())
            total = (y[LAG:] * start.projection[:, 0].double()).sum()
            grads = torch.autograd.grad(total, [*params.values(), *states[0]])
            gradients = [a + b for a, b in zip(gradients, grads, strict=False)]
            state += sum(float(g.square().sum()) for g in grads[len(params) :])
        once, again = asked
        assert found.finite == LENGTH
        expected = {
            "size": max(float(v.abs().max()) for v in asked),
            "variation": float((once - once.mean(1, keepdim=True)).square().mean().sqrt()),
            "memory": float((once - again).square().mean().sqrt()),
            "params": sum(float(g.square().sum()) for g in gradients) ** 0.5,
            "state": state**0.5,
        }
        if len(cell.states) > 1:  # there a state of the first step is read by another of that step
            del expected["state"]
        for field, value in expected.items():
            assert getattr(found, field) == pytest.approx(value, rel=1e-3), field


@pytest.mark.parametrize("text", ["gru", "chain", "projected"])
def test_scales_together_are_scales_apart(text: str) -> None:
    projected = of("r' = tanh(W @ x + U @ h)", "h' = V @ r' + h", header="(x, h, r: P)")
    cell = {"gru": cg.load("gru"), "chain": chain(4), "projected": projected}[text]
    start = draw(cell, SCALES, 200, 0)
    together, counts = behaviours(cell, start), lasting(cell, start, 200)
    for i in range(len(SCALES)):
        params = {name: value[i : i + 1] for name, value in start.params.items()}
        one = replace(start, params=params, x=start.x[:, i : i + 1])
        (alone,) = behaviours(cell, one)
        assert alone.finite == together[i].finite
        for field in ("size", "variation", "memory", "params", "state"):
            assert getattr(alone, field) == pytest.approx(getattr(together[i], field), rel=1e-4)
        assert lasting(cell, one, 200) == [counts[i]]


def test_parameters_start_as_in_a_layer() -> None:
    cell = of("h' = tanh(W @ x + U @ h + b + c)", "init U = identity(0.9)", "init c = 0.25")
    start = draw(cell, SCALES, 20, 0)
    for i, scale in enumerate(SCALES):
        bound = scale / probe.HIDDEN**0.5
        diagonal = start.params["U"][i].diagonal()
        assert float((diagonal - 0.9).abs().max()) <= bound
        assert bool((start.params["c"][i] == 0.25).all())
        for value in (start.params["W"][i], start.params["b"][i], start.x[:, i]):
            assert 0.8 * bound < float(value.abs().max()) <= bound
    assert not torch.equal(start.params["W"][0] / SCALES[0], start.params["W"][1] / SCALES[1])


# -- a pure function ------------------------------------------------------------------------------

SCRIPT = """
import cellgraph as cg
from evaluators.probe import behaviours, draw
from evaluators.screen import SCALES, screen
for line in ("2 * h + W @ x", "tanh(W @ x + 0.01 * h)", "sign(W @ x + U @ h)"):
    print(screen(cg.parse("cell a(x, h)\\n h' = " + line), seed=7))
for name in ("lstm_peephole", "fgr"):
    print(screen(cg.load(name), seed=7), behaviours(cg.load(name), draw(cg.load(name), SCALES, 20, 7)))
"""  # noqa: E501


def test_the_hash_seed_does_not_matter() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate(timeout=120)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert first == second
    assert first.count("Rejection(check=") == 3


def test_the_caller_does_not_matter() -> None:
    lines = ("h' = tanh(W @ x + U @ h)", "h' = tanh(W @ x + 0.01 * h)")
    plain = [screen(of(line)) for line in lines]
    before = torch.get_rng_state()
    with torch.no_grad():
        assert [screen(of(line)) for line in lines] == plain
    with torch.inference_mode():
        assert [screen(of(line)) for line in lines] == plain
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_matters() -> None:
    cell = cg.load("gru")
    assert behaviours(cell, draw(cell, SCALES, 10, 0)) != behaviours(
        cell, draw(cell, SCALES, 10, 1)
    )

"""Fingerprints: equal for one function in two forms, different for near misses; the op table on
numpy arrays."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellgraph as cg
from cellgraph.numeric import NUMPY, number
from cellgraph.ops import OPS, Op
from tests.cellgraph.test_canonical import disguised
from tests.cellgraph.test_ops import extremes, samples
from tests.strategies import cells

SUM = "W @ x + U @ h + b"


def cell(text: str) -> cg.CellGraph:
    """A cell of one state h, or with states a and b the output of the first line."""
    states = [s for s in "ab" if f" {s}' = " in text]
    if states:
        return cg.parse(f"cell a(x, {', '.join(states)}) -> y\n y = {text}")
    return cg.parse(f"cell a(x, h)\n h' = {text}")


# -- the op table on numpy -------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_numpy_is_torch(op: Op) -> None:
    for args in (samples(op), extremes(op)):
        wanted = op.eager(torch, *args)
        with np.errstate(all="ignore"):
            found = op.eager(NUMPY, *(a.numpy() for a in args))
        torch.testing.assert_close(
            torch.from_numpy(found), wanted, rtol=1e-13, atol=1e-14, equal_nan=True
        )


def test_numbers() -> None:
    assert number("add", 1, 2) == 3
    assert number("sigmoid", 0) == 0.5
    assert number("step", 2) == 1
    assert number("exp", 1e4) == np.inf
    assert np.isnan(number("log", -1))


# -- equal functions -------------------------------------------------------------------------------

EQUAL = {
    "distributive law": (f"tanh({SUM}) * (x + c)", f"tanh({SUM}) * x + c * tanh({SUM})"),
    "a common factor": (
        f"sin(V @ h + x) * ({SUM})",
        "S * (W @ x) + (U @ h) * S + S * b".replace("S", "sin(V @ h + x)"),
    ),
    "gates that change places": (
        "sigmoid(A @ x + B @ h) * tanh(C @ x + D @ h) + sigmoid(E @ x + F @ h) * sin(x)",
        "sigmoid(C @ x + D @ h) * tanh(E @ x + F @ h) + sigmoid(A @ x + B @ h) * sin(x)",
    ),
    "a square of parameters": (
        "tanh(x + h) + ((p * q + q * r) + (p * s + s * r))",
        "tanh(x + h) + (p + r) * (q + s)",
    ),
    "product of exponentials": ("exp(W @ h) * exp(x)", "exp(x + W @ h)"),
    "SiLU": (f"silu({SUM})", f"({SUM}) * sigmoid({SUM})"),
    "minimum by maximum": (f"min({SUM}, h)", f"-max(-h, -({SUM}))"),
    "tanh by sigmoid": (f"tanh({SUM})", f"2 * sigmoid(2 * ({SUM})) - 1"),
    "ReLU by abs": (f"relu({SUM})", f"({SUM} + abs({SUM})) / 2"),
    "matrix of a sum": ("tanh(W @ x + U @ (h + b))", "tanh(W @ x + (U @ h + U @ b))"),
    "a sign that refinement cannot see": (
        "cos(h - x) + x * (U @ h - V @ h)",
        "cos(x - h) - x * (V @ h - U @ h)",
    ),
    "NaN in the same places": (
        "log(x) * (a + b)\n a' = tanh(x - a)\n b' = sin(x * b + 1)",
        "log(x) * b + log(x) * a\n a' = tanh(x - a)\n b' = sin(1 + b * x)",
    ),
}


@pytest.mark.parametrize(("left", "right"), EQUAL.values(), ids=EQUAL)
def test_one_function_in_two_forms(left: str, right: str) -> None:
    a, b = cell(left), cell(right)
    assert cg.fingerprint(a) == cg.fingerprint(b)
    assert cg.same_function(a, b)
    assert cg.same_function(b, a)


def test_most_of_these_have_two_keys() -> None:
    """Otherwise they would say nothing about fingerprints."""
    keys = [cell(left).key() == cell(right).key() for left, right in EQUAL.values()]
    assert sum(keys) <= 3


def test_cells_that_never_leave_zero_are_one_function() -> None:
    """From zero states no input and no parameter ever shows in them, nor in a gradient."""
    a = cell("sigmoid(W @ x + U @ h) * h")
    b = cg.parse("cell b(x, h, c)\n c' = tanh(W @ x) * c\n h' = c' - relu(x) * h")
    assert cg.fingerprint(a) == cg.fingerprint(cell("tanh(U @ h) * (W @ x + b)"))
    assert cg.same_function(a, cell("tanh(U @ h) * (W @ x + b)"))
    assert not cg.same_function(a, b)  # b wants an x that is as wide as itself


def test_a_state_that_does_nothing_but_copy() -> None:
    a = cg.parse("cell a(x, h, c)\n h' = tanh(W @ x + U @ (h + c))\n c' = h")
    b = cg.parse("cell b(x, h, c, d)\n h' = tanh(W @ x + U @ c + U @ d)\n c' = h'\n d' = c")
    assert a.key() != b.key()
    assert cg.fingerprint(a) == cg.fingerprint(b)
    assert cg.same_function(a, b)


# -- near misses -----------------------------------------------------------------------------------

DIFFERENT = {
    "a bias less": (f"tanh({SUM})", "tanh(W @ x + U @ h)"),
    "a scalar for a vector": (f"tanh({SUM})", f"tanh({SUM})\n scalar b"),
    "a skew matrix for a free one": (f"tanh({SUM})", f"tanh({SUM})\n skew U"),
    "a start": (f"tanh({SUM})", f"tanh({SUM})\n init b = 1"),
    "another start": (
        f"tanh({SUM})\n init U = identity(1)",
        f"tanh({SUM})\n init U = identity(0.9)",
    ),
    "shared and apart": (
        "tanh(W @ x + U @ h) * sigmoid(V @ x + U @ h) + x",
        "tanh(W @ x + U @ h) * sigmoid(V @ x + Q @ h) + x",
    ),
    "one matrix twice and two matrices": ("W @ x + U @ h + V @ h", "W @ x + 2 * (U @ h)"),
    "a sum twice and two sums": (
        "W @ x + U @ h + (V @ x + Q @ h + b)",
        "(W @ x + U @ h) + b + (W @ x + U @ h)",
    ),
    "two biases for one": ("tanh(x + h + b)", "tanh(x + h + b + c)"),
    "a small number": (f"tanh({SUM})", f"tanh({SUM}) + 0.0000001"),
    "a factor close to one": (f"tanh({SUM})", f"1.0000001 * tanh({SUM})"),
    "softplus by exp": (f"softplus({SUM})", f"log(0.9999999 + exp({SUM}))"),
    "the other way round": ("W @ x - tanh(U @ h)", "tanh(U @ h) - W @ x"),
    "which of two is gated": (
        "sigmoid(A @ x) * (B @ x) + C @ h",
        "sigmoid(A @ x) * (C @ h) + B @ x",
    ),
    "raw and projected": ("tanh(x + U @ h)", "tanh(W @ x + U @ h)"),
    "abs that only some see": ("tanh(W @ x + abs(h))", "tanh(W @ x + h)"),
    "NaN in other places": ("a + log(x)\n a' = tanh(x - a)", "a + log(-x)\n a' = tanh(x - a)"),
}


@pytest.mark.parametrize(("left", "right"), DIFFERENT.values(), ids=DIFFERENT)
def test_near_misses(left: str, right: str) -> None:
    a, b = cell(left), cell(right)
    assert cg.fingerprint(a) != cg.fingerprint(b)
    assert not cg.same_function(a, b)
    assert cg.same_function(a, a)


def test_same_function_sees_more_than_the_fingerprint() -> None:
    """A kink beyond what the fingerprint draws, and one beyond what both do: a known limit."""
    a, far, farther = (
        cell(f"tanh(W @ x + U @ h){more}") for more in ("", " + relu(x - 2)", " + relu(x - 100)")
    )
    raw = cell("tanh(W @ x + U @ h) + x - x")
    assert cg.fingerprint(raw) == cg.fingerprint(far) == cg.fingerprint(farther)
    assert not cg.same_function(raw, far)
    assert cg.same_function(raw, farther)
    assert cg.fingerprint(a) != cg.fingerprint(raw)  # x at its own width


def test_what_parameters_do_only_together() -> None:
    """The fingerprint changes one at a time; all at once they have an effect."""
    plain, more = (cell(f"tanh(x + h){more}") for more in ("", " + (a - b) * (c - d)"))
    assert cg.fingerprint(plain) == cg.fingerprint(more)
    assert not cg.same_function(plain, more)
    assert cg.same_function(more, cell("(b - d) * (a - c) + tanh(h + x)"))


def test_parameters_that_show_only_in_the_last_comparison() -> None:
    """Below 1.1 they do nothing; the order of the others is known by then."""
    text = "tanh(W @ x + U @ h + b) + relu({} - 1.1) * sin(relu({} - 1.1))"
    one, other = cell(text.format("p", "q")), cell(text.format("q", "p"))
    assert cg.fingerprint(one) == cg.fingerprint(other)
    assert cg.same_function(one, other)
    for less in (text.format("p", "p"), text.format("p", "b"), "tanh(W @ x + U @ h + b)"):
        assert not cg.same_function(one, cell(less))
        assert not cg.same_function(cell(less), one)


def test_nothing_finite_tells_nothing() -> None:
    a = cell("log(-exp(W @ x + U @ h))")
    assert cg.fingerprint(a) == cg.fingerprint(cell("log(-exp(W @ x + U @ h) - 1)"))
    assert not cg.same_function(a, a)


def test_the_zoo() -> None:
    found: dict[str, list[str]] = {}
    for name in cg.zoo.names():
        found.setdefault(cg.fingerprint(cg.load(name)), []).append(name)
    assert [names for names in found.values() if len(names) > 1] == [["lstm", "np"]]
    assert all(len(f) == 16 and int(f, 16) >= 0 for f in found)


# -- any cell --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(cells(smooth=True), st.integers(0, 2**32))
def test_guises_of_a_drawn_cell(drawn: cg.CellGraph, seed: int) -> None:
    other = disguised(drawn, random.Random(seed))
    if other.widths == drawn.widths:  # named widths take their sizes in the order of the states
        assert cg.fingerprint(other) == cg.fingerprint(drawn)


def test_mutants_of_one_fingerprint_are_one_function() -> None:
    """Among children of small cells most flags are right, and a flag is never taken as proof."""
    rng = random.Random(3)
    flagged: dict[str, dict[str, cg.CellGraph]] = {}
    for _ in range(300):
        child = cg.mutate(cg.load(rng.choice(["gru", "tanh_rnn", "mut1"])), rng, edits=(1, 2))
        if child is not None:
            simple = cg.simplify(child)
            flagged.setdefault(cg.fingerprint(simple), {})[simple.key()] = simple
    pairs = [list(found.values()) for found in flagged.values() if len(found) > 1]
    verified = [cg.same_function(first, other) for first, *rest in pairs for other in rest]
    assert sum(verified) >= 0.8 * len(verified)
    assert len(flagged) > 100


CODE = """
import random
import cellgraph as cg
for name in cg.zoo.names():
    print(cg.fingerprint(cg.load(name)), cg.fingerprint(cg.mutate(cg.load(name), random.Random(5))
          or cg.load(name)))
"""


def test_fingerprints_do_not_depend_on_the_hash_seed() -> None:
    texts = set()
    for seed in ("0", "1"):
        env = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(Path(cg.__file__).parents[1]),
        }
        texts.add(
            subprocess.run(
                [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(texts) == 1
    assert texts.pop().startswith(cg.fingerprint(cg.load(cg.zoo.names()[0])))

"""Native code at the edges of the real numbers: saturated inputs, NaN and infinity behave as in the
interpreter; they spread as far as they should and no further."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from cellgraph.kernels import native
from cellgraph.ops import OPS
from tests.cellgraph.native_cells import Shape, compiled, defined, error, evolved, numbers, results
from tests.strategies import Sample

TYPES = {"float64": torch.float64, "float32": torch.float32}
DTYPES = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SPECIAL = (math.nan, math.inf, -math.inf, 1e4, -1e4, 0.0, 1.0, -1.0, 2.5, -30.0, 30.0, 1e-3, 1e30)

#: Every op of the table, with nothing before it that could hide a special value.
UNARY = cg.parse(
    "cell unary(x, h"
    + "".join(f", s_{name}" for name, op in OPS.items() if op.arity == 1)
    + ")\n h' = x\n"
    + "".join(
        f" s_{name}' = {'-x' if op.infix else f'{name}(x)'}\n"
        for name, op in OPS.items()
        if op.arity == 1
    )
)
BINARY = cg.parse(
    "cell binary(x, h"
    + "".join(f", s_{name}" for name, op in OPS.items() if op.arity == 2)
    + ")\n h' = h\n"
    + "".join(
        f" s_{name}' = {f'x {op.infix} h' if op.infix else f'{name}(x, h)'}\n"
        for name, op in OPS.items()
        if op.arity == 2
    )
)
ZOO = [cg.load(name) for name in ("lstm", "gru", "mut1", "lstm_peephole", "tanh_rnn")]


@pytest.fixture(scope="module", autouse=True)
def _all_at_once() -> None:
    for dtype in TYPES.values():
        native.prepare([UNARY, BINARY, *ZOO, *evolved(4, seed=3)], dtype)


def values(cell: cg.CellGraph, at: Sample) -> tuple[list[Tensor], list[Tensor]]:
    """By native code and by the interpreter."""
    return results(compiled(cell), at)[0], results(defined(cell), at)[0]


@DTYPES
def test_every_op_of_a_special_value(dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL, dtype=dtype).view(1, 1, -1)
    _, found = compiled(UNARY)({}, x, [torch.zeros_like(x[0]) for _ in UNARY.states])
    for index, value in enumerate(SPECIAL):
        # One at a time: gelu(inf) is inf, but in float32 torch's code for vectors gives NaN.
        alone = x[..., index : index + 1]
        _, wanted = defined(UNARY)({}, alone, [torch.zeros_like(alone[0]) for _ in UNARY.states])
        for declared, mine, theirs in zip(UNARY.states, found, wanted, strict=True):
            one, other = mine[0, index], theirs[0, 0]
            if declared.name in ("s_sin", "s_cos") and value == 1e30:
                assert -1 <= one <= 1  # what its sine is, no two libraries agree
            else:
                assert error([one], [other], 1e-30) < TOLERANCE[dtype], f"{declared.name} {value}"


@DTYPES
def test_every_op_of_two_special_values(dtype: torch.dtype) -> None:
    pairs = torch.tensor(list(itertools.product(SPECIAL, SPECIAL)), dtype=dtype)
    state = tuple(pairs[:, 1].clone().unsqueeze(0).requires_grad_() for _ in BINARY.states)
    at = Sample({}, pairs[:, 0].clone().view(1, 1, -1).requires_grad_(), state, {})
    found, wanted = values(BINARY, at)
    for declared, mine, theirs in zip(BINARY.states, found[1:], wanted[1:], strict=True):
        for pair, one, other in zip(pairs, mine[0], theirs[0], strict=True):
            assert error([one], [other], 1e-30) < TOLERANCE[dtype], f"{declared.name} of {pair}"


@DTYPES
@pytest.mark.parametrize("cell", ZOO, ids=lambda cell: cell.name)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_saturated_inputs(cell: cg.CellGraph, size: float, dtype: torch.dtype) -> None:
    at = numbers(cell, Shape(4, 3, 7, 7), dtype, seed=1)
    with torch.no_grad():
        at.x[1:3] = size
        at.x[2, 1] *= -1
    found, wanted = (results(run, at) for run in (compiled(cell), defined(cell)))
    assert all(value.isfinite().all() for value in [*wanted[0], *wanted[1]])
    assert error(found[0], wanted[0]) < TOLERANCE[dtype]
    assert error(found[1], wanted[1], floor=1e-3) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spreads_as_in_the_interpreter(
    special: float, dtype: torch.dtype
) -> None:
    """In x, in a first state, in a matrix and in a bias."""
    for number, cell in enumerate([*ZOO, *evolved(4, seed=3)]):
        for place in range(4):
            at = numbers(cell, Shape(5, 3, 17, 17), dtype, seed=number)
            tensors = [t for t in at.params.values() if t.dim() == 2 - place % 2]
            target = [at.x[2], at.state[-1], *tensors[-1:]][min(place, len(tensors[-1:]) + 1)]
            with torch.no_grad():
                target[1, 3 if target.dim() == 2 else ...] = special
            found, wanted = values(cell, at)
            assert error(found, wanted) < TOLERANCE[dtype], f"place {place}\n{cell}"


@DTYPES
@pytest.mark.parametrize("cell", ZOO, ids=lambda cell: cell.name)
def test_one_sequence_does_not_spoil_another(cell: cg.CellGraph, dtype: torch.dtype) -> None:
    at = numbers(cell, Shape(4, 3, 7, 7), dtype, seed=1)
    clean = results(compiled(cell), at)
    with torch.no_grad():
        at.x[1, 1] = math.nan
        at.x[2, 1] = math.inf
    (y, *last), by_leaf = results(compiled(cell), at)
    assert y[1:, 1].isnan().any()
    assert error([y[:, ::2]], [clean[0][0][:, ::2]]) == 0
    assert error([s[::2] for s in last], [s[::2] for s in clean[0][1:]]) == 0
    assert error([y[0]], [clean[0][0][0]]) == 0  # nor its own past
    index = [leaf is at.x for leaf in at.leaves].index(True)
    assert error([by_leaf[index][:, ::2]], [clean[1][index][:, ::2]]) == 0
    assert any(gradient.isnan().any() for gradient in by_leaf[:index])


def test_numbers_that_float32_cannot_hold() -> None:
    cell = cg.parse("cell a(x, h)\n h' = tanh(1e300 * x + 1e-300 * h) + h / 1e300")
    for dtype, tolerance in TOLERANCE.items():
        at = numbers(cell, Shape(2, 1, 5, 5), dtype, seed=0)
        found, wanted = values(cell, at)
        assert error(found, wanted) < tolerance

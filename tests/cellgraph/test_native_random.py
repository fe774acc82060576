"""Native code equals the interpreter on random cells: values and all gradients, in both real types.

A few cells by default; all that is promised, in a quarter of an hour, with

    pytest tests/cellgraph/test_native_random.py --cells 1000

which are 1,000 children of the zoo over many generations, and 1,000 cells that hypothesis draws.
Every cell meets three of the shapes below, with a first state, and with gradients that flow into
the outputs and the last states. What is not written before it is read would show: memory starts
out as NaN. A report of the worst errors ends the output (`-s` shows it).

An error is relative to the largest element of its tensor; a tensor that is smaller than the largest
of its kind by more than FLOOR is compared on that scale. Gradients beyond the promise may be what
larger ones leave that cancel on their way, as in x - x: then those set the scale (`cancelled`). Or
float32 is no finer: the interpreter itself is beyond the promise, beside what it finds in float64.
Then native code must not be twenty times further from float64 than the interpreter (`coarse`: two
in a thousand). Where a cell has an op that jumps, a failure is tried once more with other numbers.

A cell may grow without bounds: then the numbers for it are made smaller until it does not. One that
does so even with the smallest has its values compared, where NaN and infinities must stand in the
same places, and not its gradients (`wild` counts these).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

import cellgraph as cg
from cellgraph.kernels import native
from cellgraph.kernels.matrix import Matrices
from tests.cellgraph.native_cells import (
    Shape,
    compiled,
    defined,
    drawn,
    error,
    evolved,
    exact,
    largest,
    largest_within,
    numbers,
    results,
)
from tests.strategies import JUMPING

BATCH = 12  # cells in one run of the compiler
SHAPES = tuple(itertools.product((1, 2, 17), (1, 3), (1, 7, 65)))  # T, B, H
SCALES = (1.0, 0.5, 0.25, 0.125, 0.06, 0.03, 0.01)
#: A tensor this much smaller than the largest may be a difference of larger numbers.
FLOOR = {torch.float64: 1e-6, torch.float32: 1e-3}
PROMISED = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass
class Worst:
    """Of all comparisons so far."""

    values: float = 0.0
    gradients: float = 0.0
    comparisons: int = 0
    cancelled: int = 0  # beyond what is promised, where gradients cancel on their way
    coarse: int = 0  # beyond what is promised, where the interpreter in float32 is as well
    jumps: int = 0  # drawn again, since a jump may meet rounding
    wild: int = 0  # without bounds at every scale


WORST = {dtype: Worst() for dtype in PROMISED}


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    yield
    for dtype, worst in WORST.items():
        print(f"\n{dtype}: {worst}")


@pytest.fixture(autouse=True)
def _surroundings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fresh memory full of NaN; libraries of random cells go where the test's other files go."""
    for double in (False, True):
        Matrices(double=double)  # from the user's own cache, where it is already
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    batches = -(-metafunc.config.getoption("--cells") // BATCH)
    metafunc.parametrize("batch", range(batches))
    metafunc.parametrize("dtype", PROMISED, ids=["float64", "float32"])


def compare(cell: cg.CellGraph, shape: Shape, dtype: torch.dtype, seed: int) -> str | None:
    """What is wrong, or None."""
    worst, promised = WORST[dtype], PROMISED[dtype]
    for scale in SCALES:
        at = numbers(cell, shape, dtype, seed, scale)
        wanted, wanted_g = results(defined(cell), at)
        if tame := largest([*wanted, *wanted_g]) < 1e3:
            break
    found, found_g = results(compiled(cell), at)
    # The pass that keeps nothing takes other ways through memory.
    with torch.no_grad():
        y, last = compiled(cell)(at.params, at.x, at.state)
    floor, floor_g = (FLOOR[dtype] * largest(t) if tame else 0.0 for t in (wanted, wanted_g))
    pairs = [(found, wanted, floor), ([y, *last], wanted, floor)]
    pairs += [(found_g, wanted_g, floor_g)] if tame else []
    errors = [error(*pair) for pair in pairs]
    worst.comparisons += 1
    worst.wild += not tame
    if max(errors) <= promised:
        worst.values = max(worst.values, *errors[:2])
        worst.gradients = max(worst.gradients, *errors[2:], 0.0)
        return None
    if max(errors[:2]) <= promised:
        # Do gradients cancel on their way?
        floor_g = FLOOR[dtype] * largest_within(defined(cell), at)
        if error(found_g, wanted_g, floor_g) <= promised:
            worst.cancelled += 1
            return None
    # Is it float32 itself that is no finer here?
    true, true_g = results(defined(cell), exact(at))
    for (mine, theirs, least), exactly in zip(pairs, (true, true, true_g), strict=False):
        if error(mine, exactly, least) > max(promised, 20 * error(theirs, exactly, least)):
            return f"{shape}, seed {seed}, scale {scale}: {errors}"
    worst.coarse += 1
    return None


def check(cells: list[cg.CellGraph], first: int, dtype: torch.dtype) -> None:
    native.prepare(cells, dtype)
    failures = []
    for number, cell in enumerate(cells, start=first):
        for turn in range(3):
            steps, rows, hidden = SHAPES[(3 * number + 7 * turn) % len(SHAPES)]
            shape = Shape(steps, rows, hidden, (1, 5, hidden)[(number + turn) % 3])
            problem = compare(cell, shape, dtype, seed=number)
            if problem and any(node.op in JUMPING for node in cell.nodes):
                WORST[dtype].jumps += 1  # other numbers do not lie at the same edge
                problem = compare(cell, shape, dtype, seed=number + 10**6)
            if problem:
                failures.append(f"{problem}\n{cell}")
    assert not failures, "\n\n".join(failures)


def test_children_of_the_zoo(batch: int, dtype: torch.dtype) -> None:
    check(evolved(BATCH, seed=batch), batch * BATCH, dtype)


def test_drawn_cells(batch: int, dtype: torch.dtype, pytestconfig: pytest.Config) -> None:
    cells = drawn(pytestconfig.getoption("--cells"))
    check(cells[batch * BATCH : (batch + 1) * BATCH], batch * BATCH, dtype)

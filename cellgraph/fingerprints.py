"""Equal functions in different forms: a fingerprint that flags them, and a test that verifies.

`h * (a + b)` and `h * a + h * b` have different keys, because no rule of `rules.py` connects them.
Their fingerprints agree: digests of what the cells put out over a few steps from zero states, for
random inputs and parameters, in float64, rounded.

For that the parameters of both forms must be matched without looking at the form. So parameters of
one shape and start first get one and the same value; then each in turn gets another one, and what
the outputs do then ranks it among its kind. Parameters that still look alike are ranked again with
the others told apart. Where that tells nothing more, one of those that look alike is set apart, the
first in the canonical text: if they cannot all be exchanged with one another, two forms of one
function may get different fingerprints, and the cell is merely evaluated twice. Parameters without
any effect on the output do not count.

Equal means equal outputs from zero states, which is where a layer starts; names, number and order
of the states play no part. So cells that never leave zero (`h' = f * h`) are all one function. What
is drawn is finite, so that functions that differ only elsewhere (a ReLU that opens beyond 100) look
equal.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cellgraph.canonical import canonical
from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph, Node
from cellgraph.normal import form_of
from cellgraph.numeric import NUMPY, values
from cellgraph.ops import OPS

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Draw:
    """Where a cell is looked at. Named widths get the sizes 1, 2, … above `hidden`."""

    seed: int
    hidden: int
    inputs: int
    steps: int
    rows: int
    scale: float  # of inputs and parameters; matrices are divided by the root of their columns


_FIRST = _Draw(seed=1, hidden=3, inputs=2, steps=4, rows=1, scale=1.5)
_SECOND = (
    _Draw(seed=2, hidden=4, inputs=3, steps=6, rows=3, scale=1.0),
    _Draw(seed=3, hidden=3, inputs=5, steps=8, rows=4, scale=0.25),
    _Draw(seed=4, hidden=5, inputs=2, steps=8, rows=4, scale=3.0),
)
_DIGITS = 9
_FLOOR = 1e-3  # rounding is absolute below: what cancels in one form leaves 1e-17 in the other
_RTOL, _ATOL = 1e-9, 1e-12
_FINITE = 0.1  # the least share of finite outputs that tells something
_ROUNDS = 4  # of ranking parameters, and one for each that is told apart from others like it
_NOTHING = values(0.0)


def fingerprint(cell: CellGraph) -> str:
    """16 hexadecimal digits; equal for cells of one function up to the limits of this module, and
    the same on every run. Different functions with one fingerprint are possible: verify them with
    `same_function`."""
    kinds, outputs = _outputs(cell, _FIRST)
    digest = hashlib.sha256(f"{cell.raw_x is None} {outputs.shape} {kinds}".encode())
    digest.update(_rounded(outputs).tobytes())
    return digest.hexdigest()[:16]


def same_function(a: CellGraph, b: CellGraph) -> bool:
    """Do two cells compute the same outputs from zero states, parameters matched by their effects?

    Compared at other widths, scales and lengths than the fingerprint, to a relative 1e-9, NaN and
    infinity in the same places. False where too few values are finite to tell, and where one cell
    has a parameter with an effect, a start or a shape that the other has not.
    """
    if (a.raw_x is None) != (b.raw_x is None):
        return False
    for draw in _SECOND:
        (kinds, ours), (others, theirs) = _outputs(a, draw), _outputs(b, draw)
        if kinds != others or ours.shape != theirs.shape or np.isfinite(ours).mean() < _FINITE:
            return False
        if not np.allclose(ours, theirs, rtol=_RTOL, atol=_ATOL, equal_nan=True):
            return False
    return True


# -- which parameter is which ----------------------------------------------------------------------


def _outputs(cell: CellGraph, draw: _Draw) -> tuple[list[str], Array]:
    """The outputs (T, B, width) with a value of its own for every parameter; and of the parameters
    that have an effect their kinds (shape and start), sorted."""
    program = _Program(cell, draw)
    rank = dict.fromkeys(program.kinds, 0)
    idle = frozenset(rank)  # those that have shown no effect
    for _ in range(_ROUNDS + len(rank)):
        tied = _tied(program.kinds, rank)
        probed = [name for name in rank if name in idle or name in tied]
        base, *looks = program.run(rank, probed)
        unmoved = _rounded(base).tobytes()
        look = {name: _rounded(y).tobytes() for name, y in zip(probed, looks, strict=True)}
        acting = frozenset(name for name in probed if look[name] != unmoved)
        refined = _ranked(
            program.kinds, {n: (rank[n], n in idle - acting, look.get(n, b"")) for n in rank}
        )
        idle -= acting
        if refined == rank:
            alike = tied - idle
            if not alike:
                break
            chosen = _first(cell, program.kinds, rank, alike)
            refined = _ranked(program.kinds, {n: (rank[n], n != chosen) for n in rank})
        rank = refined
    return sorted(program.kinds[name] for name in rank if name not in idle), base


def _first(
    cell: CellGraph, kinds: Mapping[str, str], rank: Mapping[str, int], alike: frozenset[str]
) -> str:
    """One of the first group of parameters that look alike. Where they can be exchanged with one
    another it does not matter which; so that it is a function of the cell, the canonical text says.
    """
    place = {name: i for i, name in enumerate(canonical(cell, *form_of(cell)).params)}
    return min(alike, key=lambda n: (kinds[n], rank[n], place.get(n, len(place)), n))


def _tied(kinds: Mapping[str, str], rank: Mapping[str, int]) -> frozenset[str]:
    """The parameters of whose kind and rank there is another."""
    counts = Counter((kinds[name], rank[name]) for name in rank)
    return frozenset(name for name in rank if counts[kinds[name], rank[name]] > 1)


def _ranked(kinds: Mapping[str, str], looks: Mapping[str, tuple[Any, ...]]) -> dict[str, int]:
    """Every parameter's rank among its kind by what it looks like; equals share the lowest."""
    rank: dict[str, int] = {}
    met: dict[str, tuple[int, tuple[Any, ...]]] = {}
    position = Counter[str]()
    for name in sorted(looks, key=lambda n: looks[n]):
        kind = kinds[name]
        if kind not in met or met[kind][1] != looks[name]:
            met[kind] = position[kind], looks[name]
        rank[name] = met[kind][0]
        position[kind] += 1
    return {name: rank[name] for name in looks}


# -- evaluation ------------------------------------------------------------------------------------


class _Program:
    """A cell that is run with several settings of its parameters at once: arrays (A, B, width)."""

    def __init__(self, cell: CellGraph, draw: _Draw) -> None:
        self.cell, self.draw = cell, draw
        widths = {"H": draw.hidden}
        for name in cell.widths:
            widths.setdefault(name, draw.hidden + len(widths))
        self.widths = widths | {"X": widths[cell.raw_x] if cell.raw_x else draw.inputs}
        self.kinds = {p.name: f"{p.kind} {p.shape(self.widths)} {p.init}" for p in cell.params}
        self.slot = {node: i for i, node in enumerate(cell.nodes)}

    def run(self, rank: Mapping[str, int], probed: Sequence[str]) -> Array:
        """Outputs (A, T, B, width): with the value of its rank for every parameter, and then with
        another one for each of `probed` in turn."""
        cell, draw, slot = self.cell, self.draw, self.slot
        x = _numbers(draw.seed, "x", 0, (draw.steps, draw.rows, self.widths["X"])) * draw.scale
        held: list[Array] = [_NOTHING] * len(slot)
        steps: list[tuple[int, Any, tuple[int, ...]]] = []
        for node, i in slot.items():
            if node.op == PARAM:
                held[i] = self._parameter(str(node.attr), rank, probed)
            elif node.op == CONST:
                held[i] = values([[[node.attr]]])
            elif node.op not in (INPUT, STATE):
                compute = _matmul if node.op == MATMUL else OPS[node.op].eager
                steps.append((i, compute, tuple([slot[a] for a in node.args])))
        reads = [i for node, i in slot.items() if node.op == INPUT]
        carried = []
        for state in cell.states:
            leaf = Node(STATE, (), state.name)
            if leaf in slot:
                held[slot[leaf]] = values(np.zeros((1, 1, self.widths[state.width])))
                carried.append((slot[leaf], slot[state.next]))
        outputs = []
        end = slot[cell.outputs[0]]
        with np.errstate(all="ignore"):
            for x_t in x:
                for i in reads:
                    held[i] = x_t
                for i, compute, args in steps:
                    held[i] = compute(NUMPY, *[held[a] for a in args])
                outputs.append(held[end])
                for (leaf_at, _), value in zip(carried, [held[n] for _, n in carried], strict=True):
                    held[leaf_at] = value
        shape = (1 + len(probed), draw.rows, outputs[-1].shape[-1])
        return np.stack([np.broadcast_to(y, shape) for y in outputs], axis=1)

    def _parameter(self, name: str, rank: Mapping[str, int], probed: Sequence[str]) -> Array:
        (param,) = (p for p in self.cell.params if p.name == name)
        shape = param.shape(self.widths)
        scale = self.draw.scale / (shape[1] ** 0.5 if param.kind == "matrix" else 1.0)
        kind = self.kinds[name]
        array: Array = _numbers(self.draw.seed, kind, rank[name], shape)
        if param.kind != "matrix":
            array = array.reshape((1, -1))
        if name in probed:
            array = np.repeat(array[None], 1 + len(probed), axis=0)
            other = _numbers(self.draw.seed, kind, -1, shape)
            array[1 + list(probed).index(name)] = other
        else:
            array = array[None]
        return values(array.swapaxes(1, 2) * scale if param.kind == "matrix" else array * scale)


def _matmul(_: Any, matrix: Array, operand: Array) -> Array:
    return operand @ matrix  # (A, B, columns) @ (A, columns, rows)


@lru_cache(maxsize=4096)
def _numbers(seed: int, kind: str, index: int, shape: tuple[int, ...]) -> Array:
    """Uniform in [-1, 1]; the same on every machine and Python."""
    rng = random.Random(f"{seed} {kind} {index}")
    count = int(np.prod(shape))
    array: Array = values([2 * rng.random() - 1 for _ in range(count)]).reshape(shape)
    array.flags.writeable = False
    return array


def _rounded(array: Array) -> Array:
    """Whole numbers (mantissa, exponent) for floats of nine digits, NaN and infinity included."""
    finite = np.isfinite(array)
    safe = np.where(finite, array, 0.0)
    exponent = np.floor(np.log10(np.maximum(np.abs(safe), _FLOOR)))
    mantissa = np.rint(safe * 10.0 ** (_DIGITS - 1 - exponent))
    odd = np.where(np.isnan(array), 2.0, np.sign(array)) * 1e15
    return np.stack([np.where(finite, mantissa, odd), exponent]).astype(np.int64)

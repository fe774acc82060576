"""Equal functions in different forms: a fingerprint that flags them, and a test that verifies.

`h * (a + b)` and `h * a + h * b` have different keys, because no rule of `rules.py` connects them.
Their fingerprints agree: digests of what the cells put out over a few steps from zero states, for
random inputs and parameters, in float64, rounded.

For that the parameters of both forms must be matched without looking at the form. So all parameters
of one shape and start get one and the same value; then each in turn gets another one, all in one
batch, and what the outputs do then is its look. The fingerprint is the digest of the first outputs
and of the sorted looks. It does not see what two parameters do only together: no look moves
`(a - b) * (c - d)` away from zero.

The test tells parameters apart. Their looks rank them among their kind; those that still look alike
are ranked again with the others told apart. Where that tells nothing more, one of those that look
alike is set apart, the first in the canonical text: if they cannot all be exchanged with one
another, two forms of one function may be taken for two, and the cell is merely evaluated twice.
Parameters without any effect on the output, alone or together, do not count.

Equal means equal outputs from zero states, which is where a layer starts; names, number and order
of the states play no part. So cells that never leave zero (`h' = f * h`) are all one function. What
is drawn is finite, so that functions that differ only elsewhere (a ReLU that opens beyond 100) look
equal.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cellgraph.canonical import canonical
from cellgraph.graph import CONST, INPUT, MATMUL, PARAM, STATE, CellGraph
from cellgraph.normal import form_of
from cellgraph.numeric import NUMPY
from cellgraph.ops import OPS, skew

Array = np.ndarray[Any, Any]

#: What tells parameters apart without their names: their kind; the labels of its widths (`_X`, 0
#: for H, 1, 2, … for others in the order of the states); its start.
Kind = tuple[str, tuple[int, ...], str]
_X = -1


class _Draw(NamedTuple):
    """Where a cell is looked at."""

    seed: int
    hidden: int
    inputs: int
    steps: int
    rows: int
    scale: float  # of inputs and parameters; matrices are divided by the root of their columns

    def size(self, label: int) -> int:
        """Of a width. Named ones are one larger than the one before."""
        return self.inputs if label == _X else self.hidden + label


_FIRST = _Draw(seed=1, hidden=3, inputs=2, steps=3, rows=2, scale=1.5)
_SECOND = (
    _Draw(seed=2, hidden=4, inputs=3, steps=6, rows=3, scale=1.0),
    _Draw(seed=3, hidden=3, inputs=5, steps=8, rows=4, scale=0.25),
    _Draw(seed=4, hidden=5, inputs=2, steps=5, rows=4, scale=3.0),
)
_UNIT = 1e-9  # of rounding
_RTOL, _ATOL = 1e-9, 1e-12
_FINITE = 0.1  # the least share of finite outputs that tells something
_ROUNDS = 4  # of ranking parameters, and one for each that is told apart from others like it


def fingerprint(cell: CellGraph) -> str:
    """16 hexadecimal digits; equal for cells of one function up to the limits of this module, and
    the same on every run. Different functions with one fingerprint are possible: verify them with
    `same_function`."""
    program = _Program(cell)
    kinds = program.kinds
    outputs = program.run(_FIRST, dict.fromkeys(kinds, 0), list(kinds))
    base, *looks, _ = _looks(outputs)
    acting = sorted((k, y) for k, y in zip(kinds.values(), looks, strict=True) if y != base)
    head = cell.raw_x is None, outputs.shape[1:], [kind for kind, _ in acting]
    digest = hashlib.sha256(repr(head).encode())
    digest.update(b"".join([base, *[look for _, look in acting]]))
    return digest.hexdigest()[:16]


def same_function(a: CellGraph, b: CellGraph) -> bool:
    """Do two cells compute the same outputs from zero states, parameters matched by their effects?

    Compared at other widths, scales and lengths than the fingerprint, to a relative 1e-9, NaN and
    infinity in the same places. False where too few values are finite to tell, and where one cell
    has a parameter with an effect, a start or a shape that the other has not.
    """
    if (a.raw_x is None) != (b.raw_x is None):
        return False
    left, right = _Ranked(a), _Ranked(b)
    for draw in _SECOND:
        ours, theirs = left.outputs(draw), right.outputs(draw)
        if left.acting() != right.acting() or ours.shape != theirs.shape:
            return False
        if np.isfinite(ours).mean() < _FINITE:
            return False
        if not np.allclose(ours, theirs, rtol=_RTOL, atol=_ATOL, equal_nan=True):
            return False
    return True


# -- which parameter is which ----------------------------------------------------------------------


class _Ranked:
    """A cell whose parameters are told apart by what they do. What one draw has shown holds for the
    next, which looks only at those without an effect so far."""

    def __init__(self, cell: CellGraph) -> None:
        self.cell = cell
        self.program = _Program(cell)
        self.kinds = self.program.kinds
        self.rank = dict.fromkeys(self.kinds, 0)
        self.idle = frozenset(self.rank)  # those that have shown no effect

    def acting(self) -> list[Kind]:
        """The kinds of the parameters that have an effect, sorted."""
        return sorted(kind for name, kind in self.kinds.items() if name not in self.idle)

    def outputs(self, draw: _Draw) -> Array:
        """(T, B, width) with a value of its own for every parameter that has an effect."""
        for _ in range(_ROUNDS + len(self.rank)):
            rank = self.rank
            tied = self._tied()
            probed = [name for name in rank if name in self.idle or name in tied]
            outputs = self.program.run(draw, rank, probed)
            base, *looks, together = _looks(outputs)
            look = dict(zip(probed, looks, strict=True))
            self.idle -= frozenset(name for name in probed if look[name] != base)
            self._rank({n: (r, n in self.idle, look.get(n, b"")) for n, r in rank.items()})
            if self.rank == rank:
                alike = tied - self.idle or (tied if together != base else frozenset())
                if not alike:
                    break
                first = min(alike, key=lambda n: (self.kinds[n], self.rank[n], self._place(n)))
                self._rank({n: (r, n != first) for n, r in rank.items()})
        own: Array = outputs[0]
        return own

    def _tied(self) -> frozenset[str]:
        """The parameters of whose kind and rank there is another."""
        counts = Counter((self.kinds[name], rank) for name, rank in self.rank.items())
        return frozenset(n for n, rank in self.rank.items() if counts[self.kinds[n], rank] > 1)

    def _rank(self, looks: Mapping[str, tuple[Any, ...]]) -> None:
        """Rank every parameter among its kind by what it looks like; equals share the lowest."""
        met: dict[Kind, tuple[int, tuple[Any, ...]]] = {}
        position = Counter[Kind]()
        rank: dict[str, int] = {}
        for name in sorted(looks, key=lambda n: looks[n]):
            kind = self.kinds[name]
            if kind not in met or met[kind][1] != looks[name]:
                met[kind] = position[kind], looks[name]
            rank[name] = met[kind][0]
            position[kind] += 1
        self.rank = {name: rank[name] for name in looks}

    def _place(self, name: str) -> tuple[int, str]:
        """In the canonical text: a function of the cell, whatever its parameters are called."""
        return self._places.get(name, len(self._places)), name

    @cached_property
    def _places(self) -> dict[str, int]:
        text = canonical(self.cell, *form_of(self.cell))
        return {name: i for i, name in enumerate(text.params)}


def _looks(outputs: Array) -> list[bytes]:
    """The outputs of every setting, rounded: relatively above 1, absolutely below, because what
    cancels in one form leaves 1e-17 in the other. There is one zero, and one NaN."""
    whole = np.rint(np.arcsinh(outputs) / _UNIT) + 0.0
    whole[np.isnan(whole)] = np.nan
    return [setting.tobytes() for setting in whole]


# -- evaluation ------------------------------------------------------------------------------------

_ALWAYS, _BY_X, _BY_STATES = 0, 1, 2  # what a value changes with, from step to step
_CHANGES = {INPUT: _BY_X, STATE: _BY_STATES}
_Step = tuple[int, Callable[..., Array], int, int | None]  # slots of the result and the arguments


class _Program:
    """A cell that is run with several settings of its parameters at once: arrays (A, B, width).
    What depends on x alone is computed for all time steps together, (T, A, B, width)."""

    def __init__(self, cell: CellGraph) -> None:
        label = {width: i for i, width in enumerate(cell.widths)}
        self.x = label["X"] = label[cell.raw_x] if cell.raw_x else _X
        declared = {param.name: param for param in cell.params}
        states = {state.name: state for state in cell.states}
        slot = {node: i for i, node in enumerate(cell.nodes)}
        changes: list[int] = []
        self.kinds: dict[str, Kind] = {}
        self.params: list[tuple[int, str]] = []
        self.constants: list[tuple[int, Array]] = []
        self.states: list[tuple[int, int, int]] = []  # slot, width, slot of the next value
        self.once: list[_Step] = []
        self.every: list[_Step] = []
        for i, node in enumerate(cell.nodes):
            args = [slot[a] for a in node.args]
            changes.append(max([_CHANGES.get(node.op, _ALWAYS), *[changes[a] for a in args]]))
            if args:
                compute = _matmul if node.op == MATMUL else OPS[node.op].eager
                steps = self.every if changes[i] == _BY_STATES else self.once
                steps.append((i, compute, args[0], args[1] if len(args) == 2 else None))
            elif node.op == PARAM:
                param = declared[str(node.attr)]
                self.kinds[param.name] = param.kind, param.shape(label), str(param.init)
                self.params.append((i, param.name))
            elif node.op == CONST:
                self.constants.append((i, np.array([[[node.attr]]])))
            elif node.op == STATE:
                state = states[str(node.attr)]
                self.states.append((i, label[state.width], slot[state.next]))
        self.inputs = [i for i, node in enumerate(cell.nodes) if node.op == INPUT]
        self.series = [i for i, by in enumerate(changes) if by == _BY_X]
        self.end = slot[cell.outputs[0]]

    def run(self, draw: _Draw, rank: Mapping[str, int], probed: Sequence[str]) -> Array:
        """Outputs (A, T, B, width): with the value of its rank for every parameter, and then with
        another one for each of `probed` in turn, last with a third one for all of them."""
        seat = {name: i for i, name in enumerate(probed, 1)}
        count = len(probed) + 2
        held: dict[int, Array] = dict(self.constants)
        for i, name in self.params:
            held[i] = _parameter(draw, self.kinds[name], rank[name], seat.get(name, 0), count)
        for i in self.inputs:
            held[i] = _input(draw, self.x)
        for i, width, _ in self.states:
            held[i] = np.zeros((1, 1, draw.size(width)))
        outputs = []
        with np.errstate(all="ignore"):
            _compute(self.once, held)
            series = [(i, held[i]) for i in self.series]
            for t in range(draw.steps):
                for i, values in series:
                    held[i] = values[t]
                _compute(self.every, held)
                outputs.append(held[self.end])
                held.update([(i, held[following]) for i, _, following in self.states])
        found = np.empty((count, draw.steps, draw.rows, outputs[-1].shape[-1]))
        for t, y in enumerate(outputs):
            found[:, t] = y
        return found


def _compute(steps: Sequence[_Step], held: dict[int, Array]) -> None:
    for i, compute, a, b in steps:
        held[i] = compute(NUMPY, held[a]) if b is None else compute(NUMPY, held[a], held[b])


def _matmul(_: Any, matrix: Array, operand: Array) -> Array:
    return operand @ matrix  # (A, B, columns) @ (A, columns, rows)


@lru_cache(maxsize=64)
def _input(draw: _Draw, width: int) -> Array:
    """(T, 1, B, width)."""
    shape = draw.steps, 1, draw.rows, draw.size(width)
    return _numbers(f"{draw.seed} x", shape, draw.scale)


@lru_cache(maxsize=4096)
def _parameter(draw: _Draw, kind: Kind, rank: int, seat: int, count: int) -> Array:
    """(1, 1, width), for matrices (1, columns, rows), with the value of the rank; at a seat above 0
    with `count` settings, of which that one and the last have other values."""
    shape = tuple([draw.size(label) for label in reversed(kind[1])])
    columns = shape[0] if len(shape) == 2 else 1
    shape = shape if len(shape) == 2 else (1, *(shape or (1,)))
    scale = draw.scale / columns**0.5
    array = _numbers(f"{draw.seed} {kind} {rank}", (1, *shape), scale)
    if seat:
        array = np.repeat(array, count, axis=0)
        array[seat] = _numbers(f"{draw.seed} {kind} other", shape, scale)
        array[-1] = _numbers(f"{draw.seed} {kind} seat {seat}", shape, scale)
    if kind[0] == "skew":
        array = skew(array)
    array.flags.writeable = False
    return array


def _numbers(seed: str, shape: tuple[int, ...], scale: float) -> Array:
    """Uniform in [-scale, scale]; the same on every machine and Python."""
    rng = random.Random(seed)
    return np.array([rng.uniform(-scale, scale) for _ in range(prod(shape))]).reshape(shape)

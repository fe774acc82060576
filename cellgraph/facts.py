"""What the graph of a cell says about it: sizes, the form of its recurrence, its gates.

Everything is computed from the normal form (`normal.py`), nothing is stated. What is said holds for
all parameters and inputs; where the graph does not show a property, it is denied, although a cell
may have it in a form that no rule knows (`log(exp(h))` is known to be `h`, `exp(log(h))` is not).

A next value is looked at as a function of the previous states and x: one that reads the next value
of another state reads what that is made of. The recurrence proper is what comes back to itself, so
states are taken in *blocks*, the strongly connected components of "reads the previous value of". A
block comes after those that it reads, and sees them as it sees x, as sequences that are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import networkx as nx

from cellgraph.couplings import Coupling, couplings
from cellgraph.gates import Gate, Reading
from cellgraph.graph import MATMUL, STATE, CellGraph, depends_on
from cellgraph.normal import Form, form_of
from cellgraph.ops import OPS
from cellgraph.rewrites import PRODUCT, SUM
from cellgraph.sizes import concrete_widths, count_parameters, flops_per_step, whole

#: X and H at which cells are compared; widths that a cell declares get half of H.
SIZE = 64

_ELEMENTWISE = frozenset([SUM, PRODUCT, *OPS])
_NONLINEAR = 2


@dataclass(frozen=True, slots=True)
class StateFacts:
    """A state and its update. `reads`: the previous states that the next value depends on, those of
    `through_matrices` by way of a matrix. `linear`: affine in all previous states together, for any
    x; `elementwise`: none of them passes through a matrix."""

    name: str
    width: str
    reads: tuple[str, ...]
    through_matrices: tuple[str, ...]
    linear: bool
    elementwise: bool


@dataclass(frozen=True, slots=True)
class Block:
    """States that depend on one another over time; a single state that does not even read itself is
    not `recurrent`. `linear` and `elementwise`: as functions of the previous states of this block,
    those of earlier blocks and x given."""

    states: tuple[str, ...]
    recurrent: bool
    linear: bool
    elementwise: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the graph of a cell says about it. Sizes hold for one layer at the given widths.

    A matrix is recurrent where it is applied to something that depends on a previous state (a
    candidate's `U @ (r * h)` too), else it is an input matrix. `recurrent_multiplications`: of a
    step and batch row, in products with recurrent matrices. A skew matrix counts as any other, with
    all numbers that are stored.
    """

    name: str
    key: str
    widths: Mapping[str, int]
    states: tuple[StateFacts, ...]
    recurrent_matrices: int
    input_matrices: int
    vectors: int
    scalars: int
    parameters: int
    flops_per_step: int
    recurrent_multiplications: int
    blocks: tuple[Block, ...]
    gates: tuple[Gate, ...]
    couplings: tuple[Coupling, ...]

    @property
    def matrices(self) -> int:
        return self.recurrent_matrices + self.input_matrices

    @property
    def recurrent(self) -> bool:
        """Does any state depend on its own past?"""
        return any(block.recurrent for block in self.blocks)

    @property
    def linear(self) -> bool:
        """Is every block of the recurrence affine in its previous states, given what comes before
        it?"""
        return all(block.linear for block in self.blocks if block.recurrent)

    @property
    def elementwise(self) -> bool:
        """Does no block of the recurrence pass its previous states through a matrix?"""
        return all(block.elementwise for block in self.blocks if block.recurrent)

    @property
    def parallel(self) -> bool:
        """Could a parallel scan replace the loop over time, block by block?"""
        return self.linear and self.elementwise

    @property
    def structure(self) -> str:
        """The recurrence in two words: "linear, elementwise", …, "nonlinear, matrix"."""
        if not self.recurrent:
            return "no recurrence"
        words = ("linear" if self.linear else "nonlinear",
                 "elementwise" if self.elementwise else "matrix")  # fmt: skip
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what is stored and what follows from it."""
        derived = ("matrices", "recurrent", "linear", "elementwise", "parallel", "structure")
        plain: dict[str, Any] = _plain(asdict(self))
        return plain | {name: getattr(self, name) for name in derived}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def facts(
    cell: CellGraph,
    input_size: int = SIZE,
    hidden_size: int = SIZE,
    *,
    widths: Mapping[str, int] | None = None,
) -> Facts:
    """Everything that the graph of a cell says about it.

    widths: sizes of the widths that the cell declares; those not stated get half of `hidden_size`.
    Raises `CellError` for sizes below 1 and for widths that the cell has not.
    """
    half = max(1, whole("hidden_size", hidden_size) // 2)
    declared = dict.fromkeys(cell.widths[1:], half) | dict(widths or {})
    sizes = concrete_widths(cell, input_size, hidden_size, declared)
    form, image = form_of(cell)
    nexts = {state.name: image[state.next][1] for state in cell.states}
    reach = _reach(form, list(nexts))
    blocks = _blocks(nexts, form, reach)
    reading = Reading(cell, form, image)
    recurrent, multiplications = _recurrent_matrices(cell, sizes)
    kinds = [param.kind for param in cell.params]
    return Facts(
        name=cell.name,
        key=cell.key(),
        widths={**sizes, "X": input_size},
        states=tuple(_state(cell, name, form, nexts, reach) for name in nexts),
        recurrent_matrices=recurrent,
        input_matrices=sum(param.is_matrix for param in cell.params) - recurrent,
        vectors=kinds.count("vector"),
        scalars=kinds.count("scalar"),
        parameters=count_parameters(cell, input_size, hidden_size, widths=declared),
        flops_per_step=flops_per_step(cell, input_size, hidden_size, widths=declared),
        recurrent_multiplications=multiplications,
        blocks=blocks,
        gates=reading.described(),
        couplings=couplings(reading),
    )


def _recurrent_matrices(cell: CellGraph, sizes: Mapping[str, int]) -> tuple[int, int]:
    """How many matrices meet previous states, and the multiplications of these products."""
    carried = depends_on(cell.roots, lambda leaf: leaf.op == STATE)
    declared = {param.name: param for param in cell.params}
    products = [n for n in cell.nodes if n.op == MATMUL and carried[n.args[1]]]
    shapes = [declared[str(n.args[0].attr)].shape(sizes) for n in products]
    return len({n.args[0].attr for n in products}), sum(map(prod, shapes))


# -- the recurrence --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reach:
    """For every term, the states that it depends on and those that it depends on by way of
    something that is not elementwise, as sets of bits in the order of the states."""

    names: Sequence[str]
    any: Sequence[int]
    mixed: Sequence[int]

    def of(self, bits: int) -> tuple[str, ...]:
        return tuple(name for i, name in enumerate(self.names) if bits >> i & 1)


def _reach(form: Form, names: Sequence[str]) -> _Reach:
    bit = {name: 1 << i for i, name in enumerate(names)}
    every: list[int] = []
    mixed: list[int] = []
    for op, args, attr in zip(form.op, form.args, form.attr, strict=True):
        reached, blurred = (bit[str(attr)] if op == STATE else 0), 0
        for a in args:
            reached |= every[a]
            blurred |= mixed[a]
        every.append(reached)
        mixed.append(blurred if op in _ELEMENTWISE or not args else reached)
    return _Reach(names, every, mixed)


def _degrees(form: Form, states: frozenset[str]) -> list[int]:
    """Of every term in the previous values of some states together: 0 where it does not depend on
    them, 1 where it is affine in them, else `_NONLINEAR`."""
    degree: list[int] = []
    for t, op in enumerate(form.op):
        below = [degree[a] for a in form.args[t]]
        if not below:
            found = int(op == STATE and form.attr[t] in states)
        elif not any(below) or op == SUM:
            found = max(below)
        elif op == PRODUCT:  # of powers: 1 / h and h * h are not linear
            powers = zip(form.weights[t], below, strict=True)
            found = sum(int(d * e) if e > 0 else d * _NONLINEAR for e, d in powers)
        else:
            found = max(below) if op == MATMUL else _NONLINEAR
        degree.append(min(found, _NONLINEAR))
    return degree


def _state(
    cell: CellGraph, name: str, form: Form, nexts: Mapping[str, int], reach: _Reach
) -> StateFacts:
    t = nexts[name]
    return StateFacts(
        name=name,
        width=next(state.width for state in cell.states if state.name == name),
        reads=reach.of(reach.any[t]),
        through_matrices=reach.of(reach.mixed[t]),
        linear=_degrees(form, frozenset(nexts))[t] < _NONLINEAR,
        elementwise=not reach.mixed[t],
    )


def _blocks(nexts: Mapping[str, int], form: Form, reach: _Reach) -> tuple[Block, ...]:
    """The blocks in an order in which each one sees only earlier ones; among those that could come
    next, the one with the first state does."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(nexts)
    graph.add_edges_from(
        (read, name) for name, t in nexts.items() for read in reach.of(reach.any[t])
    )
    position = {name: i for i, name in enumerate(nexts)}
    parts = nx.condensation(graph)
    members = {part: sorted(data["members"], key=position.__getitem__)
               for part, data in parts.nodes(data=True)}  # fmt: skip
    order = nx.lexicographical_topological_sort(parts, key=lambda p: position[members[p][0]])
    return tuple(_block(members[part], graph, nexts, form, reach) for part in order)


def _block(
    states: Sequence[str],
    graph: nx.DiGraph[str],
    nexts: Mapping[str, int],
    form: Form,
    reach: _Reach,
) -> Block:
    degree = _degrees(form, frozenset(states))
    own = sum(1 << i for i, name in enumerate(reach.names) if name in states)
    return Block(
        states=tuple(states),
        recurrent=len(states) > 1 or graph.has_edge(states[0], states[0]),
        linear=all(degree[nexts[name]] < _NONLINEAR for name in states),
        elementwise=not any(reach.mixed[nexts[name]] & own for name in states),
    )

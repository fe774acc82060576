"""The graph of a cell: interned immutable nodes, and the frozen CellGraph that names its states and
parameters.

Only structure lives here. Meaning is `interpret.py`, text is `notation.py`, widths are `widths.py`.
To edit a graph is to build another one (`substitute`); order always comes from a depth-first walk,
never from a set.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

from cellgraph.errors import CellError
from cellgraph.ops import FUNCTIONS, OPS

# Structural ops: everything that is not a row of the op table.
INPUT, STATE, PARAM, CONST, MATMUL = "input", "state", "param", "const", "matmul"
_LEAVES = (INPUT, STATE, PARAM, CONST)
_ARITY = {name: op.arity for name, op in OPS.items()} | dict.fromkeys(_LEAVES, 0) | {MATMUL: 2}

#: Words of the notation that are no names, beside the functions of the op table.
RESERVED = ("cell", "const", "scalar", "skew", "init", "identity", "repeat", "x")
LONGEST_NAME = 100
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def is_name(text: object) -> bool:
    """Is it an identifier of the notation that may be given to something?"""
    return isinstance(text, str) and len(text) <= LONGEST_NAME and _is_free_word(text)


@lru_cache(maxsize=4096)
def _is_free_word(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and text not in RESERVED and text not in FUNCTIONS


def finite(value: object) -> float:
    """A number of a cell as a float. Raises `CellError` for anything else."""
    try:
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    shown = "too large" if isinstance(value, int) else repr(value)
    raise CellError(f"number {shown} in a cell, expected a finite number")


class Node:
    """One value in a cell: an op, its ordered arguments, and the name or number of a leaf.

    Interned: the same op, arguments and attribute give the same object, so equality is identity.
    """

    __slots__ = ("__weakref__", "args", "attr", "op")
    op: str
    args: tuple[Node, ...]
    attr: str | float | None

    _interned: ClassVar[WeakValueDictionary[tuple[Any, ...], Node]] = WeakValueDictionary()
    _lock = threading.Lock()

    def __new__(cls, op: str, args: tuple[Node, ...] = (), attr: str | float | None = None) -> Node:
        # Most nodes exist already, and what is in the table has passed the checks below.
        if attr is None or isinstance(attr, (str, float)):
            found = cls._interned.get((op, args, attr))
            if found is not None:
                return found
        if op not in _ARITY:
            raise CellError(f"unknown op {op!r}, expected one of {', '.join(OPS)}")
        if op == CONST:
            attr = finite(attr) + 0.0  # -0.0 and 0.0 would share a slot of the table
        elif not (isinstance(attr, str) if op in _LEAVES else attr is None):
            raise CellError(
                f"{op} has the attribute {attr!r}, expected a name, and on leaves alone"
            )
        if len(args) != _ARITY[op]:
            raise CellError(f"{op} has {len(args)} arguments, expected {_ARITY[op]}")
        if op == MATMUL and args[0].op != PARAM:
            raise CellError("the left side of @ is not a parameter, expected a matrix")
        node = object.__new__(cls)
        object.__setattr__(node, "op", op)
        object.__setattr__(node, "args", args)
        object.__setattr__(node, "attr", attr)
        with cls._lock:
            return cls._interned.setdefault((op, args, attr), node)

    @classmethod
    def _new_lock(cls) -> None:
        cls._lock = threading.Lock()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("nodes are immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("nodes are immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return Node, (self.op, self.args, self.attr)

    def __repr__(self) -> str:
        # One level: with shared arguments the whole expression can be exponentially long.
        inside = [arg.op if arg.args else repr(arg.attr) for arg in self.args] or [repr(self.attr)]
        return f"{self.op}({', '.join(inside)})"

    @property
    def is_leaf(self) -> bool:
        return not self.args


# A process that is forked while another thread holds the lock would wait for it for ever.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=Node._new_lock)


@dataclass(frozen=True, slots=True)
class Init:
    """The start of a parameter: `constant` sets every element, `identity` adds value to the
    diagonal of the noise."""

    kind: Literal["constant", "identity"]
    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", finite(self.value))

    def __str__(self) -> str:
        number = format_number(self.value)
        return number if self.kind == "constant" else f"identity({number})"


@dataclass(frozen=True, slots=True)
class Param:
    """A nominal parameter. `rows` and `cols` name widths ("H", "X", …); a vector has no cols, a
    scalar neither. A skew one is a square matrix W that is stored without constraints, and in whose
    place the cell multiplies with W - W^T (`ops.skew`)."""

    name: str
    kind: Literal["matrix", "vector", "scalar", "skew"]
    rows: str | None
    cols: str | None
    init: Init | None = None

    @property
    def is_matrix(self) -> bool:
        """Does it stand left of @?"""
        return self.cols is not None

    def shape(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape under concrete widths: (out, in) for a matrix, (width,) for a vector, () for a
        scalar."""
        return tuple(widths[w] for w in (self.rows, self.cols) if w is not None)


@dataclass(frozen=True, slots=True)
class State:
    """A recurrent state: its name, the name of its width, and the node of its next value."""

    name: str
    width: str
    next: Node


@dataclass(frozen=True)
class CellGraph:
    """A recurrent cell. Built by `cellgraph.parse` or `cellgraph.build`, never by hand.

    `outputs` holds the one node that the layer emits. `raw_x` names the width that x must have
    because the cell uses x outside a matrix product (MUT1, SRU), else None. `names` (readable names
    of inner nodes, in the order of the text) and `doc` (the comment above the header) belong to the
    text, not to the identity of the cell.
    """

    name: str
    inputs: tuple[str, ...]
    states: tuple[State, ...]
    outputs: tuple[Node, ...]
    params: tuple[Param, ...]
    raw_x: str | None = None
    names: tuple[tuple[str, Node], ...] = field(default=(), compare=False, repr=False)
    doc: str = field(default="", compare=False, repr=False)

    @property
    def roots(self) -> tuple[Node, ...]:
        """Next values of all states in order, then the output."""
        return tuple(s.next for s in self.states) + self.outputs

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node in a fixed topological order, arguments first."""
        return tuple(topological(self.roots))

    @cached_property
    def widths(self) -> tuple[str, ...]:
        """The width names that a caller must give: H, plus any that a state declares."""
        return tuple(dict.fromkeys(["H", *(s.width for s in self.states)]))

    @cached_property
    def scalars(self) -> tuple[str, ...]:
        """The names of the scalar parameters, in order."""
        return tuple(p.name for p in self.params if p.kind == "scalar")

    @cached_property
    def skews(self) -> tuple[str, ...]:
        """The names of the skew-symmetric matrices, in order."""
        return tuple(p.name for p in self.params if p.kind == "skew")

    @cached_property
    def _key(self) -> str:
        from cellgraph.canonical import key

        return key(self)

    def key(self) -> str:
        """The canonical key: 64 hexadecimal digits, the same on every machine and Python (see
        `canonical.py`)."""
        return self._key

    def renamed(self, name: str, key: str) -> CellGraph:
        """The same cell, whose key is known, under another name."""
        cell = replace(self, name=name)
        cell.__dict__.update(nodes=self.nodes, _key=key)  # neither depends on the name
        return cell

    @cached_property
    def _text(self) -> str:
        from cellgraph.printing import to_text

        return to_text(self)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        from cellgraph.notation import parse

        return parse, (str(self),)


@lru_cache(maxsize=4096)
def format_number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point."""
    whole = int(value) if abs(value) < 1e15 else None
    return str(whole) if whole == value else repr(value)


def topological(roots: Iterable[Node]) -> list[Node]:
    """All nodes below the roots, arguments first, in the order of a depth-first walk from left to
    right."""
    order: dict[Node, None] = {}
    for root in roots:
        if root in order:
            continue
        path, node, args = [], root, iter(root.args)
        while True:  # iterative: a hostile cell can be deeper than Python's stack
            for arg in args:
                if arg not in order:
                    if arg.args:
                        path.append((node, args))
                        node, args = arg, iter(arg.args)
                        break
                    order[arg] = None
            else:
                order[node] = None
                if not path:
                    break
                node, args = path.pop()
    return list(order)


def substitute(
    roots: Iterable[Node], image_of: Callable[[Node, tuple[Node, ...]], Node]
) -> dict[Node, Node]:
    """Rebuild bottom-up. `image_of(old, new_args)` gives the image of each node; the result maps
    old to new."""
    image: dict[Node, Node] = {}
    for node in topological(roots):
        image[node] = image_of(node, tuple(image[a] for a in node.args))
    return image


def rebuilt(node: Node, args: tuple[Node, ...]) -> Node:
    """The same op over other arguments; the identity edit for `substitute`."""
    return node if args == node.args else Node(node.op, args, node.attr)


def depends_on(roots: Iterable[Node], leaf: Callable[[Node], bool]) -> dict[Node, bool]:
    """For every node below the roots: does some leaf for which `leaf` is true feed into it?"""
    found: dict[Node, bool] = {}
    for node in topological(roots):
        found[node] = leaf(node) if node.is_leaf else any(found[a] for a in node.args)
    return found


def use_counts(roots: Iterable[Node]) -> dict[Node, int]:
    """How many argument slots and roots refer to each node."""
    counts: dict[Node, int] = {}
    roots = tuple(roots)
    for node in topological(roots):
        counts.setdefault(node, 0)
        for arg in node.args:
            counts[arg] = counts.get(arg, 0) + 1
    for root in roots:
        counts[root] += 1
    return counts

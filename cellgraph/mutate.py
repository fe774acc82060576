"""Variation of cells: the six transformations of Jozefowicz et al. 2015 (section 3.2), and
crossover.

Mechanism only: pure functions (cell, generator) -> cell or None. Weights, retries, acceptance and
caps are policy and live in `search`. The paper's `Linear(a, x)` is a new matrix times x plus a new
bias, the matrix starting at the usual noise plus `a` on its diagonal.

Where the paper is silent or contradicts itself: a node gets a transformation with the child's
probability p, drawn uniformly (its "1 to 3 transformations" is the alternative, `edits=(1, 3)`);
the kind is drawn among those that can be applied to the node; a matrix product counts as an
activation node (it is the paper's Linear) and the addition of its bias is part of it, so it is
never turned into another elementwise op. In the paper every value has one width: a Linear(a, x) on
x with a diagonal makes its matrix square, and with it x as wide as the cell.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from cellgraph.canonical import key_of, live_states
from cellgraph.errors import CellError
from cellgraph.graph import (
    CONST,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Init,
    Node,
    rebuilt,
    substitute,
    topological,
)
from cellgraph.normal import ON_STATE, ON_X, REACH, SIGNS, Form, form_of, leave_form
from cellgraph.ops import OPS
from cellgraph.rewrites import Value
from cellgraph.widths import build

#: The paper's activations: functions of the op table, and Linear(a, ·) by its a.
ACTIVATIONS: tuple[str | float, ...] = ("tanh", "sigmoid", "relu", 0.0, 1.0, 0.9, 1.1)
ELEMENTWISE = ("mul", "add", "sub")
_NOT_FED = frozenset([PARAM, CONST])  # what nothing flows through
_BOTH = ON_X | ON_STATE
_ACTIVATING = frozenset([MATMUL, *(name for name, op in OPS.items() if op.arity == 1)])
_BINARY = frozenset(name for name, op in OPS.items() if op.arity == 2)


@dataclass
class _Draft:
    """A cell under edit: its roots, and what is declared of its parameters."""

    roots: list[Node]
    inits: dict[str, Init]
    scalars: list[str]
    skews: list[str]
    taken: set[str]  # membership only, never iterated
    _changes: list[dict[Node, Node]] = field(default_factory=list)  # by every edit: before -> after
    _nodes: list[Node] | None = None  # of the present roots

    @classmethod
    def of(cls, cell: CellGraph) -> _Draft:
        return cls(
            roots=list(cell.roots),
            inits={p.name: p.init for p in cell.params if p.init is not None},
            scalars=[*cell.scalars],
            skews=[*cell.skews],
            taken={p.name for p in cell.params}
            | {s.name for s in cell.states}
            | {name for name, _ in cell.names},
            _nodes=list(cell.nodes),
        )

    def fresh(self, base: str) -> str:
        stem = re.sub(r"_?\d+$", "", base) or "W"
        name = next(name for i in count(1) if (name := f"{stem}_{i}") not in self.taken)
        self.taken.add(name)
        return name

    def nodes(self) -> list[Node]:
        """Arguments first; not to be changed."""
        if self._nodes is None:
            self._nodes = topological(self.roots)
        return self._nodes

    def put(self, node: Node, replacement: Node) -> None:
        """Let every user of `node` use `replacement`, which must not depend on `node`."""
        changed = {node: replacement}
        gone = changed.keys()
        for old in self.nodes():
            if not gone.isdisjoint(old.args):
                changed[old] = Node(old.op, tuple([changed.get(a, a) for a in old.args]))
        self.roots = [changed.get(root, root) for root in self.roots]
        self._nodes = None
        self._changes.append(changed)

    def now(self, node: Node) -> Node:
        """What has become of a node of the parent."""
        for changed in self._changes:
            node = changed.get(node, node)
        return node

    def linear(self, diagonal: float, operand: Node) -> Node:
        """A new matrix times the operand."""
        matrix = self.fresh("W")
        if diagonal:
            self.inits[matrix] = Init("identity", diagonal)
        return Node(MATMUL, (Node(PARAM, (), matrix), operand))

    def activation(self, kind: str | float, operand: Node) -> Node:
        """A function of the operand, or the paper's Linear(kind, operand): new matrix and new
        bias."""
        if isinstance(kind, str):
            return Node(kind, (operand,))
        return Node("add", (self.linear(kind, operand), Node(PARAM, (), self.fresh("b"))))


def mutate(
    cell: CellGraph, rng: random.Random, *, edits: tuple[int, int] | None = None
) -> CellGraph | None:
    """A child of `cell`, or None when this draw gives no valid new cell.

    `edits=None`: p ~ U[0, 1] is drawn once and every node is transformed with probability p (the
    paper's main statement); `edits=(low, high)`: between low and high transformations at random
    nodes. The child is valid (`viable`, except that a state which only keeps x or h in the parent
    may go on doing so), differs from its parent in its key, and has lost the states that no longer
    reach its output. It is not simplified: that is the caller's policy.
    """
    draft = _Draft.of(cell)
    if edits is None:
        p = rng.random()
        chosen = [node for node in cell.nodes if not node.is_leaf and rng.random() < p]
        for node in chosen:
            present = draft.now(node)
            if not present.is_leaf and present in draft.nodes():
                _transform(draft, present, rng)
    else:
        for _ in range(rng.randint(*edits)):
            inner = [node for node in draft.nodes() if not node.is_leaf]
            if not inner:
                return None
            _transform(draft, rng.choice(inner), rng)
    return _finish(draft, cell, (cell.key(),))


def crossover(mother: CellGraph, father: CellGraph, rng: random.Random) -> CellGraph | None:
    """`mother` with one of its inner values replaced by one of `father`'s, or None when that gives
    no valid new cell.

    The father's states become the mother's by position (modulo their number); his parameters come
    along as new ones.
    """
    draft = _Draft.of(mother)
    targets = [n for n in mother.nodes if not n.is_leaf]
    sources = [n for n in father.nodes if not n.is_leaf]
    if not targets or not sources:
        return None
    target, source = rng.choice(targets), rng.choice(sources)
    position = {s.name: i for i, s in enumerate(father.states)}
    declared = {p.name: p for p in father.params}
    renamed: dict[str, str] = {}

    def graft(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == STATE:
            return Node(
                STATE, (), mother.states[position[str(node.attr)] % len(mother.states)].name
            )
        if node.op == PARAM:
            param = declared[str(node.attr)]
            if param.name not in renamed:
                renamed[param.name] = draft.fresh(param.name)
                if param.init is not None:
                    draft.inits[renamed[param.name]] = param.init
                if param.kind == "scalar":
                    draft.scalars.append(renamed[param.name])
                if param.kind == "skew":
                    draft.skews.append(renamed[param.name])
            return Node(PARAM, (), renamed[param.name])
        return rebuilt(node, args)

    draft.put(target, substitute([source], graft)[source])
    return _finish(draft, mother, (mother.key(), father.key()))


def viable(cell: CellGraph) -> bool:
    """Does the next value of every state depend on x and on the past?

    By the normal form: `h' = tanh(W @ x) + h - h` forgets the past. Asked of the states that
    `simplify` keeps, of which there must be one.
    """
    reached = _reached(cell, *form_of(cell)).values()
    return bool(reached) and all(reach == _BOTH for reach in reached)


def _reached(cell: CellGraph, form: Form, image: Mapping[Node, Value]) -> dict[str, int]:
    """What the next values of the states that `simplify` keeps depend on, by name."""
    nexts = {s.name: image[s.next] for s in cell.states}
    end = image[cell.outputs[0]]
    live = form.live(end[1], nexts)
    return {n: form.reach[v[1]] & _BOTH for n, v in nexts.items() if n in live or v == end}


def _fit(reached: Mapping[str, int], parent: CellGraph) -> bool:
    """May these be the states of a child? One that keeps x for the next step, as the QRNN's does,
    may go on doing no more than that."""
    if _BOTH not in reached.values():
        return False
    short = {name: reach for name, reach in reached.items() if reach != _BOTH}
    if not short:
        return True
    before = _reached(parent, *form_of(parent))
    return all(
        before.get(name) in {ON_X, ON_STATE} and before[name] | reach == reach
        for name, reach in short.items()
    )


def _sighted(nodes: list[Node], emitted: list[Node]) -> bool:
    """Could these values depend on x and on the past, as they are written? The rules make no value
    depend on more, so that what fails here need not be brought into normal form."""
    reach: dict[Node, int] = {}
    for node in nodes:
        found = REACH.get(node.op, 0)
        for arg in node.args:
            found |= reach[arg]
        reach[node] = found
    return all(reach[node] == _BOTH for node in emitted)


def _finish(draft: _Draft, parent: CellGraph, known: tuple[str, ...]) -> CellGraph | None:
    """Freeze the draft; None when widths clash, a state is not fit, or the child is not new."""
    *nexts, output = draft.roots
    states = [(s.name, s.width, node) for s, node in zip(parent.states, nexts, strict=True)]
    live = live_states({name: node for name, _, node in states}, output)
    kept = [state for state in states if state[0] in live or state[2] is output]
    if not kept or (draft.roots == [*parent.roots] and len(kept) == len(states)):
        return None
    if not _sighted(draft.nodes(), [node for node in nexts if node is output]):
        return None
    names = [(name, draft.now(node)) for name, node in parent.names if not name.endswith("'")]
    try:
        child = build(
            parent.name,
            kept,
            output,
            scalars=draft.scalars,
            skews=draft.skews,
            inits=draft.inits,
            names=[(name, node) for name, node in names if not node.is_leaf],
        )
    except CellError:
        return None  # widths that cannot agree: this draw gives no valid cell
    form, image = form_of(child)
    if not _fit(_reached(child, form, image), parent):
        return None
    key = key_of(child, form, image)
    if key in known:
        return None
    child = child.renamed(f"cell_{key[:8]}", key)
    leave_form(child, form, image)
    return child


# -- the six transformations -----------------------------------------------------------------------
# Each takes a draft and a node and gives a draw of the node's replacement, or None where it does
# not apply.

_Draw = Callable[[random.Random], Node]


def _transform(draft: _Draft, node: Node, rng: random.Random) -> None:
    """Apply one transformation, drawn uniformly from those that fit `node`."""
    draws = [draw for edit in _EDITS if (draw := edit(draft, node)) is not None]
    if draws:
        draft.put(node, rng.choice(draws)(rng))


def _change_activation(draft: _Draft, node: Node) -> _Draw | None:
    """1. Another activation in the place of this one."""
    if node.op not in _ACTIVATING:
        return None
    others = [kind for kind in ACTIVATIONS if kind != node.op]

    def draw(rng: random.Random) -> Node:
        kind = rng.choice(others)
        if node.op == MATMUL and not isinstance(kind, str):  # Linear to Linear keeps its bias
            return draft.linear(kind, node.args[1])
        return draft.activation(kind, node.args[-1])

    return draw


def _change_elementwise(draft: _Draft, node: Node) -> _Draw | None:
    """2. Another of multiply, add, subtract."""
    if node.op not in _BINARY:
        return None
    if SIGNS[node.op] and any(a.op == PARAM for a in node.args):
        return None  # a bias
    others = [op for op in ELEMENTWISE if op != node.op]
    return lambda rng: Node(rng.choice(others), node.args)


def _insert_activation(draft: _Draft, node: Node) -> _Draw | None:
    """3. A random activation between the node and one of its arguments."""
    ports = [i for i, arg in enumerate(node.args) if arg.op not in _NOT_FED]
    if not ports:
        return None

    def draw(rng: random.Random) -> Node:
        port = rng.choice(ports)
        args = list(node.args)
        args[port] = draft.activation(rng.choice(ACTIVATIONS), args[port])
        return Node(node.op, tuple(args), node.attr)

    return draw


def _delete(draft: _Draft, node: Node) -> _Draw | None:
    """4. The node's only argument in its place, when it has one argument and one user."""
    if node.op not in _ACTIVATING:
        return None
    # The output of the layer is the next value of a state, seen from outside: no second user.
    *nexts, output = draft.roots
    users = (nexts if output in nexts else draft.roots).count(node)
    if users + sum([user.args.count(node) for user in draft.nodes()]) != 1:
        return None
    return lambda rng: node.args[-1]


def _ascend(draft: _Draft, node: Node) -> _Draw | None:
    """5. One of the node's own ancestors in its place, which shrinks the graph."""
    return (lambda rng: rng.choice(_ancestors(node))) if _has_ancestors(node) else None


def _graft_ancestors(draft: _Draft, node: Node) -> _Draw | None:
    """6. The sum, product or difference of an ancestor of this node and an ancestor of any node
    A."""
    if not _has_ancestors(node):
        return None

    def draw(rng: random.Random) -> Node:
        through = {node}  # and what depends on it: as an ancestor of A that would close a cycle
        for user in draft.nodes():
            if not through.isdisjoint(user.args):
                through.add(user)
        fed = [n for n in draft.nodes() if _has_ancestors(n)]
        elsewhere = [n for n in _ancestors(rng.choice(fed)) if n not in through]
        return Node(rng.choice(ELEMENTWISE), (rng.choice(_ancestors(node)), rng.choice(elsewhere)))

    return draw


def _ancestors(node: Node) -> list[Node]:
    """Everything that feeds into the node, but for parameters and numbers, in a fixed order."""
    return [n for n in topological(node.args) if n.op not in _NOT_FED]


def _has_ancestors(node: Node) -> bool:
    return not _NOT_FED.issuperset([a.op for a in node.args])


_EDITS = (
    _change_activation,
    _change_elementwise,
    _insert_activation,
    _delete,
    _ascend,
    _graft_ancestors,
)

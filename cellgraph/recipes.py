"""A cell as a recipe of NAS-Bench-NLP, if it is one; the other direction, and what a recipe means,
is `nasbench.py`.

Every value of a cell is tried as a node of the recipe, arguments first; where that fails, the
reason is kept in its place. For some values are no nodes of their own: `U @ h` without its bias, or
the `1 - z` of a blend. So a sum is not translated sign by sign. It is taken apart into terms, and
those are put together as linears, as blends, and as what remains. Which values are one and the same
is for the normal form to say (`normal.py`): `sigmoid(-a)` is `1 - sigmoid(a)`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce

from cellgraph import blends
from cellgraph.blends import Factors, Product, Products
from cellgraph.errors import CellError
from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Node,
    State,
    format_number,
    use_counts,
)
from cellgraph.nasbench import ACTIVATIONS, BLEND, LINEAR, PORT, PRODUCT, SUM, Recipe, from_recipe
from cellgraph.normal import SIGNS, form_of
from cellgraph.ops import OPS
from cellgraph.printing import named, render
from cellgraph.rewrites import LONGEST, ONE, SQUARE, Value

_OP_OF = {function: op for op, function in ACTIVATIONS.items()}
_TIMES = frozenset(name for name, op in OPS.items() if op.powers == (1, 1))
_STEPS = 200  # of multiplying a sum out; a recipe of the benchmark has under 30 nodes
_LONGEST = 60  # characters of a cell in a message

_Id = int | str  # of a node of the recipe: its number, or x and h_prev_i
_Term = tuple[float, Node]  # of a sum: how often, and what
# How far a sum is taken apart: not into sums that are nodes of the recipe themselves, or only not
# into those that something else needs too, or into all.
_NODES, _SHARED, _NONE = range(3)


def recipe(cell: CellGraph) -> Recipe:
    """The cell as a recipe of NAS-Bench-NLP; `cellgraph.from_recipe` gives the same function again.

    The state that is emitted becomes `h_new_0`. A bias belongs to the linear whose products it is
    added to; where several meet in one sum, each closes the linear of the products before it. A
    blend may be written as `a * b + (1 - a) * c`, `c + a * (b - c)`, `a * b + c - a * c` or
    anything else that multiplies out to these. Values keep the names that they have in the cell.

    Raises `CellError` with the reason where a recipe cannot say what the cell does: products
    without a bias, parameters that are used twice or outside a linear, starts of parameters, other
    functions than tanh, sigmoid and leaky_relu, numbers and subtraction outside a blend, widths
    other than H, an output that is no state, a next value that nothing computes.
    """
    return _Writer(cell).recipe()


def to_json(made: Recipe) -> str:
    """The recipe as a file has it: one node a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(node)}" for name, node in made.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


class _Refusal(Exception):  # noqa: N818 - no error of its own: often another way succeeds
    """Why a value is no node; the text of the nodes goes where the reason has its {}."""

    def __init__(self, reason: str, *nodes: Node) -> None:
        super().__init__(reason)
        self.reason, self.nodes = reason, nodes


class _Writer:
    def __init__(self, cell: CellGraph) -> None:
        self.cell, self.order = cell, cell.nodes
        self.form, self.image = form_of(cell)
        self.first: dict[Value, Node] = {}
        for node in self.order:
            self.first.setdefault(self.image[node], node)
        # The first node of the same value. Arguments come before what is made of them.
        self.rep = {node: self.first[self.image[node]] for node in self.order}
        self.place = {node: i for i, node in enumerate(self.order)}
        self.shared = frozenset(n for n, uses in use_counts(cell.roots).items() if uses > 1)
        self.made: dict[Node, _Id | _Refusal] = {}
        # The recipe so far: op, inputs, parameters. It has nodes that nothing will need.
        self.nodes: list[tuple[str, tuple[_Id, ...], tuple[str, ...]]] = []
        self.numbers: dict[tuple[str, tuple[_Id, ...]], int] = {}
        self.products: dict[Factors, int] = {}

    def recipe(self) -> Recipe:
        try:
            states = self._states()
            for i, state in enumerate(states):
                self.made[Node(STATE, (), state.name)] = f"h_prev_{i}"
            for node in self.order:
                if node not in self.made and self.rep[node] is node:
                    try:
                        self.made[node] = self._node(node)
                    except _Refusal as refusal:
                        self.made[node] = refusal.with_traceback(None)
            roots = [self._root(state) for state in states]
            made = self._named(roots, self._needed(roots))
            read = {name for node in made.values() for name in node["input"]}
            for i, state in enumerate(states):
                if f"h_prev_{i}" not in read:
                    raise _Refusal(f"state {state.name} is never read, expected states that are")
            if from_recipe(made, self.cell.name).raw_x != self.cell.raw_x:
                raise _Refusal("x stands outside a linear to no effect, expected a simplified cell")
            return made
        except _Refusal as refusal:
            reason = refusal.reason.format(self._text(refusal.nodes))
            raise CellError(
                f"cell {self.cell.name} is no recipe of NAS-Bench-NLP: {reason}"
            ) from None

    def _text(self, nodes: Sequence[Node]) -> str:
        """A product of nodes, by the names that the cell has for them."""
        given = {node: name for name, node in self.cell.names if not name.endswith("'")}
        label = {node: name for name, node in named(self.cell)}
        parts = [given.get(node) or render(node, label, top=True) for node in nodes]
        text = " * ".join(parts)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"

    # -- the cell as a whole

    def _states(self) -> Sequence[State]:
        """The states, the emitted one first, of a cell without anything that no node can be."""
        cell = self.cell
        for state in cell.states:
            if state.width != "H":
                raise _Refusal(f"state {state.name} has the width {state.width}, expected H alone")
        for param in cell.params:
            if param.kind == "scalar":
                raise _Refusal(f"parameter {param.name} is a scalar, expected none")
            if param.kind == "skew":
                raise _Refusal(f"matrix {param.name} is skew, expected free matrices")
            if param.init is not None:
                raise _Refusal(f"parameter {param.name} starts at {param.init}, expected no starts")
        output = self.rep[cell.outputs[0]]
        emitted = next((s for s in cell.states if self.rep[s.next] is output), None)
        if emitted is None:
            raise _Refusal("its output {} is no next value of a state, expected one", output)
        return sorted(cell.states, key=lambda state: state is not emitted)

    def _root(self, state: State) -> int:
        root = self._id(state.next)
        if isinstance(root, str):
            raise _Refusal(
                f"the next value of {state.name} is {{}}, expected an op of a recipe", state.next
            )
        return root

    def _needed(self, roots: Sequence[int]) -> list[int]:
        """The nodes that the roots need, arguments first. No parameter stands in two of them."""
        linears = [root for root in roots if self.nodes[root][0] == LINEAR]
        needed, owned = set(roots), Counter[str]()
        for i in reversed(range(len(self.nodes))):
            if i in needed:
                _, inputs, params = self.nodes[i]
                needed.update(a for a in inputs if isinstance(a, int))
                owned.update(params * max(1, linears.count(i)))
        for param in self.cell.params:
            if owned[param.name] > 1:
                raise _Refusal(
                    f"parameter {param.name} is used twice, "
                    "expected each in one place of one linear"
                )
        return sorted(needed)

    def _named(self, roots: Sequence[int], needed: Sequence[int]) -> Recipe:
        label: dict[int, str] = {}
        for name, node in self.cell.names:
            found = self.made.get(self.rep[node])
            if isinstance(found, int) and not name.endswith("'") and not PORT.fullmatch(name):
                label.setdefault(found, name)
        taken = frozenset(label.values())
        numbered = (f"node_{i}" for i in range(len(label) + len(needed)))
        fresh = (name for name in numbered if name not in taken)
        ends: dict[int, list[str]] = {}
        for i, root in enumerate(roots):
            ends.setdefault(root, []).append(f"h_new_{i}")
            label[root] = ends[root][0]
        made: Recipe = {}
        for i in needed:
            if i not in label:
                label[i] = next(fresh)
            op, inputs, _ = self.nodes[i]
            names = [label[a] if isinstance(a, int) else a for a in inputs]
            for name in ends.get(i, [label[i]]):
                made[name] = {"op": op, "input": [*names]}
        return made

    # -- values and nodes

    def _is_node(self, node: Node) -> bool:
        return not isinstance(self.made.get(node), _Refusal | None)

    def _id(self, node: Node) -> _Id:
        found = self.made[self.rep[node]]
        if isinstance(found, _Refusal):
            raise _Refusal(found.reason, *found.nodes)  # its own would collect tracebacks
        return found

    def _add(self, op: str, inputs: tuple[_Id, ...]) -> int:
        """The node of an op without parameters; there is one for the same inputs."""
        if (op, inputs) not in self.numbers:
            self.numbers[op, inputs] = len(self.nodes)
            self.nodes.append((op, inputs, ()))
        return self.numbers[op, inputs]

    def _node(self, node: Node) -> _Id:
        if node.op == INPUT:
            return "x"
        if node.op == PARAM:
            raise _Refusal("parameter {} stands outside a linear, expected W @ a + … + b", node)
        if node.op == CONST:
            raise _Refusal("the number {} stands outside a blend, expected none", node)
        if node.op in _OP_OF:
            return self._add(_OP_OF[node.op], (self._id(node.args[0]),))
        if node.op == SQUARE:
            return self._add(PRODUCT, (self._id(node.args[0]),) * 2)
        if node.op in _TIMES and CONST not in [a.op for a in node.args]:
            for a in node.args:
                if not self._is_node(self.rep[a]) and (gate := self._gate(a)) is not None:
                    raise self._half(gate)
            made = self._add(PRODUCT, tuple([self._id(a) for a in node.args]))
            times, factors = self._factors(1.0, node)
            if times == 1:
                self.products.setdefault(factors, made)
            return made
        if node.op == MATMUL or node.op in _TIMES or SIGNS[node.op]:
            return self._sum(node)
        raise _Refusal(f"{{}} needs the op {node.op}, expected {', '.join(_OP_OF)}, + and *", node)

    def _times(self, times: float, made: _Id, *nodes: Node) -> _Id:
        """A node of the recipe so often as a sum: 2 * a is a + a. `nodes` are for the message."""
        if times < 0:
            raise _Refusal("{} is subtracted outside a blend, expected none", *nodes)
        if not times.is_integer():
            number = format_number(times)
            raise _Refusal(f"{{}} is taken {number} times, expected once or more", *nodes)
        parts: list[_Id] = []
        rest = int(times)
        while rest:
            if rest % 2:
                parts.append(made)
            rest //= 2
            if rest:
                made = self._add(SUM, (made, made))
        return self._total(parts)

    def _total(self, parts: Iterable[_Id]) -> _Id:
        return reduce(lambda a, b: self._add(SUM, (a, b)), parts)

    # -- sums

    def _sum(self, node: Node) -> _Id:
        refusals: list[_Refusal] = []
        for keep in (_NODES, _SHARED, _NONE):
            terms = self._terms(node, keep)
            try:
                return self._put_together(terms, keep)
            except _Refusal as refusal:
                refusals.append(refusal.with_traceback(None))
                if not any(map(self._can_be_opened, terms)):
                    break
        raise refusals[0]

    def _can_be_opened(self, term: _Term) -> bool:
        """May it be or hold a sum that is taken apart further another time?"""
        node = term[1]
        if node.op in (MATMUL, PARAM):
            return False
        return not self._is_node(node) or bool(SIGNS.get(node.op))

    def _terms(self, root: Node, keep: int) -> list[_Term]:
        """The terms of a sum, each once, in the order of the text."""
        found: dict[Node, float] = {}
        pending = [(1.0, root)]
        while pending:
            times, node = pending.pop()
            node = self.rep[node]
            kept = keep == _NODES or (keep == _SHARED and node in self.shared)
            signs = SIGNS.get(node.op)
            if node is not root and times > 0 and kept and self._is_node(node):
                found[node] = found.get(node, 0.0) + times
            elif signs:
                pairs = zip(signs, node.args, strict=True)
                pending += reversed([(times * sign, a) for sign, a in pairs])
            elif node.op in _TIMES and CONST in [a.op for a in node.args]:
                number, other = sorted(node.args, key=lambda a: a.op != CONST)
                pending.append((times * float(number.attr or 0), other))
            else:
                found[node] = found.get(node, 0.0) + times
        return [(times, node) for node, times in found.items() if times]

    def _put_together(self, terms: Sequence[_Term], keep: int) -> _Id:
        linear = [term for term in terms if term[1].op in (MATMUL, PARAM)]
        rest = [term for term in terms if term[1].op not in (MATMUL, PARAM)]
        parts = self._linears(linear) if linear else []
        if all(times > 0 and self._is_node(node) for times, node in rest):
            parts += [self._times(times, self._id(node), node) for times, node in rest]
        else:
            parts += self._blends(rest, keep)
        if not parts:
            raise _Refusal("something in it comes to the number 0, expected none")
        return self._total(parts)

    def _linears(self, terms: Sequence[_Term]) -> list[_Id]:
        """One linear for each bias, of the products before it; of those behind it, if it is the
        last."""
        groups: list[tuple[_Term, list[_Term]]] = []
        products: list[_Term] = []
        for term in terms:
            if term[1].op == MATMUL:
                products.append(term)
            else:
                groups.append((term, products))
                products = []
        if not groups:
            raise _Refusal("{} has no bias beside it, expected W @ a + … + b", products[0][1])
        groups[-1][1].extend(products)
        if len(groups) * 2 > len(terms):
            raise _Refusal("{} has no matrix beside it, expected W @ a + … + b", groups[-1][0][1])
        for i, (_, products) in enumerate(groups):
            if not products:  # the nearest that can spare one
                near = sorted(range(len(groups)), key=lambda j: abs(i - j))
                products.append(next(groups[j][1] for j in near if len(groups[j][1]) > 1).pop())
        return [self._linear(bias, products) for bias, products in groups]

    def _linear(self, bias: _Term, products: Sequence[_Term]) -> _Id:
        if bias[0] != 1:
            number = format_number(bias[0])
            raise _Refusal(f"bias {{}} is taken {number} times, expected once", bias[1])
        inputs = [self._times(k, self._id(node.args[1]), node) for k, node in products]
        params = [str(node.args[0].attr) for _, node in products]
        self.nodes.append((LINEAR, tuple(inputs), (*params, str(bias[1].attr))))
        return len(self.nodes) - 1

    # -- blends

    def _blends(self, terms: Sequence[_Term], keep: int) -> list[_Id]:
        products, gated = self._multiplied_out(terms, keep)
        if products.get((), 0.0):
            number = Node(CONST, (), products[()])
            raise _Refusal("the number {} stands outside a blend, expected none", number)
        try:
            found, rest = blends.found(products, gated, self._expanded, _STEPS)
        except blends.NoBlend as none:
            nodes = [self.order[i] for i in none.factors]
            if none.gate is None:
                raise _Refusal("{} is subtracted outside a blend, expected none", *nodes) from None
            raise self._half(none.gate) from None
        made: list[_Id] = []
        for blend in found:
            inputs = [{blend.gate[1]: blend.gate[0]}, blend.kept, blend.new]
            made.append(self._add(BLEND, tuple([self._total(self._all(p)) for p in inputs])))
        return made + self._all(rest)

    def _half(self, gate: Product) -> _Refusal:
        return _Refusal(
            "half a blend by {}, expected a * b beside (1 - a) * c",
            *[self.order[i] for i in gate[1]],
        )

    def _all(self, products: Products) -> list[_Id]:
        return [self._product(times, factors) for factors, times in products.items()]

    def _product(self, times: float, factors: Factors) -> _Id:
        nodes = [self.order[i] for i in factors]
        made: _Id | None = self.products.get(factors)
        if made is None:
            made = reduce(lambda a, b: self._add(PRODUCT, (a, b)), [self._id(n) for n in nodes])
        return self._times(times, made, *nodes)

    def _multiplied_out(
        self, terms: Sequence[_Term], keep: int
    ) -> tuple[Products, dict[Product, Products]]:
        """A sum as products of nodes and, by their gates a, products of nodes and 1 - a."""
        products: Products = {}
        gated: dict[Product, Products] = {}
        pending = [self._factors(times, node) for times, node in reversed(terms)]
        for _ in range(_STEPS):
            if not pending:
                return products, gated
            times, factors = pending.pop()
            bad = next((i for i in factors if not self._is_node(self.order[i])), None)
            if bad is None:
                products[factors] = products.get(factors, 0.0) + times
                continue
            others = blends.without(factors, (bad,)) or ()
            gate = self._gate(self.order[bad])
            if gate is None:
                parts = self._parts(self.order[bad], keep)
                pending += [(times * k, blends.joined(others, f)) for k, f in reversed(parts)]
            elif times > 0 and others and all(self._is_node(self.order[i]) for i in others):
                new = gated.setdefault(gate, {})
                new[others] = new.get(others, 0.0) + times
            else:
                pending.append((-times * gate[0], blends.joined(others, gate[1])))
                pending.append((times, others))
        raise _Refusal(f"a sum multiplies out to more than {_STEPS} products, expected fewer")

    def _factors(self, times: float, root: Node) -> Product:
        """A number times nodes that are no products; of squares of squares there could be 2^1000 of
        them, so that beyond a limit products count as one."""
        found: list[int] = []
        pending = [root]
        while pending:
            node = self.rep[pending.pop()]
            full = len(found) + len(pending) >= LONGEST
            if node.op in _TIMES and (not full or CONST in [a.op for a in node.args]):
                pending += node.args
            elif node.op == SQUARE and not full:
                pending += node.args * 2
            elif node.op == CONST:
                times *= float(node.attr or 0)
            else:
                found.append(self.place[node])
        return times, tuple(sorted(found))

    def _parts(self, node: Node, keep: int) -> list[Product]:
        """The products that a sum consists of; raises why any other value is no node."""
        if not SIGNS.get(node.op):
            self._id(node)
        return [self._factors(times, term) for times, term in self._terms(node, keep)]

    def _expanded(self, factors: Factors) -> list[Product] | None:
        """A product multiplied out by its first sum."""
        for i in factors:
            if SIGNS.get(self.order[i].op):
                others = blends.without(factors, (i,)) or ()
                parts = self._parts(self.order[i], _NONE)
                fine = all(self._is_node(self.order[j]) for _, part in parts for j in part)
                if fine and all(others or part for _, part in parts):
                    return [(k, blends.joined(others, part)) for k, part in parts]
        return None

    def _gate(self, node: Node) -> Product | None:
        """The a of a value 1 - a, where a is a node."""
        times, term = self.image[node]
        gate = self.first.get(self.form.sum([(1.0, ONE), (-times, term)]))
        return self._factors(1.0, gate) if gate is not None and self._is_node(gate) else None

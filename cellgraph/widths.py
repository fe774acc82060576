"""Widths: which named width (H, X, P …) every node and parameter has. The checker between the text
and the graph.

Unification over width variables: an elementwise op gives its vector arguments one width, a matrix
turns the width of its operand into any other, a state has the width it declares. What stays open is
the hidden width H. Whatever lets raw `x` meet a hidden width demands X == that width; the layer
then projects x when the sizes differ.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from cellgraph.errors import CellError
from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Init,
    Node,
    Param,
    State,
    is_name,
    topological,
)

MAX_NODES = 2000  # whose key takes 0.1 s; a search stays below a hundred
SCALAR, MATRIX = "1", "(matrix)"  # no widths; a text cannot declare these names


class WidthError(CellError):
    """Widths that cannot agree, at `node`; the parser adds line and caret."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.message = message


class _Widths:
    """Union-find over width names. Variables start with '?'; fixed names with a letter."""

    def __init__(
        self,
        order: Sequence[Node],
        declared: Mapping[str, str],
        scalars: Container[str],
        skews: Container[str],
    ) -> None:
        self.parent: dict[str, str] = {}
        self.raw_x: str | None = None
        self.of: dict[Node, str] = {}  # the width of every node, up to `find`
        self.declared, self.scalars, self.skews = declared, scalars, skews
        self.matrices = frozenset(n.args[0] for n in order if n.op == MATMUL)
        for node in order:
            if node.is_leaf:
                self.of[node] = self._leaf(node)
            elif node.op == MATMUL:
                self.of[node] = self._product(node)
            else:
                self.of[node] = self._pointwise(node)

    def find(self, width: str) -> str:
        while (above := self.parent.get(width, width)) != width:
            # Halving the path keeps a sum of thousands of parameters from taking quadratic time.
            self.parent[width] = self.parent.get(above, above)
            width = above
        return width

    def resolve(self, width: str) -> str:
        """The fixed name that a width came to; what stayed open is the hidden width."""
        found = self.find(width)
        return "H" if found.startswith("?") else found

    def unify(self, a: str, b: str, node: Node) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if a.startswith("?"):
            self.parent[a] = b
        elif b.startswith("?"):
            self.parent[b] = a
        elif "X" in (a, b):
            self.raw_x = b if a == "X" else a
            self.parent["X"] = self.raw_x
        else:
            raise WidthError(
                node, f"a vector of width {a} meets one of width {b}, expected equal widths"
            )

    def square(self, matrix: Node) -> None:
        """A skew matrix, or one with a start on its diagonal, has rows and columns of one width,
        be it that of x."""
        self.unify(f"?{matrix.attr}.rows", f"?{matrix.attr}.cols", matrix)

    def _leaf(self, node: Node) -> str:
        label = str(node.attr)
        if node.op == INPUT:
            return "X"
        if node.op == STATE:
            if label not in self.declared:
                raise WidthError(node, f"state {label!r} is read but not declared")
            return self.declared[label]
        if node.op == PARAM and label in self.skews:
            if label in self.scalars:
                raise WidthError(node, f"{label} is declared scalar and skew, expected one of them")
            if node not in self.matrices:
                raise WidthError(node, f"{label} is declared skew, expected it left of @")
        if node in self.matrices:
            return MATRIX
        return SCALAR if node.op == CONST or label in self.scalars else f"?{label}"

    def _product(self, node: Node) -> str:
        matrix, operand = node.args
        if str(matrix.attr) in self.scalars:
            raise WidthError(node, f"{matrix.attr} is declared scalar, expected a matrix left of @")
        if self.of[operand] in (SCALAR, MATRIX):
            found = "number" if self.of[operand] == SCALAR else "matrix"
            raise WidthError(node, f"the right side of @ is a {found}, expected a vector")
        self.unify(f"?{matrix.attr}.cols", self.of[operand], node)
        return f"?{matrix.attr}.rows"

    def _pointwise(self, node: Node) -> str:
        result = SCALAR
        for arg in node.args:
            width = self.of[arg]
            if width == MATRIX:
                raise WidthError(
                    node,
                    f"{arg.attr} is a matrix elsewhere in the cell, expected it left of @ only",
                )
            if width != SCALAR:
                if result != SCALAR:
                    self.unify(result, width, node)
                result = width
        return result

    def param(self, node: Node, init: Init | None) -> Param:
        """What is known of a parameter once every width is unified."""
        label = str(node.attr)
        identity = init is not None and init.kind == "identity"
        if node in self.matrices:
            rows, cols = self.resolve(f"?{label}.rows"), self.resolve(f"?{label}.cols")
            skew = label in self.skews
            if skew and init is not None:
                raise WidthError(
                    node,
                    f"init {label} = {init}: {label} is skew, where constants and diagonals "
                    "cancel out, expected no init",
                )
            return Param(label, "skew" if skew else "matrix", rows, cols, init)
        if identity:
            raise WidthError(
                node, f"init {label} = identity(…): {label} is not a matrix, expected a number"
            )
        if label in self.scalars:
            return Param(label, "scalar", None, None, init)
        return Param(label, "vector", self.resolve(f"?{label}"), None, init)


def build(
    name: str,
    states: Sequence[tuple[str, str, Node]],
    output: Node,
    *,
    scalars: Iterable[str] = (),
    skews: Iterable[str] = (),
    inits: Mapping[str, Init] | None = None,
    names: Iterable[tuple[str, Node]] = (),
    doc: str = "",
) -> CellGraph:
    """Check widths, derive the parameters and freeze a cell.

    `states` are (name, width, next value); `scalars` names the scalar parameters, `skews` the
    skew-symmetric matrices; `inits` the declared starts. Names of nodes that nothing reads are
    dropped with them. Raises `WidthError`, a `CellError`.
    """
    inits = inits or {}
    primed = [f"{label}'" for label, _, _ in states]
    # `c'` is no name once c is no state.
    names = tuple((n, node) for n, node in names if n in primed or not n.endswith("'"))
    order = topological([node for _, _, node in states] + [output])
    _check_names(name, [s[0] for s in states], [s[1] for s in states], order, names)
    if len(order) > MAX_NODES:
        raise CellError(f"cell {name} has {len(order)} nodes, expected at most {MAX_NODES}")
    declared = {label: width for label, width, _ in states}
    widths = _Widths(order, declared, frozenset(scalars), frozenset(skews))
    for node in order:
        if node in widths.matrices:
            init = inits.get(str(node.attr))
            if str(node.attr) in widths.skews or (init is not None and init.kind == "identity"):
                widths.square(node)
    for label, width, node in states:
        if widths.of[node] in (SCALAR, MATRIX):
            raise WidthError(
                node, f"the next value of {label} is not a vector, expected width {width}"
            )
        widths.unify(widths.of[node], width, node)
    if widths.of[output] in (SCALAR, MATRIX):
        raise WidthError(output, "the output is not a vector, expected one")
    params = [widths.param(node, inits.get(str(node.attr))) for node in order if node.op == PARAM]
    alive = frozenset(order)
    cell = CellGraph(
        name=name,
        inputs=("x",),
        states=tuple(State(*s) for s in states),
        outputs=(output,),
        params=tuple(params),
        raw_x=widths.raw_x,
        names=tuple((label, node) for label, node in names if node in alive),
        doc=doc,
    )
    cell.__dict__["nodes"] = tuple(order)  # as the cell would find them itself
    return cell


def _check_names(
    cell: str,
    states: Sequence[str],
    widths: Sequence[str],
    order: Sequence[Node],
    labels: Sequence[tuple[str, Node]],
) -> None:
    """Whoever builds a cell without its text must not get one that no text can say."""
    params = [str(node.attr) for node in order if node.op == PARAM]
    primed = [f"{state}'" for state in states]
    named = {"cell": [cell], "state": states, "width": widths, "parameter": params}
    named["value"] = [label for label, _ in labels if label not in primed]
    for kind, given in named.items():
        for name in given:
            # A cell may be called like a function (`cell tanh(x, h)`); it is never read.
            if not is_name(name) and not (
                kind == "cell" and is_name(str(name) + "_") and isinstance(name, str)
            ):
                raise CellError(f"{name!r} names a {kind}, expected a name of the notation")
    taken = frozenset(params)
    for name in [*states, *named["value"]]:
        if name in taken or states.count(name) > 1:
            raise CellError(f"{name} names two things in the cell, expected different names")
    for name in named["value"]:
        if name in states:
            raise CellError(f"{name} names a state and a value, expected different names")
    for node in order:
        if node.op == INPUT and node.attr != "x":
            raise CellError(f"input {node.attr!r}, expected x")


def node_widths(cell: CellGraph) -> dict[Node, str | None]:
    """The name of every node's width; None for numbers and scalars. A matrix parameter has its
    rows."""
    params = {p.name: p for p in cell.params}
    states = {s.name: s for s in cell.states}
    width: dict[Node, str | None] = {}
    for node in cell.nodes:
        if node.op == CONST:
            width[node] = None
        elif node.op == INPUT:
            width[node] = cell.raw_x or "X"
        elif node.op == STATE:
            width[node] = states[str(node.attr)].width
        elif node.op == PARAM:
            width[node] = params[str(node.attr)].rows
        elif node.op == MATMUL:
            width[node] = width[node.args[0]]
        else:
            width[node] = next((width[a] for a in node.args if width[a] is not None), None)
    return width

"""Which named cells are near a cell: by edit distance, and by being the same function.

The edit distance counts edits that turn one graph into another: put in or take out a node or an
edge, or change the label of one. The graphs are those of the canonical text (`canonical.py`), so
that names, the order of lines and everything that the rules of the normal form know cost nothing: a
node is a term, an edge says which place an argument has and with which weight; another leads from
every next value to its state, and from the output out.

The exact distance takes exponential time (`networkx.graph_edit_distance`). This one is the cost of
an edit path, so never too small, and often the least: nodes are assigned to nodes (Riesen, Bunke
2009, doi 10.1016/j.imavis.2008.04.004) by labels and by how well their surroundings fit, and then
again by which edges the last assignment keeps, which is the linear part of the quadratic problem
(Bougleux et al. 2017, doi 10.1016/j.patrec.2016.10.001); the best assignment met is taken. Rounded
numbers and a fixed order of the two cells make it the same on every machine and in both directions.
It need not obey the triangle inequality.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import networkx as nx

from cellgraph import zoo
from cellgraph.canonical import canonical_text
from cellgraph.graph import CONST, INPUT, PARAM, STATE, CellGraph
from cellgraph.normal import COMMUTES

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OUTPUT, OP = "output", "op"
_SPREADS = 6  # rounds in which neighbours tell each other how well they fit
_ROUNDS = 12  # of assigning anew, at most
_SHARES = (0.25, 4.0)  # of how well nodes fit in an assignment that grows
_GRAIN = 1 << 20  # soft assignments are whole multiples of 1 / _GRAIN, so that sums are exact


@dataclass(frozen=True, slots=True)
class Closest:
    """The named cells at the least edit distance, in the order of the zoo."""

    names: tuple[str, ...]
    distance: int


def labelled_graph(cell: CellGraph) -> nx.DiGraph[int]:
    """The graph that is edited. Nodes have `label` and `kind` (the op of a leaf, else "op": only
    labels of one kind turn into one another), edges `label`."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    states: list[int] = []

    def join(source: str, user: int, place: object) -> None:
        weight, _, number = source.partition("*")
        before = graph.edges.get((int(number), user), {}).get("label", ())
        graph.add_edge(int(number), user, label=(*before, (weight, place)))

    for number, line in enumerate(canonical_text(cell).splitlines()):
        word, *rest = line.split()
        if word == "states":
            widths = rest
        elif word == "roots":
            end = graph.number_of_nodes()
            graph.add_node(end, label=OUTPUT, kind=OUTPUT)
            for source, user in zip(rest, [end, *states], strict=True):
                join(source, user, "next")
        else:
            op = word.rstrip("0123456789") if word[-1].isdigit() else word
            kind = op if op in (CONST, INPUT, PARAM, STATE) else OP
            label = " ".join([op, *(token for token in rest if "*" not in token)])
            graph.add_node(number, label=label, kind=kind)
            states += [number] * (kind == STATE)
            for port, source in enumerate(token for token in rest if "*" in token):
                join(source, number, None if op in COMMUTES else port)
    for number, width in zip(states, widths, strict=True):
        graph.nodes[number]["label"] += f" {width}"
    return graph


def edit_distance(a: CellGraph, b: CellGraph) -> int:
    """How many edits turn one cell into the other, at most; 0 exactly for cells of one key, and the
    same in both directions."""
    if a.key() == b.key():
        return 0
    first, second = sorted([a, b], key=lambda cell: cell.key())
    return max(1, _distance(_graph(first), _graph(second)))


def closest(cell: CellGraph) -> Closest:
    """The named cells that are nearest to a cell, itself left out."""
    own = _graph(cell)
    others = [(name, zoo.get(name)) for name in zoo.names() if not _is(cell, name)]
    # Nearest first by what labels alone allow; the rest is out of reach.
    bounds = {name: _least(own, _graph(other)) for name, other in others}
    found: dict[str, int] = {}
    for name, other in sorted(others, key=lambda pair: bounds[pair[0]]):
        if not found or bounds[name] <= min(found.values()):
            found[name] = edit_distance(cell, other)
    least = min(found.values())
    return Closest(tuple(n for n in zoo.names() if found.get(n) == least), least)


def same_function_as(cell: CellGraph) -> tuple[str, ...]:
    """The named cells that compute the same outputs from zero states (`fingerprints.py`), itself
    left out; starts of parameters count."""
    from cellgraph.fingerprints import same_function

    own = _fingerprint(cell)
    return tuple(
        name
        for name in zoo.names()
        if not _is(cell, name)
        and (
            zoo.get(name).key() == cell.key()
            or (_fingerprint(zoo.get(name)) == own and same_function(zoo.get(name), cell))
        )
    )


def _is(cell: CellGraph, name: str) -> bool:
    return cell.name == name and zoo.get(name) == cell


@lru_cache(maxsize=256)
def _fingerprint(cell: CellGraph) -> str:
    from cellgraph.fingerprints import fingerprint

    return fingerprint(cell)


# -- the assignment --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Graph:
    """Labels of nodes and edges as numbers that all graphs share."""

    labels: Array
    kinds: Array
    tails: Array
    heads: Array
    places: Array
    leaving: Array  # (nodes, edges): 1 where an edge begins at a node
    entering: Array  # and where it ends
    node_labels: Counter[tuple[int, int]]  # with their kinds
    edge_labels: Counter[int]

    @property
    def size(self) -> int:
        return len(self.labels) + len(self.tails)


_numbers: dict[object, int] = {}


@lru_cache(maxsize=256)
def _graph(cell: CellGraph) -> _Graph:
    import numpy as np

    graph = labelled_graph(cell)

    def array(values: list[object]) -> Array:
        return np.array([_numbers.setdefault(value, len(_numbers)) for value in values], dtype=int)

    labels = array([label for _, label in graph.nodes(data="label")])
    kinds = array([kind for _, kind in graph.nodes(data="kind")])
    places = array([tuple(sorted(label, key=str)) for *_, label in graph.edges(data="label")])
    ends = np.array(list(graph.edges), dtype=int).reshape(-1, 2)
    tails, heads = ends.T
    leaving, entering = (1.0 * np.equal.outer(np.arange(len(labels)), e) for e in (tails, heads))
    nodes = Counter(zip(kinds.tolist(), labels.tolist(), strict=True))
    edges = Counter(places.tolist())
    return _Graph(labels, kinds, tails, heads, places, leaving, entering, nodes, edges)


def _least(a: _Graph, b: _Graph) -> int:
    """No edit path is shorter: what labels alone cost, however nodes are assigned."""
    edges = max(len(a.tails), len(b.tails)) - (a.edge_labels & b.edge_labels).total()
    same = (a.node_labels & b.node_labels).total()
    kinds = [Counter(graph.kinds.tolist()) for graph in (a, b)]
    changed = (kinds[0] & kinds[1]).total() - same
    return len(a.labels) + len(b.labels) - 2 * same - changed + edges


def _distance(a: _Graph, b: _Graph) -> int:
    """All nodes and edges of both, less what the best assignment keeps."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    pair = _Pair(a, b)
    rows, columns = pair.nodes.shape
    soft = pair.nodes
    for _ in range(_SPREADS):
        total = np.maximum(soft.sum(1, keepdims=True) + soft.sum(0, keepdims=True), 1)
        soft = pair.gain(np.rint(2 * _GRAIN * soft / total) / _GRAIN)
    # Of equals, those that stand at like places in the canonical texts.
    places = np.subtract.outer(np.arange(rows) * columns, np.arange(columns) * rows)
    near = np.abs(places) / (-4.0 * (rows * columns) ** 2)
    fit = soft / soft.max() + near
    best = 0
    for start in (fit, *(pair.grown(share * fit) for share in _SHARES)):
        score, seen = start, set[bytes]()
        for _ in range(_ROUNDS):
            chosen = linear_sum_assignment(score + near, maximize=True)
            hard = np.zeros_like(fit)
            hard[chosen] = pair.nodes[chosen] > 0
            best = max(best, pair.kept(hard))
            if hard.tobytes() in seen:
                break
            seen.add(hard.tobytes())
            score = pair.gain(hard)
    return a.size + b.size - best


class _Pair:
    """What two graphs keep of each other: 2 for a node or an edge with its label, 1 for one whose
    label changes. `nodes` (n, m) and `edges` hold it for every pair of them."""

    def __init__(self, a: _Graph, b: _Graph) -> None:
        import numpy as np

        self.a, self.b = a, b
        kinds, labels = np.equal.outer(a.kinds, b.kinds), np.equal.outer(a.labels, b.labels)
        self.nodes: Array = 1.0 * kinds + labels
        self.edges: Array = 1.0 + np.equal.outer(a.places, b.places)
        self.heads, self.tails = np.ix_(a.heads, b.heads), np.ix_(a.tails, b.tails)

    def kept(self, hard: Array) -> int:
        """What an assignment keeps."""
        edges = self.edges * hard[self.heads] * hard[self.tails]
        return int((hard * self.nodes).sum() + edges.sum())

    def gain(self, matched: Array) -> Array:
        """What every pair of nodes keeps, itself and its edges, when all others are assigned as in
        `matched`, which may be in parts."""
        onwards = self.a.leaving @ (self.edges * matched[self.heads]) @ self.b.leaving.T
        back = self.a.entering @ (self.edges * matched[self.tails]) @ self.b.entering.T
        found: Array = (self.nodes + onwards + back) * (self.nodes > 0)
        return found

    def grown(self, fit: Array) -> Array:
        """An assignment that grows from pair to pair: always the one that keeps most of itself, of
        its edges to those that are assigned already, and of `fit`."""
        import numpy as np

        score = np.where(self.nodes > 0, self.nodes + fit, -np.inf)
        hard = np.zeros_like(fit)
        ends = [(self.a.tails, self.a.heads, self.b.tails, self.b.heads)]
        ends += [(self.a.heads, self.a.tails, self.b.heads, self.b.tails)]
        for _ in range(min(score.shape)):
            u, v = divmod(int(score.argmax()), score.shape[1])
            if score[u, v] == -np.inf:
                break
            hard[u, v] = score.size  # more than all that is kept
            for here, there, of_b, far in ends:
                ours, theirs = np.flatnonzero(here == u), np.flatnonzero(of_b == v)
                choices = max(len(ours), len(theirs), 1)  # x has many users, a gate has one
                pairs = self.edges[np.ix_(ours, theirs)] / choices
                score[np.ix_(there[ours], far[theirs])] += pairs
            score[u, :] = score[:, v] = -np.inf
        return hard

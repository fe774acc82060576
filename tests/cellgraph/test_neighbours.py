"""Edit distance of cells, the named cells that are near, and those that are the same function."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys

import networkx as nx
import pytest
from hypothesis import given, settings

import cellgraph as cg
from cellgraph import CellGraph
from cellgraph.neighbours import _graph, _least, closest, edit_distance, labelled_graph
from cellgraph.neighbours import same_function_as as same
from tests.strategies import cells

SMALL = ["h' = h + b", "h' = h - b", "h' = a * h", "h' = tanh(a * h)", "h' = relu(W @ x)",
         "h' = tanh(U @ h)", "h' = 2 * h + b"]  # fmt: skip


def small(equation: str) -> CellGraph:
    return cg.parse(f"cell c(x, h)\n    {equation}\n")


def exact(a: CellGraph, b: CellGraph) -> float:
    """By networkx, in exponential time, at the costs of `edit_distance`."""

    def relabelled(left: dict[str, object], right: dict[str, object]) -> int:
        if left.get("kind") != right.get("kind"):
            return 2
        return int(left["label"] != right["label"])

    distance = nx.graph_edit_distance(
        labelled_graph(a),
        labelled_graph(b),
        node_subst_cost=relabelled,
        edge_subst_cost=relabelled,
    )
    assert distance is not None
    return float(distance)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(SMALL, 2)))
def test_never_below_the_exact_distance(a: str, b: str) -> None:
    found, wanted = edit_distance(small(a), small(b)), exact(small(a), small(b))
    assert wanted <= found <= wanted + 2
    assert _least(_graph(small(a)), _graph(small(b))) <= wanted


def test_most_often_the_exact_distance() -> None:
    pairs = [(small(a), small(b)) for a, b in itertools.combinations(SMALL, 2)]
    assert sum(edit_distance(*pair) == exact(*pair) for pair in pairs) >= 0.9 * len(pairs)


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        ("lstm", "np", 0),  # one function, one key
        ("lstm", "lstm_b", 1),  # the start of b_f
        ("lstm", "lstm_jozefowicz", 1),  # tanh for sigmoid
        # Three peepholes: a vector, a product, and edges from c, to the product and to the sum.
        ("lstm", "lstm_peephole", 15),
        # W_z @ x + U_z @ tanh(h): a node between two others, and its edges for the old one.
        ("niaf", "lstm_peephole", 4),
        ("noaf", "lstm_peephole", 4),
    ],
)
def test_known_distances(a: str, b: str, edits: int) -> None:
    assert edit_distance(cg.load(a), cg.load(b)) == edits


def test_symmetric_and_zero_for_equal_keys_alone() -> None:
    """For a fifth of all pairs, drawn anew whenever the zoo grows."""
    named = [cg.zoo.get(name) for name in cg.zoo.names()]
    pairs = list(itertools.combinations(named, 2))
    for a, b in random.Random(0).sample(pairs, len(pairs) // 5):
        distance = edit_distance(a, b)
        assert distance == edit_distance(b, a)
        assert (distance == 0) == (a.key() == b.key())
        assert _least(_graph(a), _graph(b)) <= distance


def test_names_and_lines_cost_nothing() -> None:
    text = """cell other(x, state)
    keep = sigmoid(A @ state + v + B @ x)
    look = sigmoid(u + C @ x + D @ state)
    new  = tanh(E @ (state * look) + w + F @ x)
    state' = new * (1 - keep) + state * keep
"""
    cell, gru = cg.parse(text), cg.load("gru")
    assert edit_distance(cell, gru) == 0
    for other in ("lstm", "mut1", "tanh_rnn"):
        assert edit_distance(cell, cg.load(other)) == edit_distance(gru, cg.load(other))


def test_few_edits_make_a_small_distance() -> None:
    """One mutation costs a few edits, so its child stays nearer than an unrelated cell."""
    rng, lstm = random.Random(3), cg.load("lstm")
    children = [cg.mutate(lstm, rng, edits=(1, 1)) for _ in range(60)]
    distances = sorted(edit_distance(lstm, child) for child in children if child is not None)
    assert len(distances) > 10
    assert distances[0] >= 1
    assert distances[len(distances) // 2] < edit_distance(lstm, cg.load("tanh_rnn")) / 2


@settings(max_examples=30, deadline=None)
@given(cell=cells(), other=cells())
def test_any_two_cells(cell: CellGraph, other: CellGraph) -> None:
    distance = edit_distance(cell, other)
    assert distance == edit_distance(other, cell)
    assert _least(_graph(cell), _graph(other)) <= distance
    sizes = [graph.number_of_nodes() + graph.number_of_edges()
             for graph in map(labelled_graph, (cell, other))]  # fmt: skip
    assert distance <= sum(sizes)


def test_the_same_in_every_process() -> None:
    names = ("gru", "mut3", "cifg", "nog")
    code = (
        "import cellgraph as cg, itertools;"
        f"print([cg.edit_distance(*map(cg.load, p)) for p in itertools.combinations({names}, 2)])"
    )
    pairs = itertools.combinations(map(cg.load, names), 2)
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        if seed == "0":
            wanted = str([edit_distance(*pair) for pair in pairs])
        assert done.stdout.strip() == wanted


def test_closest_named_cells() -> None:
    near = closest(cg.load("lstm_b"))
    assert near.distance == 1
    assert {"lstm", "np"} <= set(near.names)
    # A cell of one's own that is a named one: itself is not left out there.
    mine = cg.parse(str(cg.load("gru")).replace("cell gru(", "cell mine("))
    assert closest(mine).distance == 0
    assert "gru" in closest(mine).names


def test_closest_is_what_all_distances_say() -> None:
    """The bound that leaves out most of the zoo leaves out nothing that counts."""
    for name in ("mut1", "nog", "tanh_rnn"):
        cell = cg.load(name)
        every = {n: edit_distance(cell, cg.load(n)) for n in cg.zoo.names() if n != name}
        least = min(every.values())
        found = closest(cell)
        assert found.distance == least
        assert found.names == tuple(n for n, distance in every.items() if distance == least)


def test_same_function() -> None:
    assert "np" in same(cg.load("lstm"))
    assert "lstm" in same(cg.load("np"))
    assert not {"lstm", "lstm_b"} & set(same(cg.load("lstm_b"))), "starts of parameters count"
    assert "gru" not in same(cg.load("gru"))
    # A form that no rule of the key connects.
    text = str(cg.load("gru")).replace("h' = z * h + (1 - z) * g", "h' = g + z * (h - g)")
    written = cg.parse(text)
    assert written.key() != cg.load("gru").key()
    assert "gru" in same(written)
    assert closest(written).distance > 0

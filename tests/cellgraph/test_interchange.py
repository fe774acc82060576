"""Cells as networkx graphs: there and back, and what is refused on the way in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings

import cellgraph as cg
from tests.strategies import cells


def assert_round_trip(cell: cg.CellGraph) -> None:
    graph = cg.to_networkx(cell)
    back = cg.from_networkx(graph)
    assert back == cell
    assert (back.names, back.doc, str(back)) == (cell.names, cell.doc, str(cell))


@pytest.mark.parametrize("name", cg.zoo.names())
def test_named_cells(name: str) -> None:
    assert_round_trip(cg.load(name))


@settings(max_examples=60, deadline=None)
@given(cells())
def test_drawn_cells(cell: cg.CellGraph) -> None:
    assert_round_trip(cell)


def test_the_form_of_the_graph() -> None:
    graph = cg.to_networkx(cg.parse("cell a(x, h, r: P)\n h' = h - W @ x\n r' = tanh(r) * 2"))
    assert nx.is_directed_acyclic_graph(graph)
    assert list(graph) == list(range(len(graph)))
    assert all(argument < user for argument, user in graph.edges())
    of = {(data["op"], data["attr"]): i for i, data in graph.nodes(data=True)}
    sub, minus = of["sub", None], of["matmul", None]
    assert graph.edges[of["state", "h"], sub, 0]["port"] == 0
    assert graph.edges[minus, sub, 0]["port"] == 1
    assert of["const", 2.0] in graph.pred[of["mul", None]]
    assert graph.graph["states"] == [("h", "H", sub), ("r", "P", of["mul", None])]
    assert graph.graph["output"] == sub


def test_one_argument_twice_is_two_edges() -> None:
    graph = cg.to_networkx(cg.parse("cell a(x, h)\n h' = (h - x) * (h - x)"))
    assert sorted(p for _, _, p in graph.edges(data="port")) == [0, 0, 1, 1]
    assert cg.from_networkx(graph).key() == cg.parse("cell b(x, s)\n s' = (s - x) * (s - x)").key()


def test_other_people_may_use_other_node_labels_and_leave_out_what_is_empty() -> None:
    graph = nx.relabel_nodes(cg.to_networkx(cg.load("gru")), lambda i: f"node {i}")
    about = graph.graph
    about["states"] = [(name, width, f"node {i}") for name, width, i in about["states"]]
    about["output"] = f"node {about['output']}"
    for name in ("names", "doc", "scalars", "skews", "inits"):
        del about[name]
    for _, data in graph.nodes(data=True):
        if data["attr"] is None:
            del data["attr"]
    assert cg.from_networkx(graph) == cg.load("gru")


def without(key: str) -> Callable[[Any], None]:
    return lambda graph: graph.graph.pop(key)


def with_about(key: str, value: Any) -> Callable[[Any], None]:
    return lambda graph: graph.graph.update({key: value})


def with_data(i: int, **data: Any) -> Callable[[Any], None]:
    return lambda graph: graph.nodes[i].update(data)


# The nodes of `h' = tanh(W @ x + h)`: 0 W, 1 x, 2 matmul, 3 h, 4 add, 5 tanh.
UNWRITTEN = "cannot be written as notation, expected plain names, finite numbers, and attr"
MALFORMED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cycle": (lambda g: g.add_edge(5, 4, port=0), "the graph of the cell has a cycle, expected"),
    "loop": (lambda g: g.add_edge(5, 5, port=1), "the graph of the cell has a cycle, expected"),
    "no op": (lambda g: g.nodes[5].pop("op"), "the graph of the cell lacks 'op', expected"),
    "no port": (lambda g: g.edges[4, 5, 0].pop("port"), "the graph of the cell lacks 'port'"),
    "a port twice": (lambda g: g.edges[3, 4, 0].update(port=0), "node 4 has ports [0, 0], expecte"),
    "a port left out": (lambda g: g.edges[3, 4, 0].update(port=2), "node 4 has ports [0, 2]"),
    "a port that is text": (
        lambda g: g.edges[3, 4, 0].update(port="1"),
        "the graph of the cell is",
    ),
    "an argument too many": (lambda g: g.add_edge(1, 5, port=1), "tanh has 2 arguments, expected"),
    "an argument less": (lambda g: g.remove_edge(3, 4), "add has 1 arguments, expected 2"),
    "a leaf with arguments": (
        lambda g: g.add_edge(0, 3, port=0),
        "state has 1 arguments, expected",
    ),
    "an unknown op": (with_data(5, op="eval"), "unknown op 'eval', expected one of add, sub"),
    "an op that is a list": (with_data(5, op=["tanh"]), "the graph of the cell is malformed"),
    "an attribute that is a list": (
        with_data(3, attr=["h"]),
        "expected a name, and on leaves alone",
    ),
    "an attribute of an op": (with_data(5, attr="h"), "expected a name, and on leaves alone"),
    "no name": (without("name"), "the graph of the cell lacks 'name', expected"),
    "no states": (without("states"), "the graph of the cell lacks 'states', expected"),
    "no output": (without("output"), "the graph of the cell lacks 'output', expected"),
    "an output that is no node": (with_about("output", 99), "the graph of the cell lacks 99"),
    "states of the wrong form": (with_about("states", [("h", 5)]), "the graph of the cell is malf"),
    "states that are no list": (with_about("states", 5), "the graph of the cell is malformed"),
    "an undeclared state": (with_about("states", [("c", "H", 5)]), "state 'h' is read but not"),
    "no state": (with_about("states", []), "state 'h' is read but not declared"),
    "a state of width X": (with_about("states", [("h", "X", 5)]), UNWRITTEN),
    "a start of an unknown kind": (with_about("inits", {"W": ("eye", 1.0)}), UNWRITTEN),
    "a start that is no number": (
        with_about("inits", {"W": ("constant", "1; x")}),
        "number '1; x' in a cell",
    ),
    "a start that is infinite": (
        with_about("inits", {"W": ("constant", float("inf"))}),
        "number inf in a cell",
    ),
    "the left of @ is no parameter": (
        with_data(0, op="state", attr="h"),
        "the left side of @ is n",
    ),
    "a matrix beside @": (
        with_data(3, op="param", attr="W"),
        "W is a matrix elsewhere in the cell",
    ),
    "an input of another name": (with_data(1, attr="y"), "input 'y', expected x"),
    "a name with a space": (with_data(0, attr="W W"), "names a parameter, expected a name of"),
    "a name with code": (
        with_data(0, attr="W\n    import os"),
        "names a parameter, expected a name of",
    ),
    "a name that is a function": (
        with_data(0, attr="tanh"),
        "names a parameter, expected a name of",
    ),
    "a name that is a state": (with_data(0, attr="h"), "h names two things in the cell"),
    "a name that is a number": (with_data(0, attr=3), "expected a name, and on leaves alone"),
    "a cell's name with code": (
        with_about("name", "a(x)\nimport os"),
        "names a cell, expected a name of",
    ),
    "a cell's name that is none": (
        with_about("name", None),
        "None names a cell, expected a name of",
    ),
}


@pytest.mark.parametrize(("change", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_graphs(change: Callable[[Any], Any], message: str) -> None:
    graph = cg.to_networkx(cg.parse("cell a(x, h)\n h' = tanh(W @ x + h)"))
    assert [data["op"] for _, data in graph.nodes(data=True)] == [
        "param", "input", "matmul", "state", "add", "tanh",
    ]  # fmt: skip
    change(graph)
    with pytest.raises(cg.CellError) as caught:
        cg.from_networkx(graph)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_graphs_of_another_kind() -> None:
    for other in (nx.Graph(), nx.Graph([(1, 2)]), nx.MultiDiGraph(), nx.DiGraph(), 3, None):
        with pytest.raises(cg.CellError):
            cg.from_networkx(other)

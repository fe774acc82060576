"""Nodes and cells: interned, frozen, ordered, of the right widths; the interpreter by hand."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import cellgraph
from cellgraph import CellError, parse, zoo
from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    Init,
    Node,
    Param,
    State,
    depends_on,
    format_number,
    rebuilt,
    substitute,
    topological,
    use_counts,
)
from cellgraph.interpret import effective, step, unroll
from cellgraph.widths import node_widths
from tests.strategies import cells, sample

x, h, b = Node(INPUT, (), "x"), Node(STATE, (), "h"), Node(PARAM, (), "b")
W = Node(PARAM, (), "W")


# -- nodes -----------------------------------------------------------------------------------------


def test_equal_nodes_are_one_object() -> None:
    assert Node("add", (h, Node("tanh", (b,)))) is Node("add", (h, Node("tanh", (b,))))
    assert Node("add", (h, b)) is not Node("add", (b, h))
    assert Node(STATE, (), "h") is not Node(PARAM, (), "h")
    assert Node(CONST, (), 1) is Node(CONST, (), 1.0)
    assert Node(CONST, (), -0.0) is Node(CONST, (), 0.0)
    assert math.copysign(1, Node(CONST, (), -0.0).attr) == 1  # type: ignore[arg-type]


def test_interning_holds_across_threads() -> None:
    def chain(_: int) -> list[Node]:
        made = [h]
        for _ in range(300):
            made.append(Node("tanh", (Node("add", (made[-1], b)),)))
        return made

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(chain, range(16))
    assert all(a is c for other in others for a, c in zip(first, other, strict=True))


def test_nodes_are_forgotten() -> None:
    """A search makes millions of cells; the table of nodes must not keep them."""
    node = Node("tanh", (Node("add", (h, Node(PARAM, (), "only here"))),))
    watch = [weakref.ref(node), weakref.ref(node.args[0])]
    del node
    gc.collect()
    assert [ref() for ref in watch] == [None, None]


def test_a_deep_graph_is_forgotten_without_recursion() -> None:
    node = h
    for i in range(30_000):
        node = Node("neg", (node,)) if i else Node("mul", (node, Node(PARAM, (), "deep")))
    del node
    gc.collect()


def test_nodes_are_immutable() -> None:
    node = Node("tanh", (h,))
    for name in ("op", "args", "attr", "other"):
        with pytest.raises(AttributeError, match="nodes are immutable"):
            setattr(node, name, None)
        with pytest.raises(AttributeError, match="nodes are immutable"):
            delattr(node, name)


@pytest.mark.parametrize(
    ("op", "args", "attr", "message"),
    [
        ("tahn", (h,), None, "unknown op 'tahn', expected one of add, sub"),
        ("tanh", (), None, "tanh has 0 arguments, expected 1"),
        ("add", (h,), None, "add has 1 arguments, expected 2"),
        (STATE, (h,), "h", "state has 1 arguments, expected 0"),
        (MATMUL, (W,), None, "matmul has 1 arguments, expected 2"),
        (MATMUL, (h, h), None, "the left side of @ is not a parameter, expected a matrix"),
        (CONST, (), math.inf, "number inf in a cell, expected a finite number"),
        (CONST, (), math.nan, "number nan in a cell"),
        (CONST, (), "1", "number '1' in a cell"),
        (CONST, (), None, "number None in a cell"),
    ],
)
def test_faulty_nodes(op: str, args: tuple[Node, ...], attr: object, message: str) -> None:
    with pytest.raises(CellError, match=message):
        Node(op, args, attr)  # type: ignore[arg-type]


def test_pickled_and_copied_nodes_are_the_same_object() -> None:
    node = zoo.get("lstm").states[0].next
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(node, protocol)) is node
    assert copy.copy(node) is node
    assert copy.deepcopy(node) is node


def test_node_from_another_process() -> None:
    """What a worker sends is interned on arrival."""
    code = (
        "import pickle, sys; from cellgraph import parse;"
        "sys.stdout.buffer.write(pickle.dumps(parse('cell c(x, h)\\n h\\' = tanh(U @ h + 0.25)')))"
    )
    root = Path(cellgraph.__file__).parents[1]
    sent = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, timeout=60
    ).stdout
    assert (
        pickle.loads(sent).states[0].next
        is parse("cell c(x, h)\n h' = tanh(U @ h + 0.25)").states[0].next
    )


# -- cells -----------------------------------------------------------------------------------------


def test_cells_are_frozen() -> None:
    cell = zoo.get("gru")
    for target, name in ((cell, "name"), (cell.states[0], "next"), (cell.params[0], "rows")):
        with pytest.raises(FrozenInstanceError):
            setattr(target, name, None)


@pytest.mark.parametrize("name", zoo.names())
def test_pickle_of_the_zoo(name: str) -> None:
    cell = zoo.get(name)
    again = pickle.loads(pickle.dumps(cell))
    assert again == cell
    assert hash(again) == hash(cell)
    assert (again.doc, str(again)) == (cell.doc, str(cell))
    assert all(a is c for a, c in zip(again.nodes, cell.nodes, strict=True))


@settings(max_examples=40, deadline=None)
@given(cells())
def test_pickle(cell: cellgraph.CellGraph) -> None:
    assert pickle.loads(pickle.dumps(cell)) == cell == copy.deepcopy(cell)
    assert b"cellgraph.notation" in pickle.dumps(cell), "cells travel as text"


def test_equality_is_of_the_cell_not_of_its_text() -> None:
    cell = parse("# one\ncell c(x, h)\n a = tanh(h)\n h' = a * U @ x\n")
    assert cell == parse("cell c(x, h)\n h' = tanh(h) * U @ x\n")
    for other in (
        "cell d(x, h)\n h' = tanh(h) * U @ x",
        "cell c(x, h)\n h' = U @ x * tanh(h)",
        "cell c(x, h)\n h' = tanh(h) * V @ x",
        "cell c(x, h)\n h' = tanh(h) * U @ x\n init U = 1",
        "cell c(x, h: P)\n h' = tanh(h) * U @ x",
        "cell c(x, h, k)\n h' = tanh(h) * U @ x\n k' = k",
    ):
        assert cell != parse(other)


@settings(max_examples=60, deadline=None)
@given(cells())
def test_order_is_topological_and_complete(cell: cellgraph.CellGraph) -> None:
    place = {node: i for i, node in enumerate(cell.nodes)}
    assert len(place) == len(cell.nodes)
    assert all(place[arg] < place[node] for node in cell.nodes for arg in node.args)
    assert all(root in place for root in cell.roots)
    used = {arg for node in cell.nodes for arg in node.args} | set(cell.roots)
    assert used == set(cell.nodes), "nothing dead"
    assert {str(n.attr) for n in cell.nodes if n.op == PARAM} == {p.name for p in cell.params}


def test_order_of_nodes_and_parameters() -> None:
    """Depth first, left to right, next states in their order, the output last."""
    cell = parse("cell c(x, h, c) -> y\n y = o * h\n c' = tanh(V @ h)\n h' = W @ x + b * c'\n")
    names = [str(n.attr) if n.is_leaf else n.op for n in cell.nodes]
    assert names == ["W", "x", "matmul", "b", "V", "h", "matmul", "tanh", "mul", "add", "o", "mul"]
    assert [p.name for p in cell.params] == ["W", "b", "V", "o"]


def test_order_does_not_depend_on_hash_seeds() -> None:
    code = (
        "from cellgraph import zoo\n"
        "for n in zoo.names():\n"
        "    c = zoo.get(n)\n"
        "    print([p.name for p in c.params], [(k.op, k.attr) for k in c.nodes], c)"
    )
    root = Path(cellgraph.__file__).parents[1]
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            check=True,
            capture_output=True,
            timeout=60,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1", "31337")
    }
    assert len(printed) == 1


def test_dead_code_is_dropped() -> None:
    cell = parse(
        "cell c(x, h)\n g = tanh(U @ h)\n dead = relu(V @ h + s)\n h' = g\n"
        "scalar s\n init V = identity(1)\n"
    )
    assert cell == parse("cell c(x, h)\n h' = tanh(U @ h)\n")
    assert str(cell) == "cell c(x, h)\n    g  = tanh(U @ h)\n    h' = g\n"
    assert [name for name, _ in cell.names] == ["g", "h'"]


# -- widths ----------------------------------------------------------------------------------------


def params_of(text: str) -> dict[str, tuple[str, str | None, str | None]]:
    return {p.name: (p.kind, p.rows, p.cols) for p in parse(text).params}


def test_kinds_and_widths() -> None:
    assert params_of("cell c(x, h)\n h' = tanh(W @ x + U @ h + b * s)\n scalar s") == {
        "W": ("matrix", "H", "X"),
        "U": ("matrix", "H", "H"),
        "b": ("vector", "H", None),
        "s": ("scalar", None, None),
    }
    assert params_of("cell c(x, h, r: P)\n r' = A @ r\n h' = V @ r' + U @ x\n skew A, U") == {
        "V": ("matrix", "H", "P"),
        "A": ("skew", "P", "P"),
        "U": ("skew", "H", "H"),  # and x as wide as h
    }


def test_projected_lstm() -> None:
    """Sak, Senior, Beaufays 2014: n_c cells (H), a narrower recurrent output r (P)."""
    lines = [
        f"{g} = {f}(W_{g} @ x + U_{g} @ r + b_{g})"
        for g, f in zip("ifog", ["sigmoid"] * 3 + ["tanh"], strict=True)
    ]
    text = (
        "cell lstmp(x, r: P, c)\n"
        + "\n".join(lines)
        + "\nc' = f * c + i * g\nr' = V @ (o * tanh(c'))\n"
    )
    cell = parse(text)
    assert cell.widths == ("H", "P")
    assert params_of(text)["U_i"] == ("matrix", "H", "P")
    assert params_of(text)["V"] == ("matrix", "P", "H")
    n_c, n_r, n_i = 7, 3, 5
    sizes = {"H": n_c, "P": n_r, "X": n_i}
    count = sum(math.prod(p.shape(sizes)) for p in cell.params)
    assert count == 4 * n_c * n_r + 4 * n_i * n_c + n_c * n_r + 4 * n_c

    at = sample(cell, steps=4, rows=2, hidden=n_c, projected=n_r, inputs=n_i)
    outputs, (r, c) = unroll(cell, at.params, at.x, at.state)
    assert (outputs.shape, r.shape, c.shape) == ((4, 2, n_r), (2, n_r), (2, n_c))

    layer = torch.nn.LSTM(n_i, n_c, proj_size=n_r, bias=True).double()
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.cat([at.params[f"W_{g}"] for g in "ifgo"]))
        layer.weight_hh_l0.copy_(torch.cat([at.params[f"U_{g}"] for g in "ifgo"]))
        layer.bias_ih_l0.copy_(torch.cat([at.params[f"b_{g}"] for g in "ifgo"]))
        layer.bias_hh_l0.zero_()
        layer.weight_hr_l0.copy_(at.params["V"])
    wanted, _ = layer(at.x, tuple(s[None] for s in at.state))
    torch.testing.assert_close(outputs, wanted, rtol=1e-12, atol=1e-12)


def test_widths_are_inferred_through_what_stands_between() -> None:
    found = params_of(
        "cell c(x, h, p: P)\n a = b + d\n e = tanh(a * V @ x)\n h' = U @ e\n p' = p * e\n"
    )
    assert found["b"] == found["d"] == ("vector", "P", None)
    assert found["V"] == ("matrix", "P", "X")
    assert found["U"] == ("matrix", "H", "P")


def test_an_open_width_is_hidden() -> None:
    assert params_of("cell c(x, h)\n h' = h + U @ tanh(V @ x)\n")["V"] == ("matrix", "H", "X")
    assert params_of("cell c(x, h)\n h' = h + U @ b\n")["b"] == ("vector", "H", None)


@pytest.mark.parametrize(
    ("right", "raw"),
    [
        ("h + x", "H"),
        ("tanh(x) * h", "H"),
        ("b * x", "H"),
        ("x", "H"),
        ("max(x, 0) + U @ h", "H"),
        ("W @ x + h", None),
        ("W @ tanh(x) + h", None),
        ("W @ (b * x - 1) + h", None),
    ],
)
def test_raw_x(right: str, raw: str | None) -> None:
    cell = parse(f"cell c(x, h)\n h' = {right}\n")
    assert cell.raw_x == raw
    if raw is None:
        assert [p.cols for p in cell.params if p.name == "W"] == ["X"]
        assert all(p.rows == "X" for p in cell.params if p.name == "b")


def test_raw_x_of_a_declared_width() -> None:
    cell = parse("cell c(x, h, p: P)\n h' = tanh(W @ x + U @ h)\n p' = p * x\n")
    assert cell.raw_x == "P"
    assert params_of(str(cell))["W"] == ("matrix", "H", "P")
    with pytest.raises(CellError, match="a vector of width P meets one of width H"):
        parse("cell c(x, h, p: P)\n h' = h + x\n p' = p * x\n")


@settings(max_examples=60, deadline=None)
@given(cells())
def test_widths_of_nodes_are_those_of_the_tensors(cell: cellgraph.CellGraph) -> None:
    """H, X and P have different sizes here, so that a wrong name shows."""
    at = sample(cell, steps=1)
    width = node_widths(cell)
    outputs, last = unroll(cell, at.params, at.x, at.state)
    for tensor, root in zip(
        [outputs, *last], [*cell.outputs, *(s.next for s in cell.states)], strict=True
    ):
        assert tensor.shape[-1] == at.widths[str(width[root])]
    for param in cell.params:
        assert width[Node(PARAM, (), param.name)] == param.rows


def test_shapes() -> None:
    sizes = {"H": 5, "X": 3, "P": 2}
    assert Param("W", "matrix", "H", "X").shape(sizes) == (5, 3)
    assert Param("b", "vector", "P", None).shape(sizes) == (2,)
    assert Param("s", "scalar", None, None).shape(sizes) == ()


# -- walks and edits -------------------------------------------------------------------------------


def test_substitute_and_rebuilt() -> None:
    """Replace h by 2 * h everywhere; shared nodes are visited once."""
    inner = Node("tanh", (h,))
    root = Node("add", (Node("mul", (inner, inner)), b))
    double = Node("mul", (Node(CONST, (), 2.0), h))
    seen: list[Node] = []

    def replace(node: Node, args: tuple[Node, ...]) -> Node:
        seen.append(node)
        return double if node is h else rebuilt(node, args)

    image = substitute([root], replace)
    outer = Node("tanh", (double,))
    assert image[root] is Node("add", (Node("mul", (outer, outer)), b))
    assert image[b] is b
    assert len(seen) == len(set(seen)) == 5
    assert substitute([root], rebuilt)[root] is root


def test_depends_on() -> None:
    cell = zoo.get("mut1")
    of_state = depends_on(cell.roots, lambda leaf: leaf.op == STATE)
    z = dict(cell.names)["z"]
    assert not of_state[z], "MUT1's update gate sees only the input"
    assert of_state[dict(cell.names)["r"]]
    assert of_state[cell.states[0].next]


def test_use_counts() -> None:
    inner = Node("tanh", (h,))
    root = Node("mul", (inner, inner))
    assert use_counts([root, root, inner]) == {h: 1, inner: 3, root: 2}


def test_topological_of_several_roots_has_no_repeats() -> None:
    inner = Node("tanh", (h,))
    assert topological([inner, Node("neg", (inner,)), h]) == [h, inner, Node("neg", (inner,))]
    assert topological([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (-3.0, "-3"),
        (0.9, "0.9"),
        (1e14, "100000000000000"),
        (1e22, "1e+22"),
        (1e300, "1e+300"),
    ],
)
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text
    assert float(text) == value


def test_init_prints_as_it_is_written() -> None:
    assert [str(Init("constant", 1.0)), str(Init("identity", 0.9))] == ["1", "identity(0.9)"]


# -- the interpreter -------------------------------------------------------------------------------


def test_one_step_by_hand() -> None:
    cell = parse("cell c(x, h, k) -> y\n y = 2 * h - x\n h' = s * W @ x + b\n k' = b\n scalar s\n")
    params = {
        "W": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "b": torch.tensor([10.0, 20.0]),
        "s": torch.tensor(0.5),
    }
    out, (first, second) = step(
        cell, params, torch.tensor([[1.0, 1.0]]), [torch.tensor([[1.0, 2.0]])] * 2
    )
    assert out.tolist() == [[1.0, 3.0]]
    assert first.tolist() == [[11.5, 23.5]]
    assert second.tolist() == [[10.0, 20.0]], "a value without batch is repeated over the batch"


def test_a_product_of_parameters_has_no_batch() -> None:
    cell = parse("cell c(x, h)\n h' = U @ b\n")
    params = {"U": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "b": torch.tensor([3.0, 4.0])}
    out, _ = step(cell, params, torch.zeros(3, 1), [torch.zeros(3, 2)])
    assert out.tolist() == [[4.0, 6.0]] * 3


def test_a_skew_matrix_multiplies_less_its_transpose() -> None:
    cell = parse("cell c(x, h)\n h' = A @ h + B @ b\n skew A, B\n")
    params = {
        "A": torch.tensor([[5.0, 3.0], [1.0, 7.0]], requires_grad=True),
        "B": torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
        "b": torch.tensor([0.5, 0.25]),
    }
    start = [torch.tensor([[1.0, 10.0]])]
    out, _ = step(cell, params, torch.zeros(1, 3), start)
    assert out.tolist() == [[20.25, -2.5]], "[[0, 2], [-2, 0]] h + [[0, 1], [-1, 0]] b"
    out[0, 0].backward()
    assert params["A"].grad.tolist() == [[0.0, 10.0], [-10.0, 0.0]]
    assert torch.equal(unroll(cell, params, torch.zeros(1, 1, 3), start)[0][0], out)
    assert effective(cell, params)["A"].tolist() == [[0.0, 2.0], [-2.0, 0.0]]
    assert effective(cell, params)["b"] is params["b"]
    plain = parse("cell c(x, h)\n h' = A @ h\n")
    assert effective(plain, params) is params


def test_states_change_together() -> None:
    """All reads are of the previous step: swapping two states swaps them."""
    cell = parse("cell swap(x, h, k)\n h' = k\n k' = h\n")
    start = [torch.zeros(1, 2), torch.ones(1, 2)]
    outputs, (first, second) = unroll(cell, {}, torch.zeros(3, 1, 4), start)
    assert outputs[:, 0, 0].tolist() == [1.0, 0.0, 1.0]
    assert (first[0, 0], second[0, 0]) == (1.0, 0.0)


def test_state_tuple() -> None:
    cell = parse("cell c(x, h, p: P)\n p' = p\n h' = U @ p\n")
    assert cell.states[1] == State("p", "P", Node(STATE, (), "p"))

"""The core of a cell: what is taken out of the loop, and which products become one sum."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import cellgraph as cg
from cellgraph.graph import CONST, MATMUL, Node, topological
from cellgraph.interpret import effective, step
from cellgraph.kernels.planner import plan
from cellgraph.ops import OPS
from cellgraph.stages import Core, core, is_block, is_inner
from tests.cellgraph.native_cells import evolved
from tests.strategies import Sample, cells, sample


def terms(cell_core: Core) -> list[list[str]]:
    """Every block as the products in it."""
    return [[f"{t.matrix} @ {shown(t.operand)}" for t in b.terms] for b in cell_core.blocks]


def shown(node: Node) -> str:
    return str(node.attr) if node.is_leaf else f"{node.op}({', '.join(map(shown, node.args))})"


def of(*lines: str, states: str = "h") -> Core:
    return core(cg.parse(f"cell a(x, {states})\n" + "\n".join(f" {line}" for line in lines)))


# -- the well-known cells -------------------------------------------------------------------------


def test_lstm_is_one_stage() -> None:
    found = core(cg.load("lstm"))
    assert sorted(terms(found)) == [[f"W_{g} @ x", f"U_{g} @ h"] for g in "fgio"]
    assert [shown(row) for row in found.rows] == ["x"]
    assert not found.prelude
    assert not any(is_inner(operand, found) for operand in found.operands)
    made = plan(cg.load("lstm"))
    assert [len(p.matrices) for p in made.hoisted] == [4]
    assert [[len(p.matrices) for p in phase.products] for phase in made.forward] == [[4]]
    assert made.columns == ("H",) * 5  # four gates and tanh(c')
    assert [len(phase.loops) for phase in (*made.forward, *made.backward)] == [1, 1]
    assert [len(p.matrices) for p in made.states_back] == [4]
    assert sorted(leaf.attr for _, leaf in made.sums) == ["b_f", "b_g", "b_i", "b_o"]
    assert not made.accumulated


def test_gru_is_two_stages() -> None:
    found = core(cg.load("gru"))
    assert ["W_g @ x", "U_g @ mul(sigmoid(add(@1, b_r)), h)"] in terms(found)
    made = plan(cg.load("gru"))
    assert [len(p.matrices) for p in made.hoisted] == [3]
    assert [[len(p.matrices) for p in phase.products] for phase in made.forward] == [[2], [1]]
    assert len(made.backward) == 2
    assert made.columns == ("H",) * 4  # three gates and r * h


def test_an_output_projection_is_a_stage_of_its_own() -> None:
    """Its product needs the next state; what it multiplies lies in the history."""
    cell = cg.parse("cell a(x, h, r: P) -> r\n h' = tanh(W @ x + U @ h + V @ r)\n r' = R @ h'\n")
    found = core(cell)
    assert terms(found) == [["W @ x", "U @ h", "V @ r"], ["R @ tanh(@0)"]]
    made = plan(cell)
    assert [[p.matrices for p in phase.products] for phase in made.forward] == [
        [("U",), ("V",)],
        [("R",)],
    ]
    (operand,) = made.forward[1].products
    assert made.place[operand.operand].kind == "next"
    assert found.output is found.nexts[1]


# -- what is taken out of the loop ----------------------------------------------------------------


def test_what_only_parameters_reach_is_static() -> None:
    found = of("scalar s", "h' = exp(a) * h + W @ x + tanh(s) + exp(U @ b)")
    assert sorted(shown(node) for node in found.prelude.values()) == [
        "exp(a)",
        "exp(matmul(U, b))",
        "tanh(s)",
    ]
    assert len(found.statics) == 3
    widths = {shown(found.prelude[leaf]): found.width[leaf] for leaf in found.statics}
    assert widths["tanh(s)"] is None
    assert widths["exp(a)"] == "H"
    assert found.matrices() == ("W",)


def test_a_number_is_no_static_value_but_an_expression_of_numbers_is() -> None:
    assert not of("h' = tanh(W @ x + 2 * h)").prelude
    found = of("h' = tanh(W @ x + (1 - 0.5 * 3) * h)")
    (leaf,) = found.statics
    assert shown(found.prelude[leaf]) == "sub(1.0, mul(0.5, 3.0))"
    assert found.width[leaf] is None


def test_what_a_matrix_multiplies_of_x_alone_is_a_row_input() -> None:
    found = of("h' = tanh(U @ h + W @ tanh(x) + V @ tanh(x) + W @ x)")
    assert [shown(found.prelude.get(row, row)) for row in found.rows] == ["x", "tanh(x)"]
    made = plan(found.cell)
    assert len(made.hoisted) == 3
    assert {p.operand for p in made.hoisted} == set(found.rows)


def test_a_product_of_a_product_of_x_is_hoisted_whole() -> None:
    found = of("h' = tanh(U @ h + V @ W @ x)")
    assert terms(found) == [["U @ h", "V @ @u0"]]
    assert [shown(node) for node in found.prelude.values()] == ["matmul(W, x)"]


def test_raw_x_is_read_where_it_stands() -> None:
    found = of("h' = tanh(x) * h")
    assert [shown(row) for row in found.rows] == ["x"]
    assert not found.blocks
    assert not found.prelude


def test_x_that_nothing_reads() -> None:
    found = of("h' = tanh(U @ h)")
    assert found.rows == ()


# -- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("h' = tanh(W @ x + b + U @ h)", [["W @ x", "U @ h"]]),
        ("h' = tanh((W @ x + b) + (U @ h - c))", [["W @ x", "U @ h"]]),
        ("h' = tanh(W @ x - U @ h)", [["U @ h"], ["W @ x"]]),
        ("h' = tanh(b - (W @ x - U @ h))", [["W @ x"], ["U @ h"]]),
        ("h' = tanh(W @ x) + U @ h", [["U @ h"], ["W @ x"]]),
        ("h' = tanh((W @ x) * (U @ h))", [["W @ x"], ["U @ h"]]),
        ("h' = tanh(U @ h + U @ h)", [["U @ h"]]),
        ("h' = tanh(U @ h + V @ h + W @ x)", [["U @ h", "V @ h", "W @ x"]]),
    ],
)
def test_which_products_become_one_sum(line: str, expected: list[list[str]]) -> None:
    found = terms(of(line))
    assert sorted(sorted(block) for block in found) == sorted(sorted(block) for block in expected)


def test_a_sum_that_two_read_is_one_block() -> None:
    found = of("n = W @ x + U @ h", "h' = tanh(n) * sigmoid(n)")
    assert terms(found) == [["W @ x", "U @ h"]]


def test_a_product_that_two_read_is_a_block_of_its_own() -> None:
    found = of("n = U @ h", "h' = tanh(n + W @ x) * sigmoid(n + V @ x)")
    assert sorted(terms(found)) == [["U @ h"], ["V @ x"], ["W @ x"]]


# -- what holds for all ---------------------------------------------------------------------------


def value(
    cell_core: Core, params: Mapping[str, Tensor], leaves: Mapping[Node, Tensor]
) -> dict[Node, Tensor]:
    """Every node of the core, by its own order."""
    found = dict(leaves)
    blocks = {b.leaf: b for b in cell_core.blocks}
    for node in cell_core.order:
        if node in blocks:
            found[node] = sum(  # type: ignore[assignment]
                found[t.operand] @ params[t.matrix].T for t in blocks[node].terms
            )
        elif node.op == CONST:
            found[node] = torch.tensor(node.attr, dtype=torch.float64)
        elif node not in found:
            found[node] = OPS[node.op].eager(torch, *(found[a] for a in node.args))
    return found


def read(cell_core: Core, at: Sample) -> dict[Node, Tensor]:
    """Rows, states and static values, the prelude by the interpreter's rules."""
    found: dict[Node, Tensor] = {}
    params, x = effective(cell_core.cell, at.params), at.x[0]
    states = dict(zip((s.name for s in cell_core.cell.states), at.state, strict=True))
    inner: dict[Node, Tensor] = {}
    for node in topological(cell_core.prelude.values()):
        if node.op == MATMUL:
            inner[node] = inner[node.args[1]] @ params[str(node.args[0].attr)].T
        elif node.args:
            inner[node] = OPS[node.op].eager(torch, *(inner[a] for a in node.args))
        elif node.op == CONST:
            inner[node] = torch.tensor(node.attr, dtype=torch.float64)
        else:
            inner[node] = x if node.op == "input" else params[str(node.attr)]
    for node in cell_core.order:
        if is_block(node) or node.args or node.op == CONST:
            continue
        if node in cell_core.prelude:
            found[node] = inner[cell_core.prelude[node]]
        else:
            named = {"input": {"x": x}, "state": states, "param": params}[node.op]
            found[node] = named[str(node.attr)]
    return found


def assert_core(cell: cg.CellGraph) -> None:
    """The core computes what the cell does; a node stands behind all that it needs."""
    found, at = core(cell), sample(cell, steps=1)
    placed: set[Node] = set()
    for node in found.order:
        needs = node.args or [t.operand for b in found.blocks if b.leaf is node for t in b.terms]
        assert placed.issuperset(needs)
        placed.add(node)
    values = value(found, effective(cell, at.params), read(found, at))
    output, nexts = step(cell, at.params, at.x[0], at.state)
    for node, wanted in zip((found.output, *found.nexts), (output, *nexts), strict=True):
        result = values[node].expand(wanted.shape)
        torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-12)


CELLS = [*map(cg.load, cg.zoo.names()), *evolved(30, seed=2)]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_core_is_the_cell(cell: cg.CellGraph) -> None:
    assert_core(cell)


@settings(max_examples=100, deadline=None)
@given(cells())
def test_the_core_of_drawn_cells_is_the_cell(cell: cg.CellGraph) -> None:
    assert_core(cell)

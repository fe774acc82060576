"""The adjoint of a time step equals what autograd finds for its core."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import cellgraph as cg
from cellgraph.adjoint import Adjoint, adjoint, derivative
from cellgraph.graph import CONST, PARAM, STATE, Node, topological
from cellgraph.ops import OPS, Op
from cellgraph.stages import Core, core, is_inner
from tests.cellgraph.native_cells import error, evolved
from tests.cellgraph.test_stages import CELLS, read, value
from tests.strategies import cells, sample


def run(
    adj: Adjoint,
    cell_core: Core,
    params: dict[str, Tensor],
    values: dict[Node, Tensor],
    given_: dict[Node, Tensor],
) -> dict[Node, Tensor]:
    """Every node of the adjoint, operands' gradients as soon as those of their blocks are there."""
    found = {**values, **given_}
    operands = {leaf: operand for operand, leaf in adj.operand.items()}

    def evaluate(roots: list[Node]) -> None:
        for node in topological(roots):
            if node in found:
                continue
            if node in operands:
                evaluate(list(adj.needs[node]))
                found[node] = products(operands[node])
            elif node.op == CONST:
                found[node] = torch.tensor(node.attr, dtype=torch.float64)
            else:
                found[node] = OPS[node.op].eager(torch, *(found[a] for a in node.args))

    def products(operand: Node) -> Tensor:
        """What the products of an operand contribute to its gradient."""
        total = torch.zeros_like(values[operand])
        for block in cell_core.blocks:
            for term in block.terms:
                if term.operand is operand:
                    evaluate([adj.blocks[block.leaf]])
                    above = found[adj.blocks[block.leaf]].expand_as(values[block.leaf])
                    total = total + above @ params[term.matrix]
        return total

    evaluate([*adj.blocks.values(), *adj.states.values(), *adj.rows.values(), *adj.static.values()])
    for leaf in (*adj.states, *adj.rows, *cell_core.operands):
        if not is_inner(leaf, cell_core):
            own = adj.states.get(leaf) or adj.rows.get(leaf)
            found[Node("input", (), f"@total {leaf}")] = products(leaf) + (found[own] if own else 0)
    return found


def by_adjoint(
    cell_core: Core,
    params: dict[str, Tensor],
    values: dict[Node, Tensor],
    widths: dict[str, int],
    given_: list[Tensor],
) -> dict[object, Tensor]:
    """The gradient by every matrix (its name) and every leaf that is no number."""
    adj = adjoint(cell_core)
    heads = dict(zip((adj.output, *adj.nexts), given_, strict=True))
    found = run(adj, cell_core, params, values, heads)
    result: dict[object, Tensor] = {}
    for block in cell_core.blocks:
        above = found[adj.blocks[block.leaf]].expand_as(values[block.leaf])
        for term in block.terms:
            result[term.matrix] = result.get(term.matrix, 0) + above.T @ values[term.operand]
    for (leaf, width), node in adj.static.items():
        rows = found[node].expand(len(given_[0]), widths[width])
        result[leaf] = result.get(leaf, 0) + (rows.sum(0) if values[leaf].dim() else rows.sum())
    for leaf in cell_core.order:
        total = found.get(Node("input", (), f"@total {leaf}"))
        if total is not None:
            result[leaf] = total
    return result


def assert_adjoint(cell: cg.CellGraph) -> None:
    found, at = core(cell), sample(cell, steps=1, rows=3)
    leaves = {n: v.detach().clone().requires_grad_() for n, v in read(found, at).items()}
    params = {n: v.detach().clone().requires_grad_() for n, v in at.params.items()}
    values = value(found, params, leaves)
    rng = torch.Generator().manual_seed(0)
    results, heads = [], []
    for node, width in zip(
        (found.output, *found.nexts),
        (found.width[found.output], *(s.width for s in cell.states)),
        strict=True,
    ):
        results.append(values[node].expand(3, at.widths[str(width)]))
        heads.append(torch.randn(results[-1].shape, generator=rng, dtype=torch.float64))
    total = sum((r * h).sum() for r, h in zip(results, heads, strict=True))
    total = total + sum(0 * leaf.sum() for leaf in leaves.values())  # a step may depend on nothing
    wanted: dict[object, Tensor] = {**leaves, **{m: params[m] for m in found.matrices()}}
    options = {"materialize_grads": True, "allow_unused": True}
    exact = torch.autograd.grad(total, list(wanted.values()), **options)
    detached = {node: v.detach() for node, v in values.items()}
    plain = {name: v.detach() for name, v in params.items()}
    mine = by_adjoint(found, plain, detached, at.widths, heads)
    largest = max(float(g.abs().amax()) for g in exact)
    for key, theirs in zip(wanted, exact, strict=True):
        given_ = mine.get(key, torch.zeros_like(theirs))
        gap = error([given_.expand_as(theirs)], [theirs], floor=1e-6 * largest + 1e-30)
        assert gap < 1e-9, f"{key}\n{cell}"


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_equals_autograd(cell: cg.CellGraph) -> None:
    assert_adjoint(cell)


def test_equals_autograd_on_more_generations() -> None:
    for cell in evolved(150, seed=7):
        assert_adjoint(cell)


@settings(max_examples=150, deadline=None)
@given(cells())
def test_equals_autograd_on_drawn_cells(cell: cg.CellGraph) -> None:
    assert_adjoint(cell)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_derivative_columns_are_graphs(op: Op) -> None:
    """Over the states a, b and y, and without what made a vector of a bare number."""
    for index in range(op.arity):
        node = derivative(op.name, index)
        below = topological([node])
        assert {n.attr for n in below if n.op == STATE} <= set("aby")
        assert not any(n.op == PARAM for n in below)


# -- what it looks like ---------------------------------------------------------------------------


def test_one_gradient_for_every_sum() -> None:
    cell = core(cg.load("lstm"))
    found = adjoint(cell)
    assert set(found.blocks) == {b.leaf for b in cell.blocks}
    assert list(found.states) == [Node(STATE, (), "c")]  # h reaches the step through products alone
    assert not found.rows
    assert not found.operand
    gradients = set(found.blocks.values())
    assert {node for (leaf, _), node in found.static.items()} == gradients  # b_f's is f's sum's


def test_an_inner_operand_waits_for_its_product() -> None:
    cell = core(cg.load("gru"))
    found = adjoint(cell)
    (operand,) = found.operand
    assert operand.op == "mul"
    assert len(found.needs[found.operand[operand]]) == 1


def test_a_scalar_has_a_gradient_for_every_width_that_it_meets() -> None:
    cell = cg.parse(
        "cell a(x, h, r: P)\n scalar s\n h' = tanh(U @ r + s * h)\n r' = s * tanh(R @ h)"
    )
    found = adjoint(core(cell))
    assert sorted(width for _, width in found.static) == ["H", "P"]


def test_what_reaches_no_result_has_no_gradient() -> None:
    cell = cg.parse("cell a(x, h)\n h' = sign(U @ h + W @ x + b)")
    found = adjoint(core(cell))
    assert [str(node.attr) for node in found.blocks.values()] == ["0.0"]
    assert not found.states
    assert not found.static

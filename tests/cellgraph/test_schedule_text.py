"""The schedule of a compiled cell in words and numbers, and the command that prints it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import cellgraph as cg
from cellgraph.graph import Node
from cellgraph.kernels.describe import Schedule, schedule
from cellgraph.kernels.plan import Loop
from cellgraph.kernels.planner import plan
from cellgraph.sizes import concrete_widths
from search import cli
from tests.cellgraph.native_cells import drawn, evolved

CELLS = [*map(cg.load, cg.zoo.names()), *evolved(12, seed=4), *drawn(20)]
EVERY = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


def described(cell: cg.CellGraph, hidden: int = 64, **options: int) -> Schedule:
    return schedule(cell, hidden, hidden, widths=dict.fromkeys(cell.widths[1:], 16), **options)


def test_gru_at_64() -> None:
    """Two products with two loops; every number counted by hand."""
    found = described(cg.load("gru"))
    product = 2 * 64 * 64
    assert [(s.title, s.flops) for s in found.before] == [
        ("sums = [W_z, W_r, W_g] @ x", 3 * product)
    ]
    assert [(s.title, s.flops) for s in found.forward] == [
        ("sums += [U_z, U_r] @ h", 2 * product),
        ("pointwise over H: 3 values", 3 * 64),  # a sum, a sigmoid, a product
        ("sums += [U_g] @ (r * h)", product),
        ("pointwise over H: 8 values", 8 * 64),
    ]
    assert [s.title for s in found.backward][1::2] == [
        "d(r * h) = [U_gᵀ] @ gradients of sums",
        "dh += [U_zᵀ, U_rᵀ] @ gradients of sums",
    ]
    assert [s.title for s in found.after] == [
        "dx = [W_zᵀ, W_rᵀ, W_gᵀ] @ gradients of sums",
        "[dW_z, dW_r, dW_g] from x",
        "[dU_z, dU_r] from h",
        "[dU_g] from (r * h)",
        *(f"db_{gate} = sum over rows" for gate in "grz"),
    ]
    assert found.kept == ["z", "r", "g", "r * h", "h"]
    assert found.kept_bytes == 5 * 64 * 4
    # Three gates of x in, nothing to add to; a value per gate and one of h in the loop.
    assert found.before[0].bytes == (3 * 64 + 64) * 4
    assert found.forward[0].bytes == (2 * 2 * 64 + 64) * 4
    assert described(cg.load("gru"), itemsize=8).kept_bytes == 2 * found.kept_bytes


def test_lstm_keeps_gates_and_one_tanh() -> None:
    found = described(cg.load("lstm"))
    assert sorted(found.kept) == ["c", "f", "g", "h", "i", "o", "tanh(c')"]
    assert len(found.forward) == len(found.backward) == 2
    text = "\n".join(line for stage in found.forward for line in stage.lines)
    for line in ("c' = f * c + i * g", "h' = o * tanh(c')", "h' -> output"):
        assert line in text


def test_skew_matrices_are_named() -> None:
    found = described(cg.load("antisymmetric_rnn"))
    assert found.skews == found.data()["skews"] == ["U_h"]
    assert found.text().splitlines()[1] == "U_h stands for U_h - U_hᵀ, made once a sequence"
    assert "stands for" not in described(cg.load("gru")).text()


@EVERY
def test_flops_agree_with_the_size_of_the_cell(cell: cg.CellGraph) -> None:
    """But for three things: the additions inside a product, what a later loop computes again rather
    than to load it, and what torch computes once a sequence."""
    widths = dict.fromkeys(cell.widths[1:], 16)
    sizes = concrete_widths(cell, 64, 64, widths)
    made = plan(cell)
    added = sum((len(b.terms) - 1) * sizes[b.width] for b in made.blocks)
    loops = [loop for phase in made.forward for loop in phase.loops]
    first: dict[Node, Loop] = {}
    again = sum(
        sizes[loop.width]
        for loop in loops
        for node in loop.values
        if first.setdefault(node, loop) is not loop
    )
    found = described(cell).flops()["forward"] + added - again
    total = cg.flops_per_step(cell, 64, 64, widths=widths)
    assert found < total if made.core.prelude else found == total


@EVERY
def test_text_and_data_say_the_same(cell: cg.CellGraph) -> None:
    found = described(cell)
    data = json.loads(json.dumps(found.data()))
    text = found.text()
    stages = [s for part in ("before", "forward", "backward", "after") for s in data[part]]
    for stage in stages:
        assert stage["title"] in text
        assert f"{stage['flops']:,} FLOPs, {stage['bytes']:,} bytes" in text
        assert stage["flops"] > 0 or stage["title"].endswith(": 0 values")
        assert stage["bytes"] > 0
    assert data["flops"]["forward"] + data["flops"]["backward"] == sum(s["flops"] for s in stages)
    assert text.endswith(f"{data['flops']['backward']:,} backward")
    assert len(data["kept"]) == len(plan(cell).columns) + len(cell.states)
    assert not re.search(r"@[su]?\d", text), "a leaf without a name"


def test_values_that_are_shared_again_and_again_are_numbered() -> None:
    """Written out, the last would have 2^60 factors."""
    value = Node("tanh", (Node("state", (), "h"),))
    gate = Node("matmul", (Node("param", (), "V"), Node("input", (), "x")))
    for _ in range(60):
        value = Node("tanh", (Node("mul", (value, value)),))
        gate = Node("tanh", (Node("mul", (gate, gate)),))
    total = Node("add", (Node("matmul", (Node("param", (), "U"), value)), gate))
    text = described(cg.build("deep", [("h", "H", total)], total)).text()
    assert len(text) < 100_000


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "gru", "--schedule"]) == 0
    text = capsys.readouterr().out
    assert text == described(cg.load("gru")).text() + "\n"
    for words in ("gru at H = 64, X = 64", "forward, each step", "kept for the way back", "FLOPs"):
        assert words in text
    assert cli.main(["inspect", "gru", "--schedule", "--hidden", "10", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(json.dumps(described(cg.load("gru"), 10).data()))
    assert data["widths"] == {"H": 10, "X": 10}


def test_the_command_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.cell"
    path.write_text("cell mine(x, h, r: P)\n r' = tanh(R @ h)\n h' = tanh(W @ x + U @ r')\n")
    assert cli.main(["inspect", str(path), "--schedule"]) == 0
    assert "sums = [R] @ h" in capsys.readouterr().out

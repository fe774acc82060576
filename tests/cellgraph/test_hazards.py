"""Found by hostile use: each was a wrong result, a hang or a traceback once."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import cellgraph as cg
from cellgraph import exporters
from cellgraph.graph import Node
from tests.threads import held


def test_a_state_called_underscore_survives_the_export(tmp_path: Path) -> None:
    cell = cg.parse("cell a(x, _)\n _' = tanh(_ * b + U @ _)")
    layer = cg.compile(cell, 3, 4)
    path = cg.export(cell, tmp_path / "a.py", "torch")
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import a;"
        "m = a.A(3, 4); m.load_state_dict(torch.load(sys.argv[1] + '/weights.pt'));"
        "print(m(torch.ones(3, 2, 3), torch.ones(1, 2, 4))[0].sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path.parent)], capture_output=True, text=True, check=True
    )
    ours = layer(torch.ones(3, 2, 3), torch.ones(1, 2, 4))[0].sum().item()
    assert float(done.stdout) == pytest.approx(ours, rel=1e-6)


def test_a_packed_sequence_takes_no_step_behind_its_end() -> None:
    """exp(exp(90)) overflows; the short sequence never gets there, alone or packed."""
    layer = cg.compile(cg.parse("cell grow(x, h)\n h' = exp(h) + W @ x"), 1, 1)
    sequences = [torch.zeros(2, 1), torch.full((1, 1), 90.0)]
    torch.nn.init.ones_(layer.cells[0].W)
    y, last = layer(pack_sequence(sequences))
    (y.data.sum() + last.sum()).backward()
    together = layer.cells[0].W.grad.clone()
    assert torch.isfinite(together).all()
    layer.zero_grad()
    for x in sequences:
        y, last = layer(x)
        (y.sum() + last.sum()).backward()
    torch.testing.assert_close(together, layer.cells[0].W.grad)


def test_a_diagonal_start_makes_x_as_wide_as_the_cell() -> None:
    cell = cg.parse("cell a(x, h)\n h' = tanh(W @ x + U @ h)\n init W = identity(1)")
    assert cell.raw_x == "H"
    layer = cg.compile(cell, 3, 5)
    assert layer.cells[0].W.shape == (5, 5)
    assert layer.cells[0].input_projection.shape == (5, 3)


@pytest.mark.parametrize("names", [("h", "h"), ("x", "h"), ("a b;(", "h"), ("tanh", "h")])
def test_a_cell_that_no_text_can_say_is_refused(names: tuple[str, str]) -> None:
    param, state = names
    node = Node("tanh", (Node("add", (Node("state", (), state), Node("param", (), param))),))
    with pytest.raises(cg.CellError):
        cg.build("a", [(state, "H", node)], node)


def test_copies_through_text_are_the_same_cell() -> None:
    for name in cg.zoo.names():
        cell = cg.load(name)
        assert copy.deepcopy(cell) == cell


@pytest.mark.parametrize("value", ["1e300", "identity(1e300)"])
def test_a_start_that_the_type_cannot_hold(value: str) -> None:
    cell = cg.parse(f"cell a(x, h)\n h' = U @ h + W @ x\n init U = {value}")
    with pytest.raises(cg.CellError, match=r"init U = .*expected a number up to 3\.4e\+38"):
        cg.compile(cell, 2, 2)
    cg.compile(cell, 2, 2, dtype=torch.float64)


def test_whole_numbers_of_numpy_are_sizes() -> None:
    assert cg.compile("gru", np.int64(3), np.int32(4), np.int64(2)).output_size == 4
    for wrong in (0, -1, True, 2.0, "3", None):
        with pytest.raises(cg.CellError, match="expected a whole number"):
            cg.count_parameters(cg.load("gru"), 3, wrong)  # type: ignore[arg-type]
        with pytest.raises(cg.CellError, match="num_layers"):
            cg.count_parameters(cg.load("gru"), 3, 4, wrong)  # type: ignore[arg-type]


def test_another_type_than_that_of_the_layer() -> None:
    layer = cg.compile("gru", 3, 4)
    with pytest.raises(cg.CellError, match=r"x is torch.float64, the layer torch.float32"):
        layer(torch.zeros(2, 1, 3, dtype=torch.float64))


def test_the_same_product_in_both_orders_is_one_value() -> None:
    keys = [
        cg.parse(f"cell a(x, h)\n h' = tanh(x * h) + x * sigmoid({inner})").key()
        for inner in ("x * h", "h * x")
    ]
    assert keys[0] == keys[1]


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.cell"
    path.write_bytes(b"\xef\xbb\xbf" + str(cg.load("gru")).encode())
    assert cg.load(path) == cg.load("gru")


@pytest.mark.parametrize("name", ["\ud800.cell", "\ud800", "a" * 5000, 5])
def test_names_that_are_none(name: object) -> None:
    with pytest.raises(cg.CellError):
        cg.load(name)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads and fork: the point of it
def test_a_fork_does_not_inherit_a_lock_that_is_held() -> None:
    with held(Node._lock):
        child = os.fork()
        if child == 0:
            cg.parse("cell forked(x, h)\n h' = tanh(h + x)")
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_names_that_are_no_names_never_reach_a_file(tmp_path: Path) -> None:
    h, x = Node("state", (), "h"), Node("input", (), "x")
    evil = "b\n    import os  #"
    for name, param in [("a", evil), (evil, "b")]:
        value = Node("tanh", (Node("add", (Node("add", (h, x)), Node("param", (), param))),))
        with pytest.raises(cg.CellError, match="expected a name of the notation"):
            cg.build(name, [("h", "H", value)], value)
        state = cg.State("h", "H", value)
        cell = cg.CellGraph(
            name, ("x",), (state,), (value,), (cg.Param(param, "vector", "H", None),)
        )
        for kind in exporters.FORMATS:
            with pytest.raises(cg.CellError):
                cg.export(cell, tmp_path / "a.py", kind)
    assert list(tmp_path.iterdir()) == []

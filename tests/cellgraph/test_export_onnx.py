"""Exports to ONNX: the checker takes them, onnxruntime computes what the layer does, and they read
like the cell."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, ModelProto, numpy_helper

import cellgraph as cg
from cellgraph.exporters import FORMATS, onnx_graph, onnx_ops, write
from cellgraph.exporters.onnx_check import open_session
from cellgraph.layer import CellLayer
from cellgraph.ops import OPS
from tests.cellgraph.test_export import HARD, HOSTILE_DOC, drawn_cells, mutants, one_op

X, H = 3, 4
SIZES = {"input_size": X, "hidden_size": H}
STACKED = {**SIZES, "num_layers": 2, "bidirectional": True}

#: Several states, x outside a matrix, scalars, numbers, shared matrices, depth.
SAMPLE = (
    *("lstm", "gru", "gru_reset_after", "slstm", "sru", "mut1", "fastgrnn", "scrn"),
    *("lstm_projection", "unicornn", "min_gru_log", "nas_cell", "t_lstm", "rhn2", "brc"),
)

#: Cells whose widths differ, and next states that need a node of their own.
MORE = {
    "widths": "cell wide(x, h, r: P)\n r' = tanh(R @ h)\n h' = tanh(W @ x + U @ r + V @ h)",
    "one operand, two widths": """
        cell wide(x, h, r: P)
            r' = tanh(W_r @ x + U_r @ h)
            h' = tanh(W_h @ x + U_h @ h + V_h @ r)
    """,
    "narrow output": "cell out(x, h, r: P) -> r\n r' = tanh(R @ h)\n h' = tanh(W @ x + U @ r)",
    "starts": """
        cell starts(x, h)
            scalar s
            h' = tanh(s * (W @ x) + b + U @ h)
            init s = 2
            init b = -1e-05
            init U = identity(0.9)
    """,
    "x is carried and a base": "cell raw(x, h)\n h' = tanh(x * relu(x + U @ h))",
    "names of the file": """
        cell y(x, y, h_0, y_0)
            scalar number_1, axes_0
            y_n  = W_h_x @ x + (1 - number_1) * y
            i_x  = W_h @ x + axes_0
            h_0' = tanh(i_x + weight_x @ y_0)
            y_0' = tanh(U @ x + y_n)
            y'   = tanh(V @ h_0' + y_0 * 1e-05 + base_h)
    """,
    "too large for float32": "cell far(x, h)\n h' = tanh(U @ h + W @ x + 1 / 1e300)",
}


def exported(
    source: Any, path: Path, **sizes: int | bool
) -> tuple[ModelProto, float]:  # the file read back, and the difference that its check found
    made = write(source, path, "onnx", sizes=sizes)
    assert made.path == path
    assert made.beside == ()
    assert made.difference is not None
    return onnx.load(path), made.difference.largest


def outputs(layer: CellLayer, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> list[Any]:
    with torch.inference_mode():
        y, last = layer(x, state if len(state) > 1 else state[0])
    return [y.numpy(), *(v.numpy() for v in (last if isinstance(last, tuple) else (last,)))]


def scans(graph: GraphProto) -> list[GraphProto]:
    """The bodies of all Scan nodes."""
    found = [node for node in graph.node if node.op_type == "Scan"]
    return [a.g for node in found for a in node.attribute if a.name == "body"]


def names(graph: GraphProto) -> list[str]:
    """All that a graph and those in it define."""
    found = [value.name for value in (*graph.input, *graph.initializer)]
    found += [name for node in graph.node for name in node.output]
    return found + [name for body in scans(graph) for name in names(body)]


def listing(graph: GraphProto) -> list[str]:
    return [f"{', '.join(n.output)} = {n.op_type}({', '.join(n.input)})" for n in graph.node]


# -- the same function ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLE)
def test_cells_of_the_zoo(name: str, tmp_path: Path) -> None:
    model, difference = exported(name, tmp_path / "a.onnx", **SIZES)
    assert difference <= 1e-5
    assert len(scans(model.graph)) == 1
    model, difference = exported(name, tmp_path / "b.onnx", **STACKED)
    assert difference <= 1e-5
    assert len(scans(model.graph)) == 4


@pytest.mark.parametrize("name", [*HARD, *MORE])
def test_hard_cells(name: str, tmp_path: Path) -> None:
    cell = cg.parse({**HARD, **MORE}[name])
    sizes = {width: 2 + i for i, width in enumerate(cell.widths[1:])}
    layer = cg.compile(cell, X, H, widths=sizes)
    for source, asked in ((layer, {}), (cell, {**SIZES, "bidirectional": True})):
        model, _ = exported(source, tmp_path / f"{len(asked)}.onnx", **asked)
        assert len(names(model.graph)) == len(set(names(model.graph)))
        assert len(scans(model.graph)) == (2 if asked else 1)


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_exported(name: str, tmp_path: Path) -> None:
    exported(one_op(name), tmp_path / "a.onnx", **SIZES)


def test_random_cells_are_exported(tmp_path: Path) -> None:
    for i, cell in enumerate([*mutants(10), *drawn_cells(20)]):
        sizes = {**SIZES, "num_layers": 1 + i % 2, "bidirectional": i % 3 == 0}
        model, _ = exported(cell, tmp_path / f"{i}.onnx", **sizes)
        assert len(names(model.graph)) == len(set(names(model.graph)))


@pytest.mark.parametrize("both", [False, True])
def test_time_and_batch_are_dynamic(both: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    layer = cg.compile("lstm", X, H, 2, bidirectional=both, backend="eager")
    model, _ = exported(layer, tmp_path / "a.onnx")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    state = [4 if both else 2, "B", H]
    ends = dict.fromkeys(("h_0", "c_0", "h_n", "c_n"), state)
    assert shapes == {"x": ["T", "B", X], "y": ["T", "B", 8 if both else 4], **ends}
    session = open_session(tmp_path / "a.onnx")
    for steps in (1, 7, 50):
        for rows in (1, 3):
            x, h, c = torch.randn(steps, rows, X), *torch.randn(2, state[0], rows, H)
            found = session.run(None, {"x": x.numpy(), "h_0": h.numpy(), "c_0": c.numpy()})
            for value, wanted in zip(found, outputs(layer, x, (h, c)), strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_weights_are_those_of_the_layer(tmp_path: Path) -> None:
    torch.manual_seed(4)
    layer = cg.compile("sru", X, H, dtype=torch.float64)
    model, _ = exported(layer, tmp_path / "one.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, value in layer.cells[0].state_dict().items():
        np.testing.assert_array_equal(stored[name], value.float().numpy())
    layer = cg.compile("gru", X, H, 2, bidirectional=True)
    model, _ = exported(layer, tmp_path / "four.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for cell, suffix in zip(layer.cells, ("l0", "l0_reverse", "l1", "l1_reverse"), strict=True):
        for name, value in cell.state_dict().items():
            np.testing.assert_array_equal(stored[f"{name}_{suffix}"], value.numpy())


# -- how it reads ---------------------------------------------------------------------------------


def test_the_graph_reads_like_the_cell(tmp_path: Path) -> None:
    model, _ = exported("gru", tmp_path / "a.onnx", **SIZES)
    (body,) = scans(model.graph)
    assert listing(model.graph) == [
        "h_first = Squeeze(h_0, axes_0)",
        "weight_x = Concat(W_r, W_z, W_g)",
        "weight_x_T = Transpose(weight_x)",
        "product_x = MatMul(x, weight_x_T)",
        "W_r_x, W_z_x, W_g_x = Split(product_x)",
        "r_x = Add(W_r_x, b_r)",
        "z_x = Add(W_z_x, b_z)",
        "g_x = Add(W_g_x, b_g)",
        "weight_h = Concat(U_r, U_z)",
        "base_h = Concat(r_x, z_x)",
        "h_last, y = Scan(h_first, base_h, g_x)",
        "h_n = Unsqueeze(h_last, axes_0)",
    ]
    assert listing(body) == [
        "sum_h = Gemm(h, weight_h, base_h_t)",
        "r_in, z_in = Split(sum_h)",
        "r = Sigmoid(r_in)",
        "z = Sigmoid(z_in)",
        "g_in = Mul(r, h)",
        "g_in_2 = Gemm(g_in, U_g, g_x_t)",
        "g = Tanh(g_in_2)",
        "h_next_in = Mul(z, h)",
        "h_next_in_2 = Sub(number_1, z)",
        "h_next_in_3 = Mul(h_next_in_2, g)",
        "h_next = Add(h_next_in, h_next_in_3)",
        "y_t = Identity(h_next)",
    ]
    assert [value.name for value in body.input] == ["h", "base_h_t", "g_x_t"]
    # Every value between the nodes has a shape, in the loop as well.
    inner = {value.name: value.type.tensor_type.shape.dim for value in body.value_info}
    assert [d.dim_param or d.dim_value for d in inner["sum_h"]] == ["B", 2 * H]
    named = [node.name for graph in (model.graph, body) for node in graph.node]
    assert "gru" in named
    assert len(set(named)) == len(named)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    cell = replace(cg.load("gru"), doc=HOSTILE_DOC)
    model, _ = exported(cell, tmp_path / "a.onnx", **STACKED)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert cg.parse(about.pop("cell")) == cell
    assert about == {
        "opset": str(model.opset_import[0].version),
        "input_size": "3",
        "hidden_size": "4",
        "num_layers": "2",
        "bidirectional": "true",
    }
    assert [entry.domain for entry in model.opset_import] == [""]


RENDER = """
import sys
from cellgraph import load
from cellgraph.exporters import Design, onnx_graph
sizes = {"input_size": 3, "hidden_size": 4}
sys.stdout.buffer.write(onnx_graph.render(Design(load("slstm"), sizes).layer))
"""


def test_the_same_layer_gives_the_same_bytes(tmp_path: Path) -> None:
    exported("slstm", tmp_path / "a.onnx", **SIZES)
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        env={"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )
    assert done.stdout == (tmp_path / "a.onnx").read_bytes()


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(cg.CellError, match=rf"{package} .* pip install 'cellsearch\[onnx\]'"):
        cg.export("gru", tmp_path / "a.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_a_file_that_is_not_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_ops.TORCH, "tanh", onnx_ops.TORCH.sigmoid)
    with pytest.raises(cg.CellError, match="the exported gru is not the cell: the output at T = 1"):
        cg.export("gru", tmp_path / "a.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage", "an unknown operator"])
def test_nothing_stays_of_a_file_that_is_not_onnx(
    content: bytes | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(content, str):
        (tmp_path / "good").mkdir()
        model, _ = exported("gru", tmp_path / "good" / "a.onnx", **SIZES)
        scans(model.graph)[0].node[2].op_type = "Sigmund"
        content = model.SerializeToString()
    monkeypatch.setattr(onnx_graph, "render", lambda layer: content)
    with pytest.raises(cg.CellError, match="the exported gru is no ONNX file: ") as caught:
        cg.export("gru", tmp_path / "a.onnx", "onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] in ([], ["good"])


def test_more_weights_than_a_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST", 100)
    with pytest.raises(cg.CellError, match=r"the weights of gru take .* GiB, expected less than 2"):
        cg.export("gru", tmp_path / "a.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_format_takes_no_options(tmp_path: Path) -> None:
    assert FORMATS["onnx"].options == ()
    with pytest.raises(cg.CellError, match="format onnx has no option 'opset'"):
        cg.export("gru", tmp_path / "a.onnx", "onnx", opset=12)

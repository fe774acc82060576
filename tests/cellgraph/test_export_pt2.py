"""The format pt2: programs of torch.export that keep the numbers of steps and rows open."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cellgraph as cg
from cellgraph.exporters import TOLERANCE, pt2, torch_only, write
from cellgraph.exporters.check import cases
from tests.cellgraph.test_export import HARD, HOSTILE_DOC, mutants

#: Torch calls parts of itself deprecated while it imports what torch.export needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SMALL = {"input_size": 3, "hidden_size": 4}
STACKED = {**SMALL, "num_layers": 2, "bidirectional": True}

#: Cells that differ in what their loops read and carry.
CELLS = {
    name: cg.parse(text)
    for name, text in HARD.items()
    if name not in ("long", "deep", "many signs")
} | {name: cg.load(name) for name in ("mut1", "slstm", "min_gru")}


@pytest.mark.parametrize("name", CELLS)
def test_exports_pass_their_check(name: str, tmp_path: Path) -> None:
    written = write(CELLS[name], tmp_path / "a.pt2", "pt2", sizes=SMALL)
    assert written.difference is not None
    assert written.difference.largest <= TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt2"]


@pytest.mark.parametrize("cell", mutants(2), ids=range(2))
def test_mutants_pass_their_check(cell: cg.CellGraph, tmp_path: Path) -> None:
    write(cell, tmp_path / "a.pt2", "pt2", sizes=SMALL)


def test_stacked_layers_in_both_directions(tmp_path: Path) -> None:
    written = write("mut2", tmp_path / "a.pt2", "pt2", sizes=STACKED)
    assert written.difference is not None
    assert written.difference.largest <= TOLERANCE


def test_a_layer_goes_with_its_weights_and_its_order_of_axes(tmp_path: Path) -> None:
    layer = cg.compile(
        "lstm_projection_torch", 3, 4, 2, True, 0.5, True, proj_size=2, bias=False
    ).double()
    path = cg.export(layer, tmp_path / "a.pt2", "pt2")
    sizes = [(1, 1), (2, 5), (31, 2)]
    calls = [(torch.randn(B, T, 3), (torch.randn(4, B, 2), torch.randn(4, B, 4))) for T, B in sizes]
    assert {p.dtype for p in layer.parameters()} == {torch.float64}  # it is as it was
    assert layer.training
    layer = layer.float().eval()
    for call, (y, last) in zip(calls, torch_only.run(path, calls), strict=True):
        wanted, ends = layer(*call)
        for value, expected in zip((y, *last), (wanted, *ends), strict=True):
            torch.testing.assert_close(value, expected)


def test_a_loaded_program(tmp_path: Path) -> None:
    layer = cg.compile("gru", 3, 4).eval()
    extra = {"cell": ""}
    loaded = torch.export.load(cg.export(layer, tmp_path / "a.pt2", "pt2"), extra_files=extra)
    assert extra["cell"] == str(cg.load("gru"))
    program: Any = loaded.module()
    weights = dict(program.named_parameters())
    assert {name.removeprefix("cells.0.") for name in weights} == {
        p.name for p in layer.cell.params
    }
    assert not any(value.requires_grad for value in weights.values())  # else every call is traced
    x, h = torch.randn(9, 2, 3), torch.randn(1, 2, 4)
    with torch.no_grad():
        wanted = layer(x, h)
    for value, expected in zip(program(x, h), wanted, strict=True):
        torch.testing.assert_close(value, expected)
    for wrong in (x[:, :, :2], x[:0]):
        with pytest.raises((AssertionError, IndexError)):  # torch's own, of guards and of scan
            program(wrong, h)


def test_nothing_of_the_machine_is_in_the_file(tmp_path: Path) -> None:
    cell = replace(cg.load("lstm"), doc=HOSTILE_DOC)
    path = cg.export(cell, tmp_path / "a.pt2", "pt2")
    with zipfile.ZipFile(path) as archive:
        text = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".json"))
        names = archive.namelist()
    assert b'"torch.ops.higher_order.scan"' in text
    for word in (b"cellgraph", str(Path.home()).encode(), str(Path(cg.__file__).parent).encode()):
        assert word not in text, word
    assert not any("pkl" in name for name in names)


# -- what goes wrong -------------------------------------------------------------------------------


def test_another_cell_does_not_pass(tmp_path: Path) -> None:
    layer = cg.compile("gru", 3, 4).eval()
    other = cg.compile("gru", 3, 4).eval()
    (path := tmp_path / "a.pt2").write_bytes(pt2.render(other)[""])
    with pytest.raises(cg.CellError, match="the exported gru is not the cell: the output at T = 1"):
        pt2.difference(layer, path)
    assert pt2.difference(other, path).largest <= TOLERANCE


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    (path := tmp_path / "a.pt2").write_bytes(b"no program")
    call = [(case.x, case.state[0]) for case in cases(cg.compile("gru", 3, 4).eval())]
    for _ in range(2):  # and the other process goes on
        with pytest.raises(
            cg.CellError, match=r"a\.pt2 does not run in a process with only torch \("
        ):
            torch_only.run(path, call)


#: A server that is quick to start: it gives back what it gets, and ends when it is told to.
ECHO = """
import sys
while size := sys.stdin.buffer.read(8):
    text = sys.stdin.buffer.read(int.from_bytes(size, "big"))
    if text == b"end":
        break
    sys.stdout.buffer.write(size + text)
    sys.stdout.buffer.flush()
"""


def test_a_process_that_ends_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_only, "SERVER", ECHO)
    other = torch_only._TorchOnly()
    for _ in range(2):
        assert other.ask(b"a" * 100_000) == b"a" * 100_000
        process = other.process
        assert other.ask(b"b") == b"b"
        assert other.process is process
        assert other.ask(b"end") == b""
        assert process is not None
        assert process.returncode is not None
    other.ask(b"c")
    assert other.process is not None
    other.process.kill()
    other.process.wait()
    assert other.ask(b"d") == b"d"
    other.ask(b"end")


def test_a_torch_that_cannot_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise TypeError("scan() takes no such thing\nand more")

    monkeypatch.setattr("torch.export.export", fail)
    with pytest.raises(cg.CellError) as caught:
        cg.export("gru", tmp_path / "a.pt2", "pt2")
    assert str(caught.value) == (
        f"torch {torch.__version__} cannot trace the loop of gru (scan() takes no such thing), "
        "expected torch 2.13 or newer"
    )
    monkeypatch.setitem(sys.modules, "torch._higher_order_ops.scan", None)
    monkeypatch.delitem(sys.modules, "cellgraph.exporters.loop", raising=False)
    monkeypatch.delattr("cellgraph.exporters.loop", raising=False)
    with pytest.raises(cg.CellError, match=r"cannot trace .* \(it has no scan for torch.export\)"):
        cg.export("gru", tmp_path / "a.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_traced_loop_takes_what_an_export_needs() -> None:
    from cellgraph.exporters.loop import Runner

    x = torch.zeros(2, 1, 3)
    with pytest.raises(cg.CellError, match="a traced loop takes sequences of one length"):
        Runner(cg.load("gru"))({}, x, [], mask=torch.ones(2, 1, 1, dtype=torch.bool))

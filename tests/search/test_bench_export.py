"""`cellsearch bench export`: what is counted, what is timed, and what it is held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cellgraph import CellError
from search import cli
from search.bench import exports, exports_summary, timing
from search.bench.exports import Findings, Row
from search.bench.request import ExportRequest


def quiet(phase: str, done: int, total: int) -> None: ...


def test_every_cell_in_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cells", "gru,lstm", "--mutants", "1", "--formats", "torch,c", "--parts", "checks"]
    assert cli.main(["bench", "export", *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document["exports"]
    assert [(row["cell"], row["format"]) for row in rows if not row["mutant"]] == [
        (cell, kind) for kind in ("torch", "c") for cell in ("gru", "lstm")
    ]
    assert len(rows) == 6
    for row in rows:
        assert row["error"] is None
        assert row["mutant"] or 0 < row["difference"] < 1e-5
        assert row["seconds"] > 0
    (failed, *_) = document["summary"]["targets"]
    assert (failed["measured"], failed["met"]) == (0, True)
    assert document["speed"]["ms"] == {}


def test_what_fails_is_counted_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*words: object, **named: object) -> None:
        raise CellError("the exported cell is not the cell\nat all")

    monkeypatch.setattr(exports, "write", fails)
    words = ["--cells", "gru", "--formats", "onnx", "--parts", "checks"]
    assert cli.main(["bench", "export", *words]) == 0
    out = capsys.readouterr().out
    assert "gru as onnx: the exported cell is not the cell\n" in out
    assert "missed" in out


def test_an_lstm_is_timed_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "EFFORT", timing.Effort(0.0, least=1, most=1, turn=0.0))
    found = exports.measure(ExportRequest(parts=("speed",)), quiet)
    assert list(found.ms) == ["eager", "native", "onnxruntime", "C"]
    assert all(ms > 0 for ms in found.ms.values())
    assert found.over["C"] == pytest.approx(found.ms["eager"] / found.ms["C"])
    text = exports_summary.text(found)
    assert "LSTM, T 100, B 1, H 128, without gradients" in text
    assert "onnxruntime / C, LSTM" in text


def test_formats_that_compute_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("svg", "pth"):
        assert cli.main(["bench", "export", "--formats", name]) == 2
        assert f"no format '{name}' to check, expected some of torch" in capsys.readouterr().err


def test_targets() -> None:
    row = Row("gru", False, "onnx", 0.1, 1e-3, 1e-7)
    found = Findings(ExportRequest(), {}, [row], {}, {"onnxruntime": 3.0, "C": 4.0})
    assert [target.met for target in exports_summary.targets(found)] == [True] * 4
    found.rows += [replace(row, difference=None, error="no"), replace(row, step=1e-3)]
    found.over = {"onnxruntime": 1.5, "C": 1.0}
    assert [target.met for target in exports_summary.targets(found)] == [False] * 4
    empty = Findings(ExportRequest(), {})
    assert [target.met for target in exports_summary.targets(empty)] == [None] * 4


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports.tempfile, "tempdir", str(tmp_path))
    request = ExportRequest(cells=("gru",), mutants=0, formats=("torch",), parts=("checks",))
    assert len(exports.measure(request, quiet).rows) == 1
    assert list(tmp_path.iterdir()) == []

"""Scans in `cellsearch bench kernels`: what is measured, and what it is compared with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from search import cli
from search.bench import kernels, scans, summary, timing
from search.bench.request import LONG_SHAPES, Request, Shape

SHAPES = (Shape(20, 2, 4), Shape(9, 1, 3))
REQUEST = Request(cells=("min_gru", "gru", "qrnn"), long_shapes=SHAPES, parts=("scan",))


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "EFFORT", timing.Effort(0.0, least=1, most=1, turn=0.0))


def test_cells_that_need_a_loop_are_not_measured() -> None:
    said: list[tuple[str, int, int]] = []
    threads = torch.get_num_threads()
    rows = list(scans.measure(REQUEST, lambda *words: said.append(words)))
    assert torch.get_num_threads() == threads
    assert [(row.cell, row.shape) for row in rows] == [
        (cell, shape) for shape in SHAPES for cell in ("min_gru", "qrnn")
    ]
    assert said == [(f"scans at {SHAPES[n // 2]}", n, 4) for n in range(4)]
    for row in rows:
        assert set(row.ms) == {"scan", "native", "eager", "nn.LSTM"}
        assert row.over_scan["native"] == pytest.approx(row.ms["native"] / row.ms["scan"])
        assert 0 <= row.difference < 1e-5


def test_all_cells_that_need_no_loop_are_measured_by_default() -> None:
    names = {cell.name for cell in scans.scannable(Request())}
    assert {"min_gru", "min_lstm", "qrnn", "sru_v1", "t_gru"} <= names
    assert "gru" not in names
    assert [shape.steps for shape in Request().long_shapes] == [512, 4096]


def test_table_and_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "kernels", "--cells", "gru,min_gru", "--parts", "scan", "--shapes", "12,2,3"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "min_gru" in out
    assert "native and eager loop over time" in out
    assert cli.main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["scans"]
    assert (row["cell"], row["shape"]) == ("min_gru", [12, 2, 3])
    assert document["request"]["long_shapes"] == [[12, 2, 3]]
    assert document["cells"] == []


def test_targets() -> None:
    ms = {"scan": 1.0, "native": 1.0, "eager": 9.0, "nn.LSTM": 4.0}
    row = scans.Row("min_gru", LONG_SHAPES[-1], 3, ms, {"nn.LSTM": 4.0}, 1e-6)
    found = kernels.Findings(REQUEST, {}, scans=[row, replace(row, cell="qrnn", over_scan={})])
    met = [target.met for target in summary.targets(found) if target.met is not None]
    assert met == [True, True]
    found.scans = [replace(row, over_scan={"nn.LSTM": 2.0}, difference=1e-3)]
    assert [t.met for t in summary.targets(found) if t.met is not None] == [False, False]
    found.scans = [replace(row, shape=LONG_SHAPES[0])]
    assert [t.met for t in summary.targets(found) if t.met is not None] == [True]

"""The export for Keras: the same function on its torch backend, one process for all cells."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import cellgraph as cg
from cellgraph.exporters import keras_source
from cellgraph.exporters.source import camel
from cellgraph.ops import OPS
from tests.cellgraph.test_export import HARD, HOSTILE_DOC, one_op

pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed")

T, B, X, H = 5, 2, 3, 4

SCRIPT = """
import importlib, sys, traceback
import numpy as np

sys.path.insert(0, ".")
cases = np.load("cases.npz")
results = {}
for name in [key.removesuffix("/module") for key in cases.files if key.endswith("/module")]:
    try:
        module = importlib.import_module(str(cases[f"{name}/module"]))
        kind = getattr(module, str(cases[f"{name}/class"]))
        names = [n for n in str(cases[f"{name}/widths"]).split(",") if n]
        widths = {n: 2 + i for i, n in enumerate(names)}
        layer = kind(4, **widths, return_sequences=True, return_state=True)
        layer = kind.from_config(layer.get_config())
        x = cases[f"{name}/x"]
        layer.build(x.shape)
        layer.assign_weights({k.removeprefix(f"{name}/"): cases[k] for k in cases.files
                              if k.startswith(f"{name}/cells.0.")})
        state = [cases[k] for k in cases.files if k.startswith(f"{name}/state")]
        found = [np.asarray(v.detach()) for v in layer(x, initial_state=state)]
        for i, value in enumerate(found):
            np.testing.assert_allclose(value, cases[f"{name}/y{i}"], rtol=2e-4, atol=2e-5)
        results[name] = "equal"
    except Exception:
        results[name] = traceback.format_exc()
assert not [m for m in sys.modules if m.split(".")[0] in ("cellgraph", "search", "tensorflow")]
np.savez("results.npz", **{name.replace("/", "|"): text for name, text in results.items()})
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("keras")
    cells = {name: cg.load(name) for name in ("gru", "lstm", "mut1", "rhn5", "irnn")}
    cells |= {name: cg.parse(text) for name, text in HARD.items()}
    cells |= {f"op {name}": one_op(name) for name in OPS}
    cells["hostile comment"] = replace(cg.load("gru"), doc=HOSTILE_DOC)
    cases: dict[str, object] = {}
    for i, (name, cell) in enumerate(cells.items()):
        text = keras_source.render(cell, {}, {})
        (folder / f"m{i}.py").write_text(text, "utf-8", "replace")
        torch.manual_seed(i)
        widths = {width: 2 + k for k, width in enumerate(cell.widths[1:])}
        layer = cg.compile(cell, X, H, widths=widths, backend="eager").double()
        x = torch.randn(T, B, X, dtype=torch.float64)
        state = [torch.randn(1, B, size, dtype=torch.float64) for size in layer.state_sizes]
        y, last = layer(x, state[0] if len(state) == 1 else tuple(state))
        lasts = last if isinstance(last, tuple) else (last,)
        cases |= {f"{name}/{key}": v.numpy().astype("f4") for key, v in layer.state_dict().items()}
        cases |= {f"{name}/state{k}": v[0].numpy().astype("f4") for k, v in enumerate(state)}
        cases |= {f"{name}/y{k + 1}": v[0].detach().numpy() for k, v in enumerate(lasts)}
        cases |= {
            f"{name}/module": f"m{i}",
            f"{name}/class": camel(cell.name),
            f"{name}/widths": ",".join(keras_source.arguments(cell).values()),
            f"{name}/x": x.transpose(0, 1).numpy().astype("f4"),
            f"{name}/y0": y.detach().transpose(0, 1).numpy(),
        }
    np.savez(folder / "cases.npz", **cases)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: str(text) for name, text in np.load(folder / "results.npz").items()}


def test_keras_computes_the_cell(results: dict[str, str]) -> None:
    assert len(results) > len(HARD) + len(OPS)
    assert {name: text for name, text in results.items() if text != "equal"} == {}


def test_export_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = cg.parse("cell wide(x, h, r: P)\n r' = tanh(R @ h + x)\n h' = tanh(W @ x + U @ r)")
    layer = cg.compile(wide, 3, 4, widths={"P": 5})
    path = cg.export(layer, tmp_path / "wide.py", "keras")
    assert "units: int = 4, *, P: int = 5, **options" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["wide.py"]

    def zeros(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        data = np.load(words[5])
        found = {f"y{i}_0": np.zeros((*data[f"x{i}"].shape[:2], 4), "f4") for i in range(6)}
        found |= {key.replace("state", "y").replace("_0", "_1"): data[key] for key in data.files
                  if key.startswith("state")}  # fmt: skip
        np.savez(f"{words[5]}.out.npz", **found)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr("cellgraph.exporters.keras_check.subprocess.run", zeros)
    one = cg.compile("gru", 3, 4)
    with pytest.raises(cg.CellError, match="the exported gru is not the cell: the output at T = 1"):
        cg.export(one, tmp_path / "gru.py", "keras")
    monkeypatch.setattr(
        "cellgraph.exporters.keras_check.subprocess.run",
        lambda words, **options: subprocess.CompletedProcess(words, 1, "", "a\nb: c\n"),
    )
    with pytest.raises(cg.CellError, match="the exported gru does not run in Keras: b: c"):
        cg.export(one, tmp_path / "gru.py", "keras")
    assert [p.name for p in tmp_path.iterdir()] == ["wide.py"]


def test_several_layers_are_refused(tmp_path: Path) -> None:
    for options in ({"num_layers": 2}, {"bidirectional": True}):
        with pytest.raises(cg.CellError, match="one layer in one direction, expected num_layers 1"):
            cg.export(cg.compile("gru", 3, 4, **options), tmp_path / "a.py", "keras")
    assert list(tmp_path.iterdir()) == []


def test_without_keras_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellgraph.exporters.keras_check.find_spec", lambda name: None)
    with pytest.raises(cg.CellError, match=r"pip install 'cellsearch\[keras\]'"):
        cg.export("gru", tmp_path / "gru.py", "keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gru", "lstm", "rhn5", *HARD])
def test_the_code_is_readable_python(name: str) -> None:
    cell = cg.parse(HARD[name]) if name in HARD else cg.load(name)
    text = keras_source.render(replace(cell, doc=HOSTILE_DOC), {}, {})
    plain = keras_source.render(replace(cell, doc=""), {}, {})
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(plain))
    if name not in HARD:
        assert max(map(len, plain.splitlines())) <= 100

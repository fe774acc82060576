"""The C text of a cell as a text: its golden file, its size, and how often it is compiled."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cellgraph as cg
from cellgraph.graph import Node
from cellgraph.kernels import compiler, native
from cellgraph.kernels.emit import Text, emit
from cellgraph.kernels.matrix import Matrices
from cellgraph.kernels.planner import plan
from tests.cellgraph.native_cells import Shape, compiled, defined, error, evolved, numbers, results

GOLDEN = Path(__file__).parents[1] / "golden" / "lstm.c"
ZOO = [cg.load(name) for name in cg.zoo.names()]


def text_of(cell: cg.CellGraph) -> Text:
    return emit(plan(cell))


def test_golden_lstm() -> None:
    assert text_of(cg.load("lstm")).source() == GOLDEN.read_text(encoding="utf-8"), (
        "the LSTM is compiled from another text; if that is meant, write it anew: "
        f"pathlib.Path('{GOLDEN}').write_text(emit(plan(cellgraph.load('lstm'))).source())"
    )


@pytest.mark.parametrize("cell", [*ZOO, *evolved(10, seed=6)], ids=lambda cell: cell.name)
def test_the_text_depends_on_nothing_but_the_cell(cell: cg.CellGraph) -> None:
    """Neither on what was compiled before, nor (but for the names in it) on names."""
    once, again = text_of(cell), text_of(cell)
    assert (once.source(), once.identity) == (again.source(), again.identity)
    assert text_of(cg.parse(str(cell))).identity == once.identity
    words = "|".join(p.name for p in cell.params) or "none"
    renamed = re.sub(rf"\b({words})\b", r"p_\1_p", str(cell))
    other = text_of(cg.parse(renamed.replace(f"cell {cell.name}", "cell renamed")))
    assert other.identity == once.identity
    assert other.forward == once.forward


def test_the_text_is_the_same_in_every_process() -> None:
    """Else the cache would find nothing."""
    code = (
        "import hashlib, cellgraph as cg; from cellgraph.kernels.emit import emit;"
        "from cellgraph.kernels.planner import plan;"
        "texts = [emit(plan(cg.load(name))) for name in cg.zoo.names()];"
        "all_ = ''.join(t.identity + t.source() for t in texts);"
        "print(hashlib.sha256(all_.encode()).hexdigest())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


def test_other_cells_are_other_text() -> None:
    texts = {text_of(cg.parse(f"cell a(x, h)\n h' = {line}")).identity for line in LINES}
    assert len(texts) == len(LINES)


LINES = (
    *("tanh(W @ x + U @ h)", "tanh(W @ x - U @ h)", "tanh(W @ h + U @ x) * h", "tanh(W @ x) + b"),
    *("tanh(W @ x + W @ h)", "x * h", "x * 2", "x * 3", "x - h", "h - x", "max(x, h)", "min(x, h)"),
)


# -- cells that want to be large ------------------------------------------------------------------


def shared(depth: int, leaf: Node) -> Node:
    """2^depth leaves, if it were written out."""
    for _ in range(depth):
        leaf = Node("tanh", (Node("mul", (leaf, leaf)),))
    return leaf


@pytest.mark.parametrize("kind", ["param", "input", "state"])
def test_values_that_are_shared_again_and_again(kind: str) -> None:
    leaf = Node(kind, (), {"param": "b", "input": "x", "state": "h"}[kind])
    product = Node("matmul", (Node("param", (), "U"), shared(60, leaf)))
    total = Node("tanh", (Node("add", (product, Node("state", (), "h"))),))
    cell = cg.build("deep", [("h", "H", total)], total)
    assert len(text_of(cell).source()) < 100_000
    at = numbers(cell, Shape(2, 2, 3, 3), torch.float64, seed=0)
    found, wanted = results(compiled(cell), at), results(defined(cell), at)
    assert error(found[0], wanted[0]) < 1e-12
    assert error(found[1], wanted[1], floor=1e-6) < 1e-12


def test_sums_of_sums_of_sums() -> None:
    """Every product multiplies both products before it."""
    value = Node("state", (), "h")
    for index in range(40):
        one, other = (Node("matmul", (Node("param", (), f"{name}{index}"), value)) for name in "UV")
        value = Node("mul", (one, other))
    cell = cg.build("deep", [("h", "H", value)], value)
    assert len(text_of(cell).source()) < 200_000


def test_a_long_chain() -> None:
    """Compilers read brackets to a certain depth: clang to 256."""
    value = Node("matmul", (Node("param", (), "U"), Node("state", (), "h")))
    for index in range(400):
        value = Node(("sin", "neg")[index % 2], (value,))
    cell = cg.build("long", [("h", "H", value)], value)
    source = text_of(cell).source()
    depth = deepest = 0
    for sign in re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(sign, 0)
        deepest = max(deepest, depth)
    assert depth == 0
    assert deepest < 50
    at = numbers(cell, Shape(2, 1, 3, 3), torch.float64, seed=0)
    found, wanted = results(compiled(cell), at), results(defined(cell), at)
    assert error(found[0], wanted[0]) < 1e-12


# -- many cells in one run of the compiler --------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the texts that the compiler reads from now on; the cache is empty."""
    for double in (False, True):
        Matrices(double=double)
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler._process, "loaded", {})
    sizes: list[int] = []
    real = compiler.build

    def build(found: Any, texts: dict[str, str], *args: Any, **options: Any) -> Path:
        sizes.append(len(texts))
        return real(found, texts, *args, **options)

    monkeypatch.setattr(compiler, "build", build)
    return sizes


def test_many_cells_are_compiled_in_one_run(runs: list[int]) -> None:
    cells = [*ZOO, *evolved(4, seed=8)]
    distinct = len({text_of(cell).identity for cell in cells})
    assert distinct < len(cells)  # lstm_b differs from lstm in the start of a bias alone
    native.prepare(cells)
    assert runs == [distinct]
    for cell in cells:
        native.Runner(cell).kernel(torch.float32)
    native.prepare(cells[::-1])
    assert runs == [distinct]
    native.prepare(cells[:2], torch.float64)
    native.Runner(cells[0]).kernel(torch.float64)
    assert runs == [distinct, 2]


def test_what_the_cache_has_is_not_compiled_with_the_rest(
    runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    native.prepare(ZOO[:3])
    monkeypatch.setattr(compiler._process, "loaded", {})  # as in a new process
    native.prepare(ZOO[:5])
    native.prepare([])
    assert runs == [3, 2]


def test_one_cell_that_cannot_be_compiled_is_reported(
    runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Text, "source", lambda self: "#error no such luck\n")
    with pytest.raises(compiler.CompilerError, match="no such luck"):
        native.prepare(ZOO[:2])
    assert runs == [2]

"""No text of a user reaches the compiler: names become numbers wherever they are not harmless, and
files are called by digests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import cellgraph as cg
from cellgraph.graph import Node
from cellgraph.kernels import compiler
from cellgraph.kernels.emit import emit
from cellgraph.kernels.planner import plan
from tests.cellgraph.native_cells import Shape, compiled, defined, error, numbers, results
from tests.strategies import Sample

EVIL = (
    "*/ int leaked(void) { return 1; } /*",
    "b\n#include </etc/leaked>",
    "leaked\\\n",
    '../../leaked"; system("leaked',
    "leaked//",
    "leaked\0",
    "lеaked",  # a Cyrillic letter
)

#: Harmless in the notation, and something else in C, in the headers or in the generated text.
WORDS = (
    *("int", "double", "while", "return", "register", "asm", "typeof", "_Bool", "auto", "void"),
    *("linux", "unix", "NULL", "INFINITY", "NAN", "M_PI", "errno", "main", "EOF", "stdin"),
    *("V", "I", "R", "LANES", "real", "integer", "splat", "load", "store", "select", "load_part"),
    *("pack", "product", "matrix", "Matrix", "padded", "whole", "part", "room", "give", "GLUE"),
    *("at", "tape", "tape_t", "row", "rows", "b", "j", "t", "n", "n0", "n1", "size", "y", "dy"),
    *("v", "v0", "v1", "v2", "v3", "v_b", "s0", "x0", "matrix0", "static0", "column0", "work0"),
    *("after0", "before0", "d_after0", "d_before0", "after0_b", "history0", "first0", "last0"),
    *("h_next", "v_h_next", "H", "H_", "X", "T", "B", "starts", "tokens", "recording", "table"),
    *("a" * 100, "a" * 99 + "b", "_" * 100, "_", "__FILE__", "__COUNTER__", "defined", "__GNUC__"),
)


def built(
    *,
    cell: str = "a",
    param: str = "b",
    matrix: str = "U",
    state: str = "h",
    width: str = "H",
    inner: str = "g",
    x: str = "x",
) -> cg.CellGraph:
    """tanh(U @ h + b * x), under names that no text could give it."""
    h, x_ = Node("state", (), state), Node("input", (), x)
    total = Node("matmul", (Node("param", (), matrix), h))
    g = Node("add", (total, Node("mul", (Node("param", (), param), x_))))
    value = Node("tanh", (g,))
    params = (
        cg.Param(matrix, "matrix", width, width),
        cg.Param(param, "vector", width, None),
    )
    names = ((inner, g), (f"{state}'", value))
    states = (cg.State(state, width, value),)
    return cg.CellGraph(cell, (x,), states, (value,), params, raw_x=width, names=names)


def renamed(at: Sample, cell: cg.CellGraph) -> Sample:
    """The same numbers for a cell whose parameters are called otherwise."""
    params = dict(zip((p.name for p in cell.params), at.params.values(), strict=True))
    return Sample(params, at.x, at.state, at.widths)


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("part", ["cell", "param", "matrix", "state", "width", "inner", "x"])
def test_a_hostile_name_reaches_neither_text_nor_path(part: str, evil: str) -> None:
    plain, hostile = built(), built(**{part: evil})
    unit = emit(plan(hostile)).unit()
    assert re.fullmatch(r"[0-9a-f]+", unit.name)
    for text in (unit.read(), unit.identity):
        assert text.isascii()
        assert "leaked" not in text
        assert "aked" not in text
    assert unit.identity == emit(plan(plain)).identity


def test_what_names_make_of_a_cell_is_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not even compiled again; and its files are called by digests."""
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path))
    plain = built(cell="plain_and_simple")
    at = numbers(plain, Shape(3, 2, 5, 5), torch.float64, seed=0)
    wanted = results(compiled(plain), at)
    files = sorted(path.name for path in (tmp_path / "kernels").iterdir())
    called = r"(matrix|[0-9a-f]+)(-[0-9a-f]+)?\.(c|so|json)|unfinished"
    assert all(re.fullmatch(called, name) for name in files)
    monkeypatch.setattr(compiler, "build", None)
    hostile = built(cell=EVIL[0], param=EVIL[1], matrix=EVIL[2], state=EVIL[3], inner=EVIL[0])
    found = results(compiled(hostile), renamed(at, hostile))
    assert error(found[0], wanted[0]) == error(found[1], wanted[1]) == 0
    assert sorted(path.name for path in (tmp_path / "kernels").iterdir()) == files


def words_of(source: str) -> set[str]:
    """The words of C, without its comments."""
    return set(re.findall(r"\w+", re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)))


def as_parameters(words: Sequence[str]) -> cg.CellGraph:
    total = " + ".join(f"{word} * x" for word in words)
    return cg.parse(f"cell linux(x, hidden)\n hidden' = tanh(U_0 @ hidden + {total})")


def as_values(words: Sequence[str]) -> cg.CellGraph:
    lines, before = [], "hidden"
    for index, word in enumerate(words):
        lines.append(f" {word} = tanh(x * {before}) + 0.{index + 1} * {before}")
        before = word
    text = "\n".join([*lines, f" hidden' = {before} * {words[0]}"])
    return cg.parse(f"cell unix(x, hidden)\n{text}")


def as_states(words: Sequence[str]) -> cg.CellGraph:
    lines = [f" {word}' = tanh(x * {word} + W_0 @ {words[i - 1]})" for i, word in enumerate(words)]
    return cg.parse(f"cell NULL(x, {', '.join(words)})\n" + "\n".join(lines))


@pytest.mark.parametrize(
    ("make", "words"),
    [(as_parameters, WORDS), (as_values, WORDS), (as_states, WORDS[::2]), (as_states, WORDS[1::2])],
    ids=["parameters", "values", "states", "other states"],
)
def test_words_of_c_are_harmless_names(
    make: Callable[[Sequence[str]], cg.CellGraph], words: Sequence[str]
) -> None:
    cell, plain = make(words), make([f"plain_{i}" for i in range(len(words))])
    assert emit(plan(cell)).identity == emit(plan(plain)).identity
    source = emit(plan(cell)).source()
    generated = words_of(emit(plan(plain)).source())
    for word in words_of(source) - generated:
        assert re.fullmatch(r"v_\w+|v\d+", word), f"{word} is in the text because of a name"
    at = numbers(cell, Shape(2, 2, 3, 3), torch.float64, seed=0, scale=0.2)
    found, wanted = results(compiled(cell), at), results(defined(cell), at)
    assert error(found[0], wanted[0]) < 1e-12
    assert error(found[1], wanted[1], floor=1e-3) < 1e-12


def test_names_stand_where_they_help() -> None:
    cell = cg.parse("cell a(x, h)\n gate = exp(W @ x + U @ h)\n h' = gate * h + gate")
    text = emit(plan(cell)).source()
    assert "const V v_gate = exp(" in text
    assert "h' = gate * h + gate" in text  # in a comment
    assert "/* U */" in text

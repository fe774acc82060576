"""The C export: files that compile without a warning and compute what the interpreter computes.

The check that stands in `write` compares every file with the interpreter; what the tests here add
is which cells and shapes go through it, what the files look like from outside, and that the check
can fail.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cellgraph as cg
from cellgraph.exporters import Exported, c_check, c_math, c_weights, write
from cellgraph.exporters.c_text import Identifiers, comment, number, plain
from cellgraph.kernels import compiler
from cellgraph.layer import CellLayer
from cellgraph.ops import OPS
from tests.cellgraph.test_export import HARD, HOSTILE_DOC, drawn_cells, mutants
from tests.cellgraph.test_native_names import WORDS

X, H = 3, 5

needs_compiler = pytest.mark.skipif(compiler.command() is None, reason="there is no C compiler")


def layer_of(cell: cg.CellGraph | str, **options: Any) -> CellLayer:
    """A layer whose widths all differ, and differ from those of x."""
    cell = cg.load(cell) if isinstance(cell, str) else cell
    widths = {width: 2 + i for i, width in enumerate(cell.widths[1:])}
    torch.manual_seed(0)
    sizes = {"input_size": X, "hidden_size": H, **options}
    return cg.compile(cell, **sizes, widths=widths, backend="eager")


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Exported]:
    """Write a cell or a layer as C, checked; nothing else remains in the folder."""

    def run(source: Any, **options: object) -> Exported:
        source = source if isinstance(source, CellLayer) else layer_of(source)
        made = write(source, tmp_path / "a.c", "c", overwrite=True, options=options)
        assert [path.name for path in tmp_path.iterdir()] == ["a.c"]
        return made

    return run


def every_op() -> cg.CellGraph:
    """A cell with one state for each op, whose arguments stay within the op's domain."""
    lines, states = [], [f"s_{name}" for name in OPS]
    for at, (name, op) in enumerate(OPS.items()):
        low, high = op.domain
        values = [
            f"({(low + high) / 2} + {(high - low) / 2} * tanh({matrix}{at} @ {of}))"
            for matrix, of in (("U", states[at]), ("W", "x"))
        ][: op.arity]
        if op.infix is None:
            lines.append(f" {states[at]}' = tanh({name}({', '.join(values)}))")
        else:
            text = f" {op.infix} ".join(values) if op.arity == 2 else f"{op.infix}{values[0]}"
            lines.append(f" {states[at]}' = tanh({text})")
    cell = cg.parse("\n".join([f"cell ops(x, {', '.join(states)})", *lines]))
    assert {node.op for node in cell.nodes} >= set(OPS)
    return cell


# -- the same function -----------------------------------------------------------------------------

#: Several states; x outside matrices, projected; several widths; scalars; numbers; static values.
CELLS = ("lstm", "gru_reset_after", "mut1", "sru", "lstm_projection", "scrn", "fastgrnn", "rhn2")


@needs_compiler
@pytest.mark.parametrize("at", range(len(CELLS)))
def test_cells_of_the_zoo(at: int, export: Callable[..., Exported]) -> None:
    stacks = ({}, {"num_layers": 3}, {"bidirectional": True})
    made = export(layer_of(CELLS[at], **stacks[at % 3]))
    assert made.difference is not None
    assert made.difference.largest <= 1e-5


@needs_compiler
@pytest.mark.parametrize("layers", [2, 3])
def test_both_directions_of_several_layers(layers: int, export: Callable[..., Exported]) -> None:
    export(layer_of("sru", num_layers=layers, bidirectional=True))


@needs_compiler
@pytest.mark.parametrize("name", HARD)
def test_hard_cells(name: str, export: Callable[..., Exported]) -> None:
    export(cg.parse(HARD[name]))


@needs_compiler
def test_every_op(export: Callable[..., Exported]) -> None:
    export(every_op())


@needs_compiler
def test_random_cells(export: Callable[..., Exported]) -> None:
    found = [*mutants(3), *drawn_cells(8)[::2]]
    for at, cell in enumerate(found):
        export(layer_of(cell, num_layers=1 + at % 2, bidirectional=at % 3 == 0))


@needs_compiler
@pytest.mark.parametrize(
    "text",
    [
        # A state is written while its old value, or that of another one, is still to be read.
        "cell early(x, h, c)\n c' = tanh(W @ x + c)\n h' = tanh(U @ c' + V @ h) * c",
        "cell soon(x, h, c)\n c' = tanh(W @ x + c)\n h' = tanh(U @ c' + V @ h)",
        "cell round(x, a, b, c)\n a' = b\n b' = c\n c' = tanh(a + W @ x)",
        # Products of products, of sums of products, and of one matrix with several vectors.
        "cell chain(x, h)\n h' = tanh(U @ (V @ (W @ x + U @ h)) + W @ tanh(x))",
        "cell twice(x, h)\n h' = tanh(U @ h + U @ h + V @ h + V @ (U @ h * 0.5))",
        # x is as wide as what it meets, layer by layer, and never as wide as a state.
        "cell inside(x, h)\n h' = tanh(U @ (x * sigmoid(V @ x)) + R @ h)",
        # What parameters alone decide, matrices among it that are multiplied elsewhere as well.
        "cell still(x, h)\n scalar s\n h' = tanh(W @ x + U @ h + U @ b * exp(s) / (s * s))",
    ],
)
def test_hazards(text: str, export: Callable[..., Exported]) -> None:
    export(layer_of(cg.parse(text), num_layers=2), int8=" still" in text)


@needs_compiler
@pytest.mark.parametrize("name", ["no parameters", "the output is x", "a state is x"])
def test_cells_that_read_no_weights(name: str, export: Callable[..., Exported]) -> None:
    export(layer_of(cg.parse(HARD[name]), input_size=H, num_layers=2))


# -- int8 ------------------------------------------------------------------------------------------


@needs_compiler
def test_int8_is_a_quarter_of_the_size_and_says_what_it_loses(
    export: Callable[..., Exported],
) -> None:
    layer = layer_of("lstm", input_size=24, hidden_size=24)
    constants = []
    for int8 in (False, True):
        made = export(layer, int8=int8)
        assert made.difference is not None
        assert made.difference.largest <= 1e-5
        constants.append(int(re.search(r"constants ([\d,]+)", made.notes[0])[1].replace(",", "")))
    assert constants[0] == 4 * (2 * 96 * 24 + 96)
    assert constants[1] == 2 * 96 * 24 + 4 * (2 * 96 + 96)
    lost = re.fullmatch(r"int8 weights move outputs and states by up to (\S+)", made.notes[-1])
    assert 1e-5 < float(lost[1]) < 0.05


def test_rounding_twice_is_rounding_once() -> None:
    layer = layer_of("lstm", hidden_size=40)
    once = c_weights.dequantised(layer, ["U_i"])
    twice = c_weights.dequantised(once, ["U_i"])
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])
        error = (value - layer.state_dict()[name]).abs()
        if name == "cells.0.U_i":
            largest = layer.state_dict()[name].abs().amax(dim=1, keepdim=True)
            assert (error <= largest / 127 * 0.5001).all()
            assert error.max() > 0
        else:
            assert error.max() == 0


@needs_compiler
def test_int8_of_rows_of_zeros_and_of_numbers_that_are_not_finite(
    export: Callable[..., Exported], tmp_path: Path
) -> None:
    layer = layer_of("sru", bidirectional=True)
    cell: Any = layer.cells[1]
    with torch.no_grad():
        cell.input_projection[2] = 0
    export(layer, int8=True)
    with torch.no_grad():
        cell.input_projection[2, 1] = float("nan")
    (tmp_path / "a.c").unlink()
    with pytest.raises(cg.CellError, match=r"cells\[1\].input_projection has weights that are not"):
        write(layer, tmp_path / "b.c", "c", options={"int8": True})
    assert list(tmp_path.iterdir()) == []


# -- names and comments ----------------------------------------------------------------------------


@needs_compiler
def test_words_of_c_as_names(export: Callable[..., Exported]) -> None:
    """Every word is a parameter; a state, a value and a width take turns among the worst."""
    taken = torch.nn.Module()  # whose attributes no parameter may be called like
    words = [w for w in (*WORDS, *MORE_WORDS) if w not in ("x", "h") and not hasattr(taken, w)]
    total = " + ".join(f"{word} * h" for word in words)
    export(cg.parse(f"cell int(x, h)\n h' = tanh(W @ x + ({total}) * 0.01)"))
    for word in ("double", "NAN", "product"):
        text = f"cell {word}(x, h: {word}, a{word})\n {word}_ = tanh(W @ x + h)\n"
        export(cg.parse(f"{text} h' = {word}_ * h\n a{word}' = tanh(U @ h + a{word})"))


MORE_WORDS = (
    *("word", "magnitude", "nearest", "power_of_two", "tanh_float", "fabsf", "copysignf"),
    *("sigmoidf", "tanhf", "expf", "class", "this", "restrict", "int8_t", "INT8_MAX", "FP_NAN"),
    *(
        "clear",
        "layers",
        "weights",
        "inputs",
        "sums",
        "entered",
        "between",
        "state",
        "work",
    ),
    *("k", "i", "w", "m0", "x1", "a", "n1", "n2", "b_0", "W_0", "a_reset", "int_step", "layer"),
)


@needs_compiler
def test_hostile_comments_change_nothing_but_comments(export: Callable[..., Exported]) -> None:
    code = []
    for doc in (HOSTILE_DOC + "\n*/ int leaked; /*\n/*/*/**//\n??/\n*\\\n/", ""):
        text = export(layer_of(replace(cg.load("gru"), doc=doc))).path.read_text("utf-8")
        code.append(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))
    assert code[0] == code[1]
    assert "leaked" not in code[0]


def test_comments_and_names() -> None:
    inside = comment(["a */ b", "/*/ /**/", "??/", "\x00\u2028"])[1:-1]
    assert not any(sign in line[2:] for line in inside for sign in ("*/", "/*", "??"))
    names = Identifiers(["i"])
    given = [names.give(n) for n in ("i", "int", "class", "NAN", "M_PI", "__h", "h", "_1", "_")]
    assert given == ["i_", "int_", "class_", "NAN_", "vM_PI", "h", "h_2", "v1", "v"]
    assert names.give("a" * 99) != names.give("a" * 100)
    assert plain("__Gru__") == "Gru"


def test_numbers() -> None:
    texts = [number(v) for v in (1, -0.5, 1e300, -1e300, float("nan"), 0.1, 1e-46, 1e20)]
    wanted = ["1.0f", "-0.5f", "INFINITY", "-INFINITY", "NAN", "0.1f", "0.0f", "1e+20f"]
    assert texts == wanted


@needs_compiler
def test_own_functions_are_accurate(tmp_path: Path) -> None:
    """To 2 units in the last place where results are normal numbers; the ends are exact."""
    text = "#include <math.h>\n#include <stdint.h>\n" + c_math.BITS
    for word, (name, own) in c_math.OWN.items():
        text += f"{own}void all_{word}(float *y, const float *x, long n)\n"
        text += f"{{ for (long i = 0; i < n; i++) y[i] = {name}(x[i]); }}\n"
    (tmp_path / "own.c").write_text(text)
    words = [*c_check.STRICT, "-fPIC", "-shared", "-o", "own.so", "own.c", "-lm"]
    compiler.run(compiler.command() or (), words, tmp_path)
    library = ctypes.CDLL(str(tmp_path / "own.so"))
    every = torch.arange(-(2**31), 2**31, 20_011).int().view(torch.float32)  # all magnitudes
    x = torch.cat([every, torch.linspace(-90, 90, 90_001), torch.linspace(-2, 2, 90_001)])
    for word in c_math.OWN:
        run, exact = getattr(library, f"all_{word}"), getattr(torch, word)

        def found(x: torch.Tensor, run: Any = run) -> torch.Tensor:
            y = torch.empty_like(x)
            run(ctypes.c_void_p(y.data_ptr()), ctypes.c_void_p(x.data_ptr()), ctypes.c_long(len(x)))
            return y

        y, wanted = found(x).double(), exact(x.double())
        assert torch.equal(y.isnan(), x.isnan())
        normal = wanted.abs() > torch.finfo(torch.float32).tiny
        assert ((y - wanted).abs() / wanted.abs())[normal].max() < 2 * 2**-23
        assert (y - wanted).abs()[~normal & ~x.isnan()].max() < 2 * torch.finfo(torch.float32).tiny
        ends = torch.tensor([float("inf"), -float("inf"), 0.0])
        assert torch.equal(found(ends), exact(ends))


@needs_compiler
def test_weights_that_are_not_finite_are_written(export: Callable[..., Exported]) -> None:
    layer = layer_of("gru")
    with torch.no_grad():
        layer.cells[0].b_r[:3] = torch.tensor([float("inf"), -float("inf"), 1e-45])
    export(layer)


# -- the file --------------------------------------------------------------------------------------

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
MORE_WARNINGS = ("-Wconversion", "-Wshadow", "-Wdouble-promotion", "-Wcast-qual", "-Wundef")


@needs_compiler
@pytest.mark.parametrize("name", COMPILERS)
def test_more_warnings_of_more_compilers(name: str, tmp_path: Path) -> None:
    both = layer_of("sru", num_layers=2, bidirectional=True)
    path = tmp_path / "a.c"
    for layer, int8 in ((layer_of(every_op()), False), (both, False), (both, True)):
        path.write_text(c_check.CFile(layer, int8).render(""))
        words = [name, *c_check.STRICT, *MORE_WARNINGS, "-c", str(path), "-o", os.devnull]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


USER = """
#include <cstdio>
#define LSTM_DECLARATIONS_ONLY
#include "a.c"
#include "a.c"

static lstm_state state;

int main() {
    float x[4][LSTM_INPUT] = {{1, 2, 3}}, y[4][LSTM_OUTPUT], z[4][LSTM_OUTPUT];
    lstm_reset(&state);
    lstm_sequence(&state, x[0], y[0], 4);
    lstm_reset(&state);
    for (int t = 0; t < 4; t++) lstm_step(&state, x[t], z[t]);
    for (int t = 0; t < 4; t++)
        for (int i = 0; i < LSTM_OUTPUT; i++) {
            if (y[t][i] != z[t][i]) return 1;
            std::printf("%.9g ", y[t][i]);
        }
    return 0;
}
"""


@needs_compiler
@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("gcc")), reason="there is no g++")
def test_a_program_in_another_language(export: Callable[..., Exported], tmp_path: Path) -> None:
    """C++ may include the declarations, twice; steps equal the sequence to the last bit."""
    layer = layer_of("lstm", num_layers=2)
    export(layer)
    (tmp_path / "main.cpp").write_text(USER)
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
    for words in (
        ["gcc", "-std=c99", *strict, "-c", "a.c"],
        ["g++", "-std=c++11", *strict, "main.cpp", "a.o", "-lm", "-o", "main"],
    ):
        subprocess.run(words, cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    x = torch.zeros(4, X)
    x[0] = torch.tensor([1.0, 2.0, 3.0])
    found = torch.tensor([float(word) for word in said.split()]).reshape(4, H)
    torch.testing.assert_close(found, layer(x)[0].detach(), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_what_the_file_says_of_itself(export: Callable[..., Exported]) -> None:
    made = export(layer_of("gru"))
    text = made.path.read_text()
    top = text[: text.index("*/")]
    for line in str(cg.load("gru")).splitlines():
        assert line.removeprefix("# ").strip() in top
    assert "Sizes: input 3, H 5, layers 1, directions 1, output 5." in top
    assert "Constants: 540 bytes" in top  # 15 * (3 + 5) + 15 numbers
    assert "Memory: 100 bytes a sequence" in top  # h, sums of three gates, r * h
    found = re.search(r"Code: ([\d,]+) bytes \(.* -O2, .*\)", top)
    assert found is None or 300 < int(found[1].replace(",", "")) < 5000
    assert "gru_step(&state, x, y);" in top
    assert max(map(len, text.splitlines())) <= 100
    assert {*re.findall(r"#include (\S+)", text)} == {"<math.h>", "<stdint.h>", '"gru.c"'}
    assert not re.search(r"\b(malloc|calloc|free|memset|memcpy)\b", text)


def test_lines_read_like_the_equations() -> None:
    text = c_check.CFile(layer_of("gru")).render("")
    for line in (
        "product(sums, w->weight_x, x, 3 * H, X);",
        "product(sums, w->weight_h, h, 2 * H, H);",
        "const float r = sigmoid(sums[i] + w->b_r[i]);",
        "const float g = tanh_float(sums[2 * H + i] + w->b_g[i]);",
        "in_U_g[i] = r * h[i];",
        "const float h_next = z * h[i] + (1.0f - z) * g;",
    ):
        assert f"    {line}\n" in text


def test_a_layer_of_both_directions_has_no_step() -> None:
    text = c_check.CFile(layer_of("gru", bidirectional=True)).render("")
    assert "gru_step" not in text
    assert "A layer of both directions has no function for a step" in text


# -- refusals --------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(1.0f - z) * g", "(1.0f + z) * g", "the exported gru is not the cell: the output"),
        ("h[i] = h_next;", "h[i] = 0.9f * h_next;", "the exported gru is not the cell"),
        ("static void cell(", "static void cell(int unused, ", "cannot be compiled: .*error"),
        ("void gru_reset(", "void gru_forget(", "cannot be compiled"),
        (
            "{\n    const weights",
            "{\n    *(volatile int *)0 = 0;\n    const weights",
            "fails in its",
        ),
    ],
)
def test_a_file_that_is_not_the_cell_is_deleted(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = c_check.CFile.render

    def spoilt(made: c_check.CFile, code: str) -> str:
        text = render(made, code)
        assert text.count(old) >= 1
        return text.replace(old, new) if code else text

    monkeypatch.setattr(c_check.CFile, "render", spoilt)
    with pytest.raises(cg.CellError, match=message) as caught:
        write(layer_of("gru"), tmp_path / "a.c", "c")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "command", lambda: None)
    with pytest.raises(
        cg.CellError, match="no C compiler found, so that an exported C file cannot"
    ):
        cg.export("gru", tmp_path / "a.c", "c")
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_code_is_read_from_objects(tmp_path: Path) -> None:
    assert c_check.code_bytes(b"MZ" + bytes(100)) is None
    assert c_check.code_bytes(b"") is None


def test_options_of_the_format(tmp_path: Path) -> None:
    with pytest.raises(cg.CellError, match="format c has no option 'int4', expected one of: int8"):
        cg.export("gru", tmp_path / "a.c", "c", int4=True)
    with pytest.raises(cg.CellError, match="format torch has no option 'int8', expected one of"):
        cg.export("gru", tmp_path / "a.py", "torch", int8=True)
    with pytest.raises(cg.CellError, match="option int8 is 'yes', expected True or False"):
        cg.export("gru", tmp_path / "a.c", "c", int8="yes")
    assert list(tmp_path.iterdir()) == []

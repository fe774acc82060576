"""The check of an exported C file: it is compiled without a warning and run, as its user will.

Sequences go through a small program around the file's own declarations, in turn by the function
for a sequence and by that for a step. Also here: what the file takes, read from the object.
"""

from __future__ import annotations

import platform
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from cellgraph.errors import CellError
from cellgraph.exporters import Checked, Design
from cellgraph.exporters.c_source import CFile
from cellgraph.exporters.check import largest_difference, loss
from cellgraph.kernels import compiler

#: What the file must be clean under.
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")
#: Seconds for one run of the program, which takes a millisecond.
TIMEOUT = 60.0


def render(design: Design) -> bytes:
    """The file; what its code takes is measured, so there must be a compiler."""
    made = _file(design)
    with _workshop() as into:
        source = into / "exported.c"
        source.write_bytes(_encoded(made.render("")))
        code = _code(source)
    return _encoded(made.render(code))


def check(design: Design, path: Path) -> Checked:
    """The largest difference of the file from the interpreter, with int8 from the interpreter on
    the weights as they are after rounding; what it takes, and what int8 loses."""
    made = _file(design)
    with _workshop() as into:
        source = into / "exported.c"
        source.write_bytes(path.read_bytes())
        (into / "main.c").write_text(_program(made), encoding="utf-8")
        code, program = _code(source), into / "program"
        objects = [str(source.with_suffix(".o")), str(into / "main.c")]
        compile_c([*STRICT, "-o", str(program), *objects, "-lm"], into)

        def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Sequence[Tensor]]:
            return _run(program, made, x, state)

        difference = largest_difference(made.layer, run)
    seen = made.interface
    notes = [
        f"code {code}, constants {seen.constants:,} bytes",
        f"memory {seen.state_bytes:,} bytes a sequence, {seen.room_bytes:,} of it room for a step",
    ]
    if made.int8:
        lost = loss(made.layer, design.layer)
        notes.append(f"int8 weights move outputs and states by up to {lost:.1e}")
    return Checked(difference, tuple(notes))


def _file(design: Design) -> CFile:
    int8 = design.options.get("int8", False)
    if not isinstance(int8, bool):
        raise CellError(f"option int8 is {int8!r}, expected True or False")
    return CFile(design.layer, int8)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # of a comment, half of a surrogate pair


@contextmanager
def _workshop() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cellsearch-c-") as folder:
        yield Path(folder)


# -- compiling ------------------------------------------------------------------------------------


def _compiler() -> tuple[str, ...]:
    found = compiler.command()
    if found is None:
        raise CellError(
            "no C compiler found, so that an exported C file cannot be checked; "
            f"{compiler.how_to_get_one()}"
        )
    return found


def compile_c(words: Sequence[str], into: Path) -> None:
    """Run the compiler on an exported file, in a folder. Raises `CellError`."""
    try:
        compiler.run(_compiler(), words, into)
    except compiler.CompilerError as error:
        raise CellError(f"the exported C file cannot be compiled: {error}") from None


def _code(source: Path) -> str:
    """The bytes of machine code of a file, in words: how many, of which compiler and processor.
    Leaves the object beside the file."""
    target = source.with_suffix(".o")
    compile_c([*STRICT, "-c", "-o", str(target), str(source)], source.parent)
    by = f"{Path(_compiler()[0]).name} -O2, {platform.machine()}"
    found = code_bytes(target.read_bytes())
    return f"not measured ({by})" if found is None else f"{found:,} bytes ({by})"


def code_bytes(content: bytes) -> int | None:
    """The machine code in an object file; None of one that is not ELF."""
    if content[:4] != b"\x7fELF":
        return None
    order = "<" if content[5] == 1 else ">"
    wide = content[4] == 2
    table = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", content, 40 if wide else 32)[0]
    size, count = struct.unpack_from(f"{order}HH", content, 58 if wide else 46)
    total = 0
    for index in range(count):
        # A section header: name, type, then flags and address, offset, size as wide as a pointer.
        _, _, flags, _, _, length = struct.unpack_from(
            f"{order}{'IIQQQQ' if wide else 'IIIIII'}", content, table + index * size
        )
        total += length if flags & 4 else 0  # SHF_EXECINSTR
    return total


# -- running --------------------------------------------------------------------------------------


def _run(
    program: Path, made: CFile, x: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, Sequence[Tensor]]:
    """All rows of x (T, B, X) from states (L·D, B, width)."""
    steps, rows = x.shape[:2]
    given = [x.transpose(0, 1), *(value.transpose(0, 1) for value in state)]
    flat = torch.cat([value.reshape(rows, -1) for value in given], dim=1)
    entering, leaving = program.with_name("in"), program.with_name("out")
    entering.write_bytes(flat.contiguous().numpy().tobytes())
    words = [str(program), str(steps), str(rows), str(entering), str(leaving)]
    try:
        done = subprocess.run(words, check=False, timeout=TIMEOUT, stdin=subprocess.DEVNULL)  # noqa: S603  # what we have just compiled
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CellError(f"the exported C file cannot be run: {error}") from None
    if done.returncode:
        raise CellError(f"the exported C file fails in its check (exit status {done.returncode})")
    found = torch.frombuffer(bytearray(leaving.read_bytes()), dtype=torch.float32)
    shapes = [(steps, made.layer.output_size), *(value.transpose(0, 1)[0].shape for value in state)]
    parts = found.reshape(rows, -1).split([prod(shape) for shape in shapes], dim=1)
    pairs = zip(parts, shapes, strict=True)
    y, *last = (part.reshape(rows, *shape).transpose(0, 1) for part, shape in pairs)
    return y, last


def _program(made: CFile) -> str:
    """A program that computes rows: arguments T, B, a file to read and one to write.

    Every odd row goes step by step, where there are steps.
    """
    seen = made.interface
    spare = "spare, " if seen.spare else ""
    step = f"{seen.step}(&state, x + t * {seen.upper}_INPUT, y + t * {seen.upper}_OUTPUT);"
    return _PROGRAM.format(
        upper=seen.upper,
        state=seen.state,
        reset=seen.reset,
        sequence=f"{seen.sequence}(&state, x, y, {spare}steps);",
        step="" if seen.layer.bidirectional else f"if (row % 2) STEPS {step} else ",
        spare=f"float *spare = room(steps * {seen.upper}_OUTPUT);" if seen.spare else "",
        reads=" ".join(f"get(state.{name}, sizeof state.{name});" for name in seen.states),
        writes=" ".join(f"put(state.{name}, sizeof state.{name});" for name in seen.states),
    )


_PROGRAM = """\
#include <stdio.h>
#include <stdlib.h>
#define {upper}_DECLARATIONS_ONLY
#include "exported.c"
#define STEPS for (int t = 0; t < steps; t++)

static FILE *in, *out;
static {state} state;

static void get(void *to, size_t n) {{ if (fread(to, 1, n, in) != n) exit(3); }}
static void put(const void *from, size_t n) {{ if (fwrite(from, 1, n, out) != n) exit(4); }}
static float *room(int n)
{{
    float *const made = malloc((size_t)n * sizeof(float));
    if (!made) exit(5);
    return made;
}}

int main(int count, char **word)
{{
    if (count != 5 || !(in = fopen(word[3], "rb")) || !(out = fopen(word[4], "wb"))) return 6;
    const int steps = atoi(word[1]), rows = atoi(word[2]);
    float *x = room(steps * {upper}_INPUT), *y = room(steps * {upper}_OUTPUT);
    {spare}
    for (int row = 0; row < rows; row++) {{
        get(x, (size_t)steps * {upper}_INPUT * sizeof(float));
        {reset}(&state);
        {reads}
        {step}{sequence}
        put(y, (size_t)steps * {upper}_OUTPUT * sizeof(float));
        {writes}
    }}
    return fclose(out) ? 7 : 0;
}}
"""

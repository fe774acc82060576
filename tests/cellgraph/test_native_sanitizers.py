"""The emitted C and the matrix kernels under AddressSanitizer and UndefinedBehaviorSanitizer: a C
program calls them on buffers of exactly the sizes that `native.py` allocates, each on its own."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cellgraph as cg
from cellgraph.kernels import compiler, native
from cellgraph.kernels.emit import Text, emit
from cellgraph.kernels.layout import layout
from cellgraph.kernels.matrix import Matrices
from cellgraph.kernels.planner import plan
from cellgraph.sizes import concrete_widths
from tests.cellgraph.native_cells import Shape, drawn, evolved
from tests.cellgraph.test_layer import EDGES

FLAGS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SHAPES = (Shape(1, 1, 1, 1, 1), Shape(3, 3, 7, 5, 2), Shape(5, 2, 17, 33, 9), Shape(2, 5, 16, 16))

#: Reads cases: the functions, the sizes, the elements of the room to go back in (0: do not), and
#: for every pointer a kind (n: NULL, r: reals, l: whole numbers, given) with its elements.
DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include "vector.h"
#include "matrix.h"
typedef void Function(const Matrix *, const long *, void *const *);
const Matrix *matrix_functions(void);
%s
static Function *const functions[][2] = {%s};

static long next(void)
{
    long value;
    if (scanf("%%ld", &value) != 1)
        exit(2);
    return value;
}

static void *buffer(void)
{
    char kind;
    if (scanf(" %%c", &kind) != 1)
        exit(2);
    if (kind == 'n')
        return NULL;
    const long count = next();
    if (kind == 'l') {
        long *const p = malloc(count * sizeof *p);
        for (long i = 0; i < count; i++)
            p[i] = next();
        return p;
    }
    real *const p = malloc(count * sizeof *p);
    for (long i = 0; i < count; i++)
        p[i] = rand() / (real)RAND_MAX - (real)0.5;
    return p;
}

int main(void)
{
    long which, done = 0;
    while (scanf("%%ld", &which) == 1) {
        const long sizes = next();
        long *const size = malloc(sizes * sizeof *size);
        for (long i = 0; i < sizes; i++)
            size[i] = next();
        const long room_back = next(), pointers = next();
        void **const at = malloc(pointers * sizeof *at);
        for (long i = 0; i < pointers; i++)
            at[i] = buffer();
        functions[which][0](matrix_functions(), size, at);
        if (room_back) {
            free(at[ROOM]);
            at[ROOM] = malloc(room_back * sizeof(real));
            functions[which][1](matrix_functions(), size, at);
        }
        for (long i = 0; i < pointers; i++)
            free(at[i]);
        free(at);
        free(size);
        done++;
    }
    printf("%%ld\n", done);
    return 0;
}
"""


class _Nothing:
    """A library of which nothing is called."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(restype=None)


def distinct(cells: Sequence[cg.CellGraph]) -> dict[str, tuple[cg.CellGraph, Text]]:
    """Cells by the name of their function; those that are the same code once."""
    return {text.forward: (cell, text) for cell in cells for text in [emit(plan(cell))]}


def words(
    which: int, kernel: native.Kernel, widths: dict[str, int], batch: native.Batch, back: bool
) -> Iterator[object]:
    """One case for the driver. Every third gradient is not asked for."""
    sizes = kernel.sizes(batch, widths, back)
    cores = kernel.plan.core
    rows = batch.entries or batch.total
    params = {p.name: p.shape(widths) for p in cores.cell.params}
    counts: dict[str, int] = {"tape": sizes.tape, "room": sizes.room}
    counts["y"] = counts["dy"] = batch.total * widths[kernel.output_width]
    for i, width in enumerate(kernel.row_widths):
        counts[f"x{i}"] = counts[f"dx{i}"] = rows * widths[width]
    for i, width in enumerate(kernel.state_widths):
        for kind in ("first", "last", "dfirst", "dlast"):
            counts[f"{kind}{i}"] = batch.rows * widths[width]
        counts[f"history{i}"] = sizes.histories[i]
    for i, name in enumerate(kernel.matrix_names):
        counts[f"matrix{i}"] = counts[f"dmatrix{i}"] = params[name][0] * params[name][1]
    for i, leaf in enumerate(cores.statics):
        scalar = cores.width[leaf] is None
        counts[f"static{i}"] = counts[f"dstatic{i}"] = 1 if scalar else widths[cores.width[leaf]]
    yield from (which, len(sizes.array), *sizes.array, sizes.room_back if back else 0)
    names = kernel.layout.backward if back else kernel.layout.forward
    yield len(names)
    for index, name in enumerate(names):
        given = {"starts": batch.starts, "tokens": batch.tokens}.get(name)
        if given is not None:
            yield from ("l", len(given), *given.tolist())
        elif name in ("starts", "tokens") or (name[0] == "d" and name != "dy" and index % 3 == 0):
            yield "n"
        else:
            yield from ("r", counts[name])


def batches(shape: Shape, rng: random.Random) -> Iterator[native.Batch]:
    """Plain rows, sequences of different length, and tokens of a table."""
    steps, rows = shape.steps, shape.rows
    yield native.Batch(steps, rows)
    lengths = sorted((rng.randint(1, steps) for _ in range(rows - 1)), reverse=True)
    going = [1 + sum(t < length for length in lengths) for t in range(steps)]
    starts = torch.tensor([0, *going]).cumsum(0)
    yield native.Batch(steps, rows, starts)
    entries = rng.randint(1, 4)
    tokens = torch.tensor([rng.randrange(entries) for _ in range(steps * rows)])
    yield native.Batch(steps, rows, None, tokens, entries)


def run(
    cells: Sequence[cg.CellGraph], dtype: torch.dtype, folder: Path, patch: pytest.MonkeyPatch
) -> int:
    """How many cases have run without a report. Fails with the report otherwise."""
    Matrices(double=dtype == torch.float64)
    patch.setattr(compiler, "load", lambda sources, double: [_Nothing() for _ in sources])
    texts = distinct(cells)
    rng = random.Random(0)
    lines = []
    for which, (cell, _) in enumerate(texts.values()):
        kernel = native.Kernel(cell, dtype)
        for shape in SHAPES:
            declared = dict.fromkeys(cell.widths[1:], shape.projected)
            widths = concrete_widths(cell, shape.inputs, shape.hidden, declared)
            for batch in batches(shape, rng):
                for back in (True, False):
                    if back or batch.starts is None or kernel.plan.columns:
                        case = words(which, kernel, widths, batch, back)
                        lines.append(" ".join(map(str, case)))
    prototypes = "".join(f"Function {t.forward}, {t.backward};\n" for _, t in texts.values())
    table = ", ".join(f"{{{t.forward}, {t.backward}}}" for _, t in texts.values())
    room = layout(plan(cells[0])).forward.index("room")
    (folder / "driver.c").write_text(DRIVER % (prototypes, table))
    (folder / "cells.c").write_text("\n".join(t.source() for _, t in texts.values()))
    found = compiler.command()
    assert found is not None
    matrix = compiler.HEADERS / "matrix.c"
    command = [*found, *FLAGS, *compiler.NATIVE[0], *compiler.FLAGS, f"-DROOM={room}"]
    command = [word for word in command if word not in ("-shared", "-nostartfiles", "-fPIC")]
    command += ["-DREAL_DOUBLE"] if dtype == torch.float64 else []
    command += [f"-I{compiler.HEADERS}", "driver.c", "cells.c", str(matrix), "-lm", "-o", "driver"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[:2000]
    cases = "\n".join(lines)
    done = subprocess.run(
        ["./driver"], cwd=folder, input=cases, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[:4000]
    assert int(done.stdout) == len(lines)
    return len(lines)


@pytest.fixture(scope="module", autouse=True)
def _sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the compiler has none, or cannot link them."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    command = [*(compiler.command() or ("none",)), *FLAGS, "probe.c", "-o", "probe"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no compiler with sanitizers: {error}")


def test_zoo_and_mutants_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth cell of the zoo: which they are changes with every cell that is added."""
    cells = [*(cg.load(name) for name in cg.zoo.names()[::4]), *evolved(4, seed=5)]
    assert run(cells, torch.float32, tmp_path, monkeypatch) > 500


def test_edges_and_drawn_cells_in_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [*(cg.parse(text) for text in EDGES.values()), *drawn(12)[-6:], cg.load("lstm")]
    assert run(cells, torch.float64, tmp_path, monkeypatch) > 500


def test_a_write_behind_a_buffer_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver would notice: the same with one element less for every history."""
    found = native.Kernel.sizes

    def smaller(self: native.Kernel, *args: Any) -> Any:
        sizes = found(self, *args)
        histories = tuple(size - 1 for size in sizes.histories)
        return sizes.__class__(**{**vars(sizes), "histories": histories})

    monkeypatch.setattr(native.Kernel, "sizes", smaller)
    with pytest.raises(AssertionError, match=r"(?s)AddressSanitizer: .*-byte region"):
        run([cg.load("tanh_rnn")], torch.float32, tmp_path, monkeypatch)

"""A layer as one C99 file for inference: the step of its cell, what runs it, and its weights.

The lines that compute come from `c_cell.py`, what a caller sees from `c_interface.py`, the numbers
from `c_weights.py`. The file needs libm alone and keeps nothing: all that changes lies in a struct
of the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from cellgraph.exporters import c_weights
from cellgraph.exporters.c_cell import OURS, CellText
from cellgraph.exporters.c_interface import Interface
from cellgraph.exporters.c_text import Identifiers, number, numbers, plain, table
from cellgraph.sizes import concrete_widths

if TYPE_CHECKING:
    from cellgraph.layer import CellLayer
    from cellgraph.parameters import Cell


class CFile:
    """The file of a layer. `layer` must be as `check.concrete` gives it; the `layer` of the file
    has the weights as they are in it.

    `int8`: matrices are int8 with a scale for every row, all else is float. Raises `CellError` for
    weights that int8 cannot hold.
    """

    def __init__(self, layer: CellLayer, int8: bool = False) -> None:
        self.cell, self.int8 = layer.cell, int8
        prefix = plain(self.cell.name.lower())
        calls = (f"{prefix}_{name}" for name in ("state", "reset", "step", "sequence"))
        self.names = Identifiers([*OURS, *calls])
        self.text = CellText(self.cell, self.names, int8)
        self.cells = list(cast("Iterable[Cell]", layer.cells))
        self.projected = any(cell.input_projection is not None for cell in self.cells)
        self.body = self.text.body(self.projected)
        states = list(zip(self.cell.states, layer.state_sizes, strict=True))
        entering = max(cell.input_size for cell in self.cells)
        self.size = concrete_widths(self.cell, entering, layer.hidden_size, layer.widths)
        self.emitted = layer.output_size // layer.directions
        if int8:
            layer = c_weights.dequantised(layer, self._matrices())
            self.cells = list(cast("Iterable[Cell]", layer.cells))
        self.layer = layer
        self.weights, constants = self._weights()
        members = {self.text.states[state.name]: size for state, size in states}
        self.interface = Interface(layer, prefix, members, self._room(), constants, int8)

    def render(self, code: str) -> str:
        """The file as text. `code`: what its code takes, in words."""
        lines = [
            *self.interface.about(code),
            "",
            *self.interface.declarations(),
            "",
            f"#ifndef {self.interface.upper}_DECLARATIONS_ONLY",
            "",
            "#include <math.h>",
            *(["#include <stdint.h>"] if self.int8 or self.text.functions.bits else []),
            "",
            *self._types(),
            *self.text.functions.definitions(),
            *self._step(),
            "",
            *self._reset(),
            "",
            *(self._both_directions() if self.layer.bidirectional else self._one_direction()),
            "",
            *([*self.weights, ""] if self._weighted else []),
            "#endif",
        ]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def _matrices(self) -> tuple[str, ...]:
        """The matrices that the file multiplies by."""
        named = tuple(m for matrices in self.text.stacks for m in matrices)
        return (*named, "input_projection") if self.projected else named

    def _room(self) -> dict[str, int]:
        """What a step works in: arrays, with their sizes."""
        text, layer = self.text, self.layer
        room = {"sums": sum(self.size[width] for width in text.sums)}
        room |= {name: self.size[width] for name, width in text.rooms()}
        if self.projected:
            room["entered"] = self.size[str(self.cell.raw_x)]
        if layer.num_layers > 1 and not layer.bidirectional:
            room["between"] = 2 * self.emitted
        return {name: size for name, size in room.items() if size}

    # -- functions ------------------------------------------------------------------------------

    @property
    def _weighted(self) -> bool:
        """Does any function read the table of layers?"""
        return self.layer.bidirectional or any("w->" in line for line in self.body)

    def _types(self) -> list[str]:
        text = self.text
        fixed = [f"{n} = {self.size[width]}" for width, n in text.width.items() if width != "X"]
        table_ = [
            "/* What one layer in one direction has. Matrices lie transposed, column by column. */",
            "typedef struct {",
            "    int inputs;  /* elements of x */",
            *(f"    {line}" for line in text.members(self.projected)),
            "} weights;",
            "",
            f"static const weights layers[{len(self.cells)}];  /* at the end of the file */",
            "",
        ]
        return [f"enum {{ {', '.join(fixed)} }};", "", *(table_ if self._weighted else [])]

    def _step(self) -> list[str]:
        inside = "\n".join(self.body)
        product = _PRODUCT_INT8 if self.int8 else _PRODUCT
        weights = ["const weights *const w = &layers[k];"] if "w->" in inside else []
        unread = {
            "state": "state->" in inside,
            "k": bool(weights) or "[k]" in inside,
            "x": self.projected or "x" in self.text.used,
        }
        return [
            *([*_CLEAR.splitlines(), "", *product.splitlines(), ""] if "clear(" in inside else []),
            "/* One time step of the equations, for one layer in one direction. */",
            f"static void cell({self.interface.state} *state, int k, const float *x, float *y)",
            "{",
            *(f"    {line}" for line in [*weights, *self.body]),
            *(f"    (void){name};" for name, read in unread.items() if not read),
            "}",
        ]

    def _reset(self) -> list[str]:
        lines = [f"void {self.interface.reset}({self.interface.state} *state)", "{"]
        for name, size in self.interface.states.items():
            lines += [
                f"    for (int k = 0; k < {self.interface.count}; k++)",
                f"        for (int i = 0; i < {size}; i++)",
                f"            state->{name}[k][i] = 0.0f;",
            ]
        return [*lines, "}"]

    def _one_direction(self) -> list[str]:
        upper = self.interface.upper
        body = ["    cell(state, 0, x, y);"]
        if self.layer.num_layers > 1:
            body = [
                f"    for (int k = 0; k < {upper}_LAYERS; k++) {{",
                f"        float *const between = state->work.between + k % 2 * {self.emitted};",
                f"        float *const to = k + 1 < {upper}_LAYERS ? between : y;",
                "",
                "        cell(state, k, x, to);",
                "        x = to;",
                "    }",
            ]
        return [
            self.interface.step_signature(),
            "{",
            *body,
            "}",
            "",
            self.interface.sequence_signature(),
            "{",
            f"    for (int t = 0; t < steps; t++, x += {upper}_INPUT, y += {upper}_OUTPUT)",
            f"        {self.interface.step}(state, x, y);",
            "}",
        ]

    def _both_directions(self) -> list[str]:
        """Forwards into the first half of every output, backwards into the second."""
        upper = self.interface.upper
        first, second, to = "0", "1", "y"
        if self.layer.num_layers > 1:
            first, second, to = "2 * layer", "2 * layer + 1", "to"
        body = [
            f"const int in = layers[{first}].inputs, out = {upper}_OUTPUT;",
            "",
            "for (int t = 0; t < steps; t++)",
            f"    cell(state, {first}, x + (long)t * in, {to} + (long)t * out);",
            "for (int t = steps - 1; t >= 0; t--)",
            f"    cell(state, {second}, x + (long)t * in, {to} + (long)t * out + {self.emitted});",
        ]
        if self.layer.num_layers > 1:
            body = [
                f"for (int layer = 0; layer < {upper}_LAYERS; layer++) {{",
                f"    float *const to = ({upper}_LAYERS - layer) % 2 ? y : spare;  /* y at last */",
                *(f"    {line}" for line in body),
                "    x = to;",
                "}",
            ]
        return [self.interface.sequence_signature(), "{", *(f"    {b}" for b in body), "}"]

    # -- weights --------------------------------------------------------------------------------

    def _weights(self) -> tuple[list[str], int]:
        """The arrays and the table of all layers, and the bytes of the arrays."""
        text, lines, rows, total = self.text, list[str](), list[str](), 0
        statics = {node: text.statics[leaf] for leaf, node in text.step.statics.items()}
        for index, cell in enumerate(self.cells):
            arrays, scalars = c_weights.arrays(
                cell, text.stacks, statics, text.projection, self.int8
            )
            row = {"inputs": str(cell.input_size)}
            row |= {member: number(value) for member, value in scalars.items()}
            for array in arrays:
                whole = array.values.dtype == "int8"
                items = list(array.values.astype(str)) if whole else numbers(array.values)
                name = row[array.member] = self.names.give(f"{array.member}_{index}")
                kind = "int8_t" if whole else "float"
                lines += table(f"static const {kind} {name}[{len(items)}] =", items)
                total += array.values.nbytes
            rows += ["    {", *(f"        .{m} = {v}," for m, v in row.items()), "    },"]
        opening = f"static const weights layers[{len(self.cells)}] = {{"
        return [*lines, "", opening, *rows, "};"], total


_CLEAR = """\
static void clear(float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = 0.0f;
}
"""

# Four columns at a time: every compiler makes vectors of this loop without leave to reorder sums,
# and where there are none, a sum is loaded and stored once for four multiplications.
_PRODUCT = """\
/* y[rows] += matrix @ x[cols], four columns at a time. */
static void product(float *restrict y, const float *restrict matrix, const float *restrict x,
                    int rows, int cols)
{
    int n = 0;

    for (; n + 4 <= cols; n += 4, matrix += 4 * rows) {
        const float x0 = x[n], x1 = x[n + 1], x2 = x[n + 2], x3 = x[n + 3];
        const float *const m0 = matrix, *const m1 = m0 + rows;
        const float *const m2 = m1 + rows, *const m3 = m2 + rows;

        for (int i = 0; i < rows; i++)
            y[i] += m0[i] * x0 + m1[i] * x1 + m2[i] * x2 + m3[i] * x3;
    }
    for (; n < cols; n++, matrix += rows)
        for (int i = 0; i < rows; i++)
            y[i] += matrix[i] * x[n];
}
"""

_PRODUCT_INT8 = """\
/* y[rows] += scale[rows] * (matrix @ x[cols]), four columns at a time. */
static void product(float *restrict y, const int8_t *restrict matrix, const float *restrict scale,
                    const float *restrict x, int rows, int cols)
{
    int n = 0;

    for (; n + 4 <= cols; n += 4, matrix += 4 * rows) {
        const float x0 = x[n], x1 = x[n + 1], x2 = x[n + 2], x3 = x[n + 3];
        const int8_t *const m0 = matrix, *const m1 = m0 + rows;
        const int8_t *const m2 = m1 + rows, *const m3 = m2 + rows;

        for (int i = 0; i < rows; i++)
            y[i] += scale[i] * (m0[i] * x0 + m1[i] * x1 + m2[i] * x2 + m3[i] * x3);
    }
    for (; n < cols; n++, matrix += rows)
        for (int i = 0; i < rows; i++)
            y[i] += scale[i] * (matrix[i] * x[n]);
}
"""

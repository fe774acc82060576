"""What a caller sees of an exported C file: its top comment, sizes, struct and functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from cellgraph.exporters.c_text import COLUMNS, comment

if TYPE_CHECKING:
    from cellgraph.layer import CellLayer


@dataclass(frozen=True)
class Interface:
    """The interface of a layer's file.

    `prefix` begins all names. `states` and `room` are the members of the struct, with their sizes:
    the states of one layer in one direction, and what a step works in. `constants` counts bytes.
    """

    layer: CellLayer
    prefix: str
    states: Mapping[str, int]
    room: Mapping[str, int]
    constants: int
    int8: bool

    @property
    def upper(self) -> str:
        """The beginning of the names of macros."""
        return self.prefix.upper()

    @property
    def state(self) -> str:
        """The type of what changes."""
        return f"{self.prefix}_state"

    @property
    def reset(self) -> str:
        """The function that makes all states zero."""
        return f"{self.prefix}_reset"

    @property
    def step(self) -> str:
        """The function for one time step, which a layer of both directions does not have."""
        return f"{self.prefix}_step"

    @property
    def sequence(self) -> str:
        """The function for many time steps."""
        return f"{self.prefix}_sequence"

    @property
    def spare(self) -> bool:
        """Does the sequence need room for the outputs of a layer below?"""
        return self.layer.bidirectional and self.layer.num_layers > 1

    @property
    def count(self) -> str:
        """How many layers and directions there are, in C."""
        directions = f" * {self.upper}_DIRECTIONS" if self.layer.bidirectional else ""
        return f"{self.upper}_LAYERS{directions}"

    @property
    def room_bytes(self) -> int:
        """Of what a step works in."""
        return 4 * sum(self.room.values())

    @property
    def state_bytes(self) -> int:
        """Of all that changes."""
        return self.room_bytes + 4 * len(self.layer.cells) * sum(self.states.values())

    def step_signature(self) -> str:
        """Of the function for a step."""
        return f"void {self.step}({self.state} *state, const float *x, float *y)"

    def sequence_signature(self) -> str:
        """Of the function for a sequence."""
        opening = f"void {self.sequence}("
        first = f"{self.state} *state, const float *x,"
        rest = f"float *y,{' float *spare,' if self.spare else ''} int steps)"
        line = f"{opening}{first} {rest}"
        return line if len(line) < COLUMNS else f"{opening}{first}\n{' ' * len(opening)}{rest}"

    def about(self, code: str) -> list[str]:
        """The comment at the top. `code`: what the code takes, in words."""
        layer, cell = self.layer, self.layer.cell
        equations = [line for line in str(cell).splitlines() if not line.startswith("#")]
        sizes = {"input": layer.input_size, "H": layer.hidden_size, **layer.widths}
        sizes |= {"layers": layer.num_layers, "directions": layer.directions}
        sizes |= {"output": layer.output_size}
        kind = "int8, with a float scale for every row" if self.int8 else "float"
        both = (
            "A layer of both directions has no function for a step: it must know the end first."
            if layer.bidirectional
            else "Both functions give the same, and a sequence may be cut anywhere."
        )
        lines = [
            f"{cell.name}: a recurrent layer for inference, in C99.",
            "",
            *cell.doc.splitlines(),
            *([""] if cell.doc else []),
            *(f"    {line}" for line in equations),
            "",
            *wrap(f"Sizes: {', '.join(f'{n} {size}' for n, size in sizes.items())}.", COLUMNS - 4),
            f"Code: {code}.",
            f"Constants: {self.constants:,} bytes; matrices are {kind}.",
            f"Memory: {self.state_bytes:,} bytes a sequence, the caller's ({self.state}); "
            f"{self.room_bytes:,} of them are room",
            "for one step. Nothing is allocated, and the stack holds a few numbers.",
            "",
            "Compile this file with the program, best with -O3, and link libm. Where it is called:",
            "",
            f"    #define {self.upper}_DECLARATIONS_ONLY",
            f'    #include "{self.prefix}.c"',
            "",
            *self._calls(),
            "",
            both,
        ]
        return comment(lines)

    def _calls(self) -> list[str]:
        """How the functions are called, each with what it does."""
        calls = {
            f"static {self.state} state;": "one for each sequence that is under way",
            f"{self.reset}(&state);": "before its first step",
        }
        if not self.layer.bidirectional:
            calls[f"{self.step}(&state, x, y);"] = "one time step"
        spare = ", spare" if self.spare else ""
        what = "the whole sequence" if self.layer.bidirectional else "many time steps"
        calls[f"{self.sequence}(&state, x, y{spare}, steps);"] = what
        pad = max(map(len, calls))
        return [f"    {call:<{pad}}  {what}" for call, what in calls.items()]

    def declarations(self) -> list[str]:
        """What C and C++ may include."""
        layer, upper = self.layer, self.upper
        room = [f"    float {name}[{size}];" for name, size in self.room.items()]
        step = [
            f"/* One time step: x[{upper}_INPUT] to y[{upper}_OUTPUT], which must not overlap. */",
            f"{self.step_signature()};",
            "",
        ]
        spare = [f"   spare[steps][{upper}_OUTPUT] is room."] if self.spare else []
        return [
            f"#ifndef {upper}_DECLARED",
            f"#define {upper}_DECLARED",
            "",
            f"#define {upper}_INPUT {layer.input_size}",
            f"#define {upper}_OUTPUT {layer.output_size}",
            f"#define {upper}_LAYERS {layer.num_layers}",
            *([f"#define {upper}_DIRECTIONS 2"] if layer.bidirectional else []),
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            "/* All that changes. States may be read and set between calls. */",
            "typedef struct {",
            *(f"    float {name}[{self.count}][{size}];" for name, size in self.states.items()),
            *(["    struct {", *(f"    {line}" for line in room), "    } work;"] if room else []),
            f"}} {self.state};",
            "",
            "/* All states zero. */",
            f"void {self.reset}({self.state} *state);",
            "",
            *([] if layer.bidirectional else step),
            f"/* Many time steps: x[steps][{upper}_INPUT] to y[steps][{upper}_OUTPUT].",
            *spare,
            "   None of them may overlap. */",
            f"{self.sequence_signature()};",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            "#endif",
        ]

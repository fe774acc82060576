"""A cell as one Python module that needs nothing but torch: its text, its parameters, its layers.

The lines that compute come from `recurrence.py`; the module around them is spelled out here. The
generated class takes our layer's `state_dict`, starts like it and treats states like it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap

import torch

from cellgraph.errors import CellError
from cellgraph.exporters.recurrence import recurrence
from cellgraph.exporters.source import COLUMNS, Names, attribute, camel, comment, wrapped
from cellgraph.exporters.torch_model import Ends, model
from cellgraph.graph import CellGraph, Init, Param, format_number
from cellgraph.sizes import output_width

# Constructor arguments in the order of torch.nn.LSTM, with their types and defaults.
_ARGUMENTS: tuple[tuple[str, str, object], ...] = (
    ("input_size", "int", None),
    ("hidden_size", "int", None),
    ("num_layers", "int", 1),
    ("batch_first", "bool", False),
    ("dropout", "float", 0.0),
    ("bidirectional", "bool", False),
)


def render(
    cell: CellGraph,
    sizes: Mapping[str, int | float | bool] | None = None,
    widths: Mapping[str, int] | None = None,
    ends: Ends | None = None,
) -> str:
    """The module as text. `sizes` and `widths` become defaults of the constructor; with `ends`, the
    model of those sizes follows.

    `cell` must be as `parse` gives it: its names go into the source code. Raises `CellError` for a
    parameter with the name of an attribute that the generated module needs itself.
    """
    return _Module(cell, dict(sizes or {}), dict(widths or {}), ends).text()


class _Module:
    def __init__(
        self,
        cell: CellGraph,
        sizes: dict[str, int | float | bool],
        widths: dict[str, int],
        ends: Ends | None,
    ) -> None:
        self.cell, self.sizes, self.ends = cell, sizes, ends
        module = torch.nn.Module()
        ours = ("reset_parameters", "input_projection")
        for param in cell.params:
            if hasattr(module, param.name) or param.name in ours:
                raise CellError(
                    f"parameter {param.name} of cell {cell.name} has the name of an attribute of "
                    "the generated module, expected another name"
                )
        self.layers = camel(cell.name)
        self.one = f"{self.layers}Cell"
        self.states = [state.name for state in cell.states]
        names = Names(["self", "torch", "nn", "layer", "entering", *(n for n, _, _ in _ARGUMENTS)])
        local = {width: names.give(width) for width in cell.widths[1:]}
        self.widths = {local[width]: widths.get(width) for width in local}
        self.size = {"H": "hidden_size", "X": "input_size"} | local
        if cell.raw_x:
            self.size["X"] = self.size[cell.raw_x]
        self.emitted = self.size[output_width(cell)]

    def text(self) -> str:
        lines = [*self._top(), "", "", *self._one(), "", "", *self._layers()]
        if self.ends is not None:
            hidden, layers = (int(self.sizes[name]) for name in ("hidden_size", "num_layers"))
            lines += ["", "", *model(self.layers, self.ends, hidden, layers)]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def _top(self) -> list[str]:
        doc = self.cell.doc.splitlines()
        equations = [line for line in str(self.cell).splitlines() if not line.startswith("#")]
        return [
            # The comments below hold text of others. They start on the fifth line, because Python
            # takes a comment on the first two for a declaration of the encoding.
            f'"""{self.layers}: a recurrent layer with the shapes and states of torch.nn.LSTM.',
            "",
            "Exported from the equations below; needs nothing but torch.",
            '"""',
            "",
            *(comment(line) for line in doc),
            *(["#"] if doc else []),
            *(comment(f"    {line}") for line in equations),
            "",
            "from __future__ import annotations",
            "",
            *(["import json", ""] if self.ends is not None else []),
            "import torch",
            "from torch import nn",
        ]

    # -- one layer in one direction -------------------------------------------------------------

    def _one(self) -> list[str]:
        sizes = [f"{name}: int" for name in ("input_size", "hidden_size", *self.widths)]
        signature = wrapped("def __init__(", ["self", *sizes], ") -> None:")
        return [
            f"class {self.one}(nn.Module):",
            '    """One layer in one direction. T: time steps, B: batch rows."""',
            "",
            *(f"    {line}" for line in signature),
            "        super().__init__()",
            *(f"        {self._parameter(param)}" for param in self.cell.params),
            *(self._projection() if self.cell.raw_x else []),
            "",
            "    @torch.no_grad()",
            "    def reset_parameters(self, bound: float) -> None:",
            '        """All parameters from U[-bound, bound], then those that start otherwise."""',
            "        for value in self.parameters():",
            "            value.uniform_(-bound, bound)",
            *(f"        {_start(p.name, p.init)}" for p in self.cell.params if p.init),
            "",
            *self._one_forward(),
        ]

    def _parameter(self, param: Param) -> str:
        shape = ", ".join(param.shape(self.size)) or "()"  # type: ignore[arg-type]
        value = f"nn.Parameter(torch.empty({shape}))"
        target = attribute(param.name)
        if target.startswith("self."):
            return f"{target} = {value}"
        return f'self.register_parameter("{param.name}", {value})'

    def _projection(self) -> list[str]:
        width = self.size["X"]
        return [
            f"        # x stands outside the matrices, where it needs {width} units.",
            "        self.input_projection: nn.Parameter | None = None",
            f"        if input_size != {width}:",
            f"            self.input_projection = nn.Parameter(torch.empty({width}, input_size))",
        ]

    def _one_forward(self) -> list[str]:
        body = recurrence(self.cell)
        arguments = ["self", *(f"{name}: torch.Tensor" for name in ("x", *body.arguments))]
        given = ", ".join(
            f"{name} (B, {self.size[state.width]})"
            for name, state in zip(body.arguments, self.cell.states, strict=True)
        )
        lines = [
            *wrapped("def forward(", arguments, ") -> tuple[torch.Tensor, ...]:"),
            *_docstring(
                f"x (T, B, input_size), {given}; returns the outputs (T, B, {self.emitted}) and "
                f"the last {_plural('state', self.states)}."
            ),
        ]
        if self.cell.raw_x:
            lines += [
                "    if self.input_projection is not None:",
                "        x = nn.functional.linear(x, self.input_projection)",
            ]
        if body.before:
            lines.append("    # What needs no state, for all time steps at once.")
        lines += [f"    {line}" for line in body.before]
        if body.collects:
            lines.append("    outputs = []")
        lines += [f"    {line}" for line in body.loop]
        lines.append(f"    return {', '.join([body.result, *body.arguments])}")
        return [f"    {line}" for line in lines]

    # -- the stack of layers --------------------------------------------------------------------

    def _layers(self) -> list[str]:
        arguments = [f"{name}: {kind}{self._default(name, d)}" for name, kind, d in _ARGUMENTS]
        for name, size in self.widths.items():
            # A size without a default can stand behind others by name only.
            arguments += ["*"] if name == next(iter(self.widths)) else []
            arguments.append(f"{name}: int" if size is None else f"{name}: int = {size}")
        sizes = [self.size[state.width] for state in self.cell.states]
        one = f"{self.one}({', '.join(['entering', 'hidden_size', *self.widths])})"
        below = f"self.directions * {self.emitted}"
        signature = wrapped("def __init__(", ["self", *arguments], ") -> None:")
        shape = f"        self.state_sizes = ({', '.join(sizes)},)"
        if len(sizes) > 1:
            shape = f"        self.state_sizes = ({', '.join(sizes)})"
        return [
            f"class {self.layers}(nn.Module):",
            '    """Layers of the cell, one over the other; the arguments are those of nn.LSTM."""',
            "",
            *(f"    {line}" for line in signature),
            "        super().__init__()",
            "        self.input_size, self.hidden_size = input_size, hidden_size",
            "        self.num_layers, self.batch_first = num_layers, batch_first",
            "        self.dropout, self.directions = dropout, 2 if bidirectional else 1",
            *([shape] if len(sizes) > 1 or sizes != ["hidden_size"] else []),
            "        self.cells = nn.ModuleList()",
            "        for layer in range(num_layers):",
            f"            entering = input_size if layer == 0 else {below}",
            "            for _ in range(self.directions):",
            f"                self.cells.append({one})",
            "        self.reset_parameters()",
            "",
            "    def reset_parameters(self, scale: float = 1.0) -> None:",
            '        """Start afresh, with noise up to scale / sqrt(hidden_size)."""',
            "        for cell in self.cells:",
            "            cell.reset_parameters(scale / self.hidden_size**0.5)",
            "",
            *(f"    {line}" for line in self._forward(sizes)),
        ]

    def _forward(self, sizes: list[str]) -> list[str]:
        """The forward of the stack, for one state or for several of these sizes."""
        single = len(sizes) == 1
        shape = f"(num_layers * directions, B, {sizes[0] if len(set(sizes)) == 1 else 'size'})"
        names = ", ".join(self.states)
        states = f"{names} {shape}" if single else f"({names}), each {shape}"
        if len(set(sizes)) > 1:
            states += f" with the sizes {', '.join(sizes)}"
        signature, body = (_SIGNATURE_ONE, _BODY_ONE) if single else (_SIGNATURE_MANY, _BODY_MANY)
        size = "self.hidden_size" if sizes == ["hidden_size"] else "self.state_sizes[0]"
        return [
            *signature.splitlines(),
            *_docstring(
                "Run a sequence.",
                "x: (T, B, input_size), or (B, T, input_size) with batch_first, or (T, input_size) "
                "without a batch; a PackedSequence is not taken. "
                f"state: None for zeros, or {states}; no B where x has none. Returns the outputs, "
                f"directions * {self.emitted} wide, and the last {_plural('state', sizes)}.",
            ),
            *_ENTER.splitlines(),
            *body.replace("SIZE", size).splitlines(),
        ]

    def _default(self, name: str, default: object) -> str:
        value = self.sizes.get(name, default)
        return "" if value is None else f" = {value!r}"


def _start(name: str, init: Init) -> str:
    value = format_number(init.value)
    if init.kind == "constant":
        return f"{attribute(name)}.fill_({value})"
    return f"{attribute(name)}.diagonal().add_({value})"


def _plural(word: str, things: Sequence[object]) -> str:
    return word if len(things) == 1 else f"{word}s"


def _docstring(*paragraphs: str) -> list[str]:
    """A docstring of a method, without the method's own indentation."""
    lines: list[str] = []
    for text in paragraphs:
        whole = re.sub(r"\([^()]*\)", lambda m: m[0].replace(" ", "\0"), text)  # no breaks inside
        folded = wrap(whole, COLUMNS - 12, break_long_words=False, break_on_hyphens=False)
        lines += ["", *(line.replace("\0", " ") for line in folded)]
    lines = lines[1:]
    if len(lines) == 1:
        return [f'    """{lines[0]}"""']
    return [f'    """{lines[0]}', *(f"    {line}" for line in lines[1:]), '    """']


_SIGNATURE_ONE = """\
def forward(
    self, x: torch.Tensor, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
"""

_SIGNATURE_MANY = """\
def forward(
    self, x: torch.Tensor, state: tuple[torch.Tensor, ...] | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
"""

_ENTER = """\
    batched = x.dim() == 3
    if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (T, B, {self.input_size})")
    if not batched:
        x = x.unsqueeze(1)
    elif self.batch_first:
        x = x.transpose(0, 1)
    if x.shape[0] == 0:
        raise ValueError("x has no time steps, expected at least one")
"""

_BODY_ONE = """\
    shape = (len(self.cells), x.shape[1], SIZE)
    if state is None:
        state = x.new_zeros(shape)
    elif not batched:
        state = state.unsqueeze(1)
    if state.shape != shape:
        raise ValueError(f"the state has shape {tuple(state.shape)}, expected {shape}")

    lasts = []
    for layer in range(self.num_layers):
        if layer > 0:
            x = nn.functional.dropout(x, self.dropout, self.training)
        ys = []
        for direction in range(self.directions):
            index = layer * self.directions + direction
            y, last = self.cells[index](x.flip(0) if direction else x, state[index])
            ys.append(y.flip(0) if direction else y)
            lasts.append(last)
        x = torch.cat(ys, dim=-1)
    state = torch.stack(lasts)
    if not batched:
        return x.squeeze(1), state.squeeze(1)
    return x.transpose(0, 1) if self.batch_first else x, state
"""

_BODY_MANY = """\
    shapes = [(len(self.cells), x.shape[1], size) for size in self.state_sizes]
    if state is None:
        state = tuple(x.new_zeros(shape) for shape in shapes)
    elif not batched:
        state = tuple(value.unsqueeze(1) for value in state)
    if [tuple(value.shape) for value in state] != shapes:
        found = [tuple(value.shape) for value in state]
        raise ValueError(f"the states have shapes {found}, expected {shapes}")

    lasts = []
    for layer in range(self.num_layers):
        if layer > 0:
            x = nn.functional.dropout(x, self.dropout, self.training)
        ys = []
        for direction in range(self.directions):
            index = layer * self.directions + direction
            entering = x.flip(0) if direction else x
            y, *last = self.cells[index](entering, *(value[index] for value in state))
            ys.append(y.flip(0) if direction else y)
            lasts.append(last)
        x = torch.cat(ys, dim=-1)
    state = tuple(torch.stack(values) for values in zip(*lasts, strict=True))
    if not batched:
        return x.squeeze(1), tuple(value.squeeze(1) for value in state)
    return x.transpose(0, 1) if self.batch_first else x, state
"""

"""A cell as one Python module that needs nothing but Keras 3: the cell of a `keras.layers.RNN`.

What a Keras layer does around a step (whole sequences, masks, both directions, saving) is the work
of `keras.layers.RNN`, so the module spells out the step alone, in the order of the cell's text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from cellgraph.errors import CellError
from cellgraph.exporters.source import Names, Number, Source, camel, comment, wrapped
from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Node,
    Param,
    depends_on,
    format_number,
    topological,
    use_counts,
)
from cellgraph.ops import OPS
from cellgraph.printing import named
from cellgraph.sizes import output_width

#: A longer expression gets a line of its own.
LONGEST = 80


class _Keras:
    """Stands for the torch module in the `eager` column: the same functions in keras.ops."""

    nn: _Keras
    functional: _Keras

    def __getattr__(self, name: str) -> Any:
        if name in ("nn", "functional"):
            return self
        if name == "gelu":  # Keras takes the approximation by tanh unless it is told
            return lambda a: Source("ops.gelu")(a, approximate=False)
        return Source(f"ops.{name}")


def render(
    cell: CellGraph, sizes: Mapping[str, int | float | bool], widths: Mapping[str, int]
) -> str:
    """The module as text; `sizes` and `widths` become defaults of the constructor.

    `cell` must be as `parse` gives it: its names go into the source code. Raises `CellError` for
    several layers or directions, which Keras has classes for.
    """
    if sizes.get("num_layers", 1) != 1 or sizes.get("bidirectional", False):
        raise CellError(
            "format keras writes one layer in one direction, expected num_layers 1 and not "
            "bidirectional: keras.layers.Bidirectional and several layers do the rest"
        )
    return _Module(cell, sizes.get("hidden_size"), widths).text()


def arguments(cell: CellGraph) -> dict[str, str]:
    """What the constructor calls the widths beside H."""
    names = Names(["self", "units", "options", "keras", "ops", "input_shape", "entering"])
    return {width: names.give(width) for width in cell.widths[1:]}


class _Module:
    def __init__(
        self, cell: CellGraph, hidden: int | float | bool | None, widths: Mapping[str, int]
    ) -> None:
        self.cell, self.hidden = cell, hidden
        self.layer = camel(cell.name)
        self.widths = arguments(cell)
        self.given = {width: widths.get(width) for width in self.widths}
        self.size = {"H": "self.units"} | {w: f"self.size_{n}" for w, n in self.widths.items()}
        self.size["X"] = self.size[cell.raw_x] if cell.raw_x else "entering"

    def text(self) -> str:
        lines = [*self._top(), "", "", *self._one(), "", "", *self._layer()]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def _top(self) -> list[str]:
        return [
            # The comments below hold text of others. They start on the fifth line, because Python
            # takes a comment on the first two for a declaration of the encoding.
            f'"""{self.layer}: a recurrent layer of Keras 3, used like keras.layers.GRU.',
            "",
            "Exported from the equations below; needs nothing but keras.",
            '"""',
            "",
            *(comment(line.removeprefix("# ")) for line in str(self.cell).splitlines()),
            "",
            "from __future__ import annotations",
            "",
            "import keras",
            "from keras import ops",
        ]

    def _arguments(self) -> list[str]:
        units = "units: int" if self.hidden is None else f"units: int = {self.hidden!r}"
        sizes = [
            f"{name}: int" if self.given[width] is None else f"{name}: int = {self.given[width]!r}"
            for width, name in self.widths.items()
        ]
        return ["self", units, *(["*", *sizes] if sizes else []), "**options"]

    # -- one step -------------------------------------------------------------------------------

    def _one(self) -> list[str]:
        sizes = [self.size[state.width] for state in self.cell.states]
        return [
            "@keras.saving.register_keras_serializable(package=__name__)",
            f"class {self.layer}Cell(keras.layers.Layer):",
            '    """One step, the cell of a keras.layers.RNN. B: batch rows."""',
            "",
            *(f"    {line}" for line in wrapped("def __init__(", self._arguments(), "):")),
            "        super().__init__(**options)",
            "        self.units = units",
            *(f"        self.size_{name} = {name}" for name in self.widths.values()),
            f"        self.state_size = [{', '.join(sizes)}]",
            f"        self.output_size = {self.size[output_width(self.cell)]}",
            "",
            "    def build(self, input_shape):",
            "        entering = input_shape[-1]",
            "        bound = self.units**-0.5",
            "        noise = keras.initializers.RandomUniform(-bound, bound)",
            "        self.parameters = {}",
            "",
            "        def weight(name, *shape, start=noise):",
            "            made = self.add_weight(shape=shape, initializer=start, name=name)",
            "            self.parameters[name] = made",
            "",
            *(line for param in self.cell.params for line in self._parameter(param)),
            *self._projection(),
            "",
            "    def call(self, x, states):",
            '        """x (B, input) and the states (B, size); the output and the next states."""',
            *(f"        {line}" for line in self._step()),
            "",
            "    def get_config(self):",
            f"        return {{**super().get_config(), {self._config()}}}",
        ]

    def _config(self) -> str:
        sizes = [("units", "self.units")]
        sizes += [(name, f"self.size_{name}") for name in self.widths.values()]
        return ", ".join(f'"{name}": {value}' for name, value in sizes)

    def _parameter(self, param: Param) -> list[str]:
        shape = [self.size[w] for w in (param.cols, param.rows) if w is not None]
        words = [f'"{param.name}"', *shape]
        if param.init is not None and param.init.kind == "constant":
            start = f"keras.initializers.Constant({format_number(param.init.value)})"
            words.append(f"start={start}")
        lines = [f"        weight({', '.join(words)})"]
        if param.init is not None and param.init.kind == "identity":
            value = f'self.parameters["{param.name}"]'
            diagonal = f"{format_number(param.init.value)} * ops.eye({shape[0]})"
            lines.append(f"        {value}.assign({value} + {diagonal})")
        return lines

    def _projection(self) -> list[str]:
        if not self.cell.raw_x:
            return []
        width = self.size["X"]
        return [
            f"        if entering != {width}:  # x stands outside the matrices",
            f'            weight("input_projection", entering, {width})',
        ]

    def _step(self) -> list[str]:
        return _Step(self.cell, self.size).lines()

    # -- the layer ------------------------------------------------------------------------------

    def _layer(self) -> list[str]:
        given = ", ".join(["units", *(f"{name}={name}" for name in self.widths.values())])
        return [
            "@keras.saving.register_keras_serializable(package=__name__)",
            f"class {self.layer}(keras.layers.RNN):",
            '    """The layer; its options are those of keras.layers.RNN: return_sequences, …"""',
            "",
            *(f"    {line}" for line in wrapped("def __init__(", self._arguments(), "):")),
            f"        super().__init__({self.layer}Cell({given}), **options)",
            "",
            '    def assign_weights(self, weights, prefix="cells.0."):',
            '        """Takes weights by name from a torch layer with this cell: its state_dict,',
            '        or arrays of these shapes, matrices (out, in). The layer must be built."""',
            "        for name, variable in self.cell.parameters.items():",
            "            value = ops.convert_to_tensor(weights[prefix + name])",
            "            variable.assign(ops.transpose(value) if len(value.shape) == 2 else value)",
            "",
            "    def get_config(self):",
            "        config = super().get_config()",
            '        del config["cell"]',
            f"        return {{**config, {self._config().replace('self.', 'self.cell.')}}}",
            "",
            "    @classmethod",
            "    def from_config(cls, config, custom_objects=None):",
            "        return cls(**config)",
        ]  # fmt: skip


class _Step:
    """The lines of one step."""

    def __init__(self, cell: CellGraph, size: Mapping[str, str]) -> None:
        self.cell, self.size = cell, size
        self.names = Names(["self", "keras", "ops", "x", "states", "p"])
        self.made: dict[Node, Source] = {}
        self.bound: set[Node] = set()  # what has a name of its own; for membership only
        self.text: list[str] = []
        self.counts = use_counts(cell.roots)
        self.moving = depends_on(cell.roots, lambda leaf: leaf.op in (INPUT, STATE))

    def lines(self) -> list[str]:
        before = [self.names.give(state.name) for state in self.cell.states]
        for state, local in zip(self.cell.states, before, strict=True):
            self.made[Node(STATE, (), state.name)] = Source(local)
        targets = f"({before[0]},)" if len(before) == 1 else ", ".join(before)
        self.text = [f"{targets} = states"]
        if self.cell.params:
            self.text.append("p = self.parameters")
        if self.cell.raw_x:
            self.text += [
                'if "input_projection" in self.parameters:',
                '    x = ops.matmul(x, self.parameters["input_projection"])',
            ]
        order = named(self.cell)
        label = {node: name for name, node in order}
        for _, root in [*order, *(("", root) for root in self.cell.roots)]:
            for node in topological([root]):
                if node not in self.made:
                    self._make(node, label.get(node))
        nexts = [self._full(state.next, state.width) for state in self.cell.states]
        output = self._full(self.cell.outputs[0], output_width(self.cell))
        return [*self.text, f"return {output}, [{', '.join(nexts)}]"]

    def _make(self, node: Node, name: str | None) -> None:
        """The expression of a node, on lines of their own what it would make too long."""
        made = self._expression(node)
        for arg in sorted(dict.fromkeys(node.args), key=lambda a: -len(str(self.made[a]))):
            if len(str(made)) > LONGEST and not arg.is_leaf and arg not in self.bound:
                self._bind(arg, self._fresh())
                made = self._expression(node)
        self.made[node] = made
        if not node.is_leaf and (name is not None or self.counts[node] > 1):
            self._bind(node, name or self._fresh())

    def _bind(self, node: Node, name: str) -> None:
        local = self.names.give(f"new_{name[:-1]}" if name.endswith("'") else name)
        self.text.append(f"{local} = {self.made[node]}")
        self.made[node] = Source(local)
        self.bound.add(node)

    def _fresh(self) -> str:
        return next(name for i in count(1) if self.names.free(name := f"n{i}"))

    def _expression(self, node: Node) -> Source:
        if node.op == INPUT:
            return Source("x")
        if node.op == PARAM:
            held = Source(f'p["{node.attr}"]')
            return held - Source("ops.transpose")(held) if node.attr in self.cell.skews else held
        if node.op == CONST:
            return Number(*self._number(format_number(float(node.attr))))  # type: ignore[arg-type]
        args = [self.made[arg] for arg in node.args]
        if node.op == MATMUL:
            return Source("ops.matmul")(args[1], args[0])
        made: Source = OPS[node.op].eager(_Keras(), *args)
        return made

    @staticmethod
    def _number(text: str) -> tuple[str, Callable[[], Source]]:
        tensor = f"ops.convert_to_tensor({text}, self.compute_dtype)"
        return text, lambda: Source(tensor)

    def _full(self, node: Node, width: str) -> str:
        """A value with a row for every one of the batch."""
        value = str(self.made[node])
        if self.moving[node]:
            return value
        return f"ops.broadcast_to({value}, (ops.shape(x)[0], {self.size[width]}))"

"""One layer in one direction as ONNX nodes: what needs no state, for all steps at once, and a loop,
which is a `Scan`.

Made from the schedule (`cellgraph.schedule`), so that an export hoists and groups what the eager
backend does.

Letters: T time steps, B batch rows, K width of an operand, N width of a stacked product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from cellgraph.exporters.onnx_nodes import Nodes
from cellgraph.exporters.onnx_ops import TORCH, Symbol
from cellgraph.exporters.plan import in_text_order, needs, outs, timed
from cellgraph.graph import CellGraph
from cellgraph.ops import OPS
from cellgraph.schedule import Pointwise, Product, Schedule, lower

if TYPE_CHECKING:
    from cellgraph.parameters import Cell


class Recurrence:
    """The nodes of one cell module; the names of values and weights end in `suffix`."""

    def __init__(self, cell: Cell, nodes: Nodes, suffix: str) -> None:
        self.cell, self.nodes, self.suffix = cell, nodes, suffix
        schedule = lower(cell.graph)
        before, step = in_text_order(schedule, schedule.before, schedule.step)
        self.schedule = replace(schedule, before=tuple(before), step=tuple(step))
        self.words = words(cell.graph, self.schedule)
        weights = {name: value.detach().numpy() for name, value in cell.tensors().items()}
        self.rows = {name: len(value) for name, value in weights.items() if value.ndim == 2}
        # What the text names has the first choice of names: weights, then values.
        self.stacks: dict[tuple[str, ...], str] = {  # matrices -> the value with all of them
            (name,): nodes.tensor(f"{name}{suffix}", value) for name, value in weights.items()
        }
        computed = [slot for i in (*before, *step) for slot in outs(i)]
        texts = {slot for _, slot in schedule.names}
        self.named = {slot: self._give(self.words[slot]) for slot in computed if slot in texts}
        self.bases: dict[Product, str] = {}  # fused product -> the value with all its bases
        self.value: dict[int, str] = {}  # slot -> value

    def write(self, x: str, first: Sequence[str], y: str, backwards: bool) -> list[str]:
        """The nodes for x (T, B, input_size) and the first states (B, width), of which one gives
        the outputs (T, B, N) as `y`; returns the last states."""
        schedule, nodes, cell = self.schedule, self.nodes, self.cell
        if cell.input_projection is not None:
            value = cell.input_projection.detach().numpy()
            weight = nodes.tensor(f"input_projection{self.suffix}", value)
            x = nodes.add("MatMul", [x, self._transposed(weight)], self._give("x_projected"))
        self.value.update(dict.fromkeys(schedule.inputs, x))
        self.value.update((slot, nodes.number(value)) for value, slot in schedule.consts)
        self.value.update((slot, self.stacks[name,]) for name, slot in schedule.params)
        for instruction in schedule.before:
            self._run(nodes, instruction)
        if schedule.output_before:
            self._hoisted_output(x, y)
        products = [i for i in schedule.step if isinstance(i, Product)]
        for product in products:
            self._stack(product.matrices, self.words[product.operand])
            if product.bases:
                bases = [self.value[base] for base in product.bases]
                self.bases[product] = self._joined(bases, f"base_{self.words[product.operand]}", -1)

        over = [*(self.value[slot] for slot in schedule.carried), *self.bases.values()]
        # Once each: x may be carried and a base. And something, be it that no step reads it.
        series = list(dict.fromkeys(over)) or [x]
        last = [self._give(f"{state}_last") for state, _ in schedule.nexts]
        ys = [] if schedule.output_before else [y]
        way = {"scan_input_directions": series, "scan_output_directions": ys}
        nodes.spread(
            "Scan",
            [*first, *series],
            [*last, *ys],
            name=f"{cell.graph.name}{self.suffix}",
            body=self._body(series),
            num_scan_inputs=len(series),
            **{key: [1] * len(names) for key, names in way.items() if backwards and names},
        )
        return last

    # -- one step -------------------------------------------------------------------------------

    def _body(self, series: Sequence[str]) -> GraphProto:
        """The graph of one step: states and slices of `series` in, next states and output out."""
        schedule, nodes = self.schedule, self.nodes.inner()
        states = {state: self._give(state) for state, _ in schedule.nexts}
        slices = {name: nodes.give(f"{name}_t") for name in series}
        self.value.update((slot, states[state]) for state, slot in schedule.states)
        self.value.update((slot, slices[self.value[slot]]) for slot in schedule.carried)
        self.bases = {product: slices[base] for product, base in self.bases.items()}
        for instruction in schedule.step:
            self._run(nodes, instruction)
        results: list[str] = []
        for state, slot in schedule.nexts:
            value = self.value[slot]
            if slot in schedule.fixed:  # (width,) until here
                shape = nodes.add("Shape", [states[state]], self._give(f"{state}_shape"))
                value = nodes.add("Expand", [value, shape], self._give(f"{state}_next"))
            results.append(self._result(nodes, value, results, f"{state}_next"))
        if not schedule.output_before:
            results.append(self._result(nodes, self.value[schedule.output], results, "y_t"))
        graph: GraphProto = helper.make_graph(
            nodes.made,
            f"{self.cell.graph.name}{self.suffix}",
            [_value(name) for name in (*states.values(), *slices.values())],
            [_value(name) for name in results],
        )
        return graph

    def _result(self, nodes: Nodes, value: str, others: Sequence[str], word: str) -> str:
        """A value as a result of a graph: some node gives it, and it is no other result."""
        if value not in others and any(value in node.output for node in nodes.made):
            return value
        return nodes.add("Identity", [value], self._give(word))

    # -- instructions ---------------------------------------------------------------------------

    def _run(self, nodes: Nodes, instruction: Pointwise | Product) -> None:
        """The nodes of an instruction, in the graph outside or in that of a step."""
        for slot in outs(instruction):
            self.value[slot] = self.named.get(slot) or self._give(self.words[slot])
        if isinstance(instruction, Pointwise):
            operands = [Symbol(self.value[a]) for a in instruction.args]
            nodes.compute(OPS[instruction.op].eager(TORCH, *operands), self.value[instruction.out])
            return
        parts = [self.value[slot] for slot in instruction.outs]
        operand, word = self.value[instruction.operand], self.words[instruction.operand]
        weight = self._stack(instruction.matrices, word)
        kind = "sum" if instruction.bases else "product"
        value = parts[0] if len(parts) == 1 else self._give(f"{kind}_{word}")
        if nodes is self.nodes:  # (T, B, K), or (K,) where it is a parameter
            nodes.add("MatMul", [operand, self._transposed(weight)], value)
        else:  # (B, K)
            base = [self.bases[instruction]] if instruction.bases else []
            nodes.add("Gemm", [operand, weight, *base], value, transB=1)
        if len(parts) > 1:
            sizes = [self.rows[matrix] for matrix in instruction.matrices]
            cuts = [nodes.wholes("sizes", sizes)] if len(set(sizes)) > 1 else []
            nodes.spread("Split", [value, *cuts], parts, axis=-1)

    def _hoisted_output(self, x: str, y: str) -> None:
        """An output that no state reaches, as `y` (T, B, N)."""
        nodes, value = self.nodes, self.value[self.schedule.output]
        if self.schedule.output in timed(self.schedule, self.schedule.before):
            nodes.add("Identity", [value], y)
            return
        shape = nodes.add("Shape", [x], self._give("x_shape"), start=0, end=2)
        shape = self._joined([shape, nodes.wholes("ones", [1])], "y_shape", 0)
        nodes.add("Expand", [value, shape], y)

    # -- weights and names ----------------------------------------------------------------------

    def _stack(self, matrices: tuple[str, ...], word: str) -> str:
        """The matrices on top of each other, (N, K), to multiply what is called `word`."""
        if matrices not in self.stacks:
            parts = [self.stacks[matrix,] for matrix in matrices]
            self.stacks[matrices] = self._joined(parts, f"weight_{word}", 0)
        return self.stacks[matrices]

    def _transposed(self, weight: str) -> str:
        return self.nodes.add("Transpose", [weight], self.nodes.give(f"{weight}_T"))

    def _joined(self, values: Sequence[str], word: str, axis: int) -> str:
        if len(values) == 1:
            return values[0]
        return self.nodes.add("Concat", values, self._give(word), axis=axis)

    def _give(self, word: str) -> str:
        return self.nodes.give(f"{word}{self.suffix}")


def words(cell: CellGraph, schedule: Schedule) -> dict[int, str]:
    """What to call the slots of a schedule: what the text calls them, the primed c `c_next`; else
    what they are a part of (`i_in`, or `i_x` where no state is in it) or a product of (`U_i_h`)."""
    word = {slot: name.replace("'", "_next") for name, slot in reversed(schedule.names)}
    for state, slot in schedule.nexts:
        word.setdefault(slot, f"{state}_next")
    word.setdefault(schedule.output, "y")
    word.update(dict.fromkeys(schedule.inputs, "x"))
    word.update((slot, name) for name, slot in (*schedule.states, *schedule.params))
    inside = [slot for instruction in schedule.step for slot in outs(instruction)]
    word.update((slot, "y_t") for slot in inside if word.get(slot) == "y")  # of the y of all steps
    series = timed(schedule, schedule.before)
    named = frozenset(word)
    whole = dict(word)  # slot -> the word of the named value that it is a part of
    for instruction in reversed((*schedule.before, *schedule.step)):
        for slot in outs(instruction):
            for arg in needs(instruction, slot):
                whole.setdefault(arg, whole[slot])
                word.setdefault(arg, f"{whole[arg]}_{'x' if arg in series else 'in'}")
    for instruction in (*schedule.before, *schedule.step):
        if isinstance(instruction, Product) and not instruction.bases:
            for slot, matrix in zip(instruction.outs, instruction.matrices, strict=True):
                if slot not in named:
                    word[slot] = f"{matrix}_{word[instruction.operand]}"
    return word


def _value(name: str) -> ValueInfoProto:
    """A value of float32 whose shape follows from what goes in."""
    info: ValueInfoProto = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return info

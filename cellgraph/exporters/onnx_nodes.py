"""ONNX nodes one after the other, and what all graphs of a file share: names, weights, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from cellgraph.exporters.onnx_ops import Symbol
from cellgraph.exporters.source import Names
from cellgraph.graph import format_number


class Nodes:
    """The nodes of one graph. Names and tensors are those of the whole file: what a graph in a node
    calls its own must not be called like anything around it, and may read all that is there."""

    def __init__(self, names: Names) -> None:
        self.made: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self._names = names
        self._constants: dict[tuple[str, bytes], str] = {}

    def inner(self) -> Nodes:
        """Room for the nodes of a graph inside one of these."""
        nodes = Nodes(self._names)
        nodes.tensors, nodes._constants = self.tensors, self._constants
        return nodes

    # -- names ----------------------------------------------------------------------------------

    def give(self, wanted: str) -> str:
        """A name that is free: `wanted` or the nearest one to it."""
        return self._names.give(wanted)

    # -- tensors --------------------------------------------------------------------------------

    def tensor(self, wanted: str, value: np.ndarray[Any, Any]) -> str:
        """The name of a tensor in the file."""
        name = self.give(wanted)
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        """A number in float32, infinite where that has no room for it."""
        with np.errstate(over="ignore"):
            return self._constant(f"number_{_spelled(value)}", np.array(value, np.float32))

    def wholes(self, label: str, values: Sequence[int]) -> str:
        """A list of whole numbers, such as a shape."""
        return self._constant(f"{label}_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def _constant(self, wanted: str, value: np.ndarray[Any, Any]) -> str:
        key = wanted, value.tobytes()
        if key not in self._constants:
            self._constants[key] = self.tensor(wanted, value)
        return self._constants[key]

    # -- nodes ----------------------------------------------------------------------------------

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, whose name must have been given; returns that."""
        self.spread(operator, inputs, [output], **attributes)
        return output

    def spread(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str = "",
        **attributes: Any,
    ) -> None:
        """A node with any number of outputs, called like the first if it has no name."""
        name = name or outputs[0]
        self.made.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))

    def compute(self, expression: Symbol, output: str) -> str:
        """Nodes for an expression of operators, the last of them with this output."""
        inputs = [self._operand(operand, output) for operand in expression.operands]
        return self.add(expression.name, inputs, output, **expression.attributes)

    def _operand(self, operand: Symbol | float, output: str) -> str:
        if not isinstance(operand, Symbol):
            return self.number(operand)
        if operand.operands:
            return self.compute(operand, self.give(f"{output}_in"))
        return operand.name


def _spelled(value: float) -> str:
    """A number as a part of a name."""
    return format_number(value).replace("-", "minus_").replace("+", "").replace(".", "_")

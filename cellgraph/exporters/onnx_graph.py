"""A layer with its weights as one ONNX file: the inputs, the outputs and what lies between layers.

The nodes of one layer in one direction come from `onnx_scan.py`.

Letters: T time steps, B batch rows, L layers, D directions, H output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from onnx import ModelProto, TensorProto, ValueInfoProto, helper, shape_inference

from cellgraph.errors import CellError
from cellgraph.exporters.onnx_nodes import Nodes
from cellgraph.exporters.onnx_ops import OPSET
from cellgraph.exporters.onnx_scan import Recurrence
from cellgraph.exporters.source import Names

if TYPE_CHECKING:
    from cellgraph.layer import CellLayer
    from cellgraph.parameters import Cell

#: The version of the file format that appeared with the operators of `OPSET`.
IR_VERSION = 8
#: Bytes of weights for which a file has room: protocol buffers end at 2 GiB.
LARGEST = 2**31 - 2**24


def render(layer: CellLayer) -> bytes:
    """The file of a layer that is in float32 on the CPU.

    Inputs: x (T, B, input_size) and, for each state s of the cell, s_0 (L·D, B, width). Outputs:
    y (T, B, D·H) and the last states s_n, shaped as the first ones. Values and weights go by the
    names of the cell's text as far as those are free; where there are several layers or
    directions, they end in _l0, _l0_reverse … as those of torch.nn.LSTM. The same layer gives the
    same bytes. Raises `CellError` for more weights than a file holds.
    """
    size = 4 * sum(parameter.numel() for parameter in layer.parameters())
    if size > LARGEST:
        raise CellError(
            f"the weights of {layer.cell.name} take {size / 2**30:.1f} GiB, "
            "expected less than 2 GiB, which is what one ONNX file holds"
        )
    content: bytes = _model(layer).SerializeToString(deterministic=True)
    return content


def names_of(layer: CellLayer) -> tuple[list[str], list[str]]:
    """The names of the inputs and the outputs of a file, x and y first."""
    states = [state.name for state in layer.cell.states]
    return ["x", *(f"{s}_0" for s in states)], ["y", *(f"{s}_n" for s in states)]


def _model(layer: CellLayer) -> ModelProto:
    inputs, outputs = names_of(layer)
    # One namespace for all graphs of the file: a body must not take the name of what is around it.
    nodes = Nodes(Names([*inputs, *outputs], words=()))
    _stack(layer, nodes, inputs, outputs)
    states = [(len(layer.cells), "B", size) for size in layer.state_sizes]
    text = str(layer.cell).encode("utf-8", "replace").decode()  # no half of a surrogate pair
    graph = helper.make_graph(
        nodes.made,
        layer.cell.name,
        _declared(inputs, [("T", "B", layer.input_size), *states]),
        _declared(outputs, [("T", "B", layer.output_size), *states]),
        nodes.tensors,
        doc_string=text,
    )
    model = helper.make_model(
        graph,
        producer_name="cellsearch",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, _metadata(layer, text))
    # The shapes of the values between the nodes, for whoever looks at the graph.
    return shape_inference.infer_shapes(model, strict_mode=True)


def _metadata(layer: CellLayer, text: str) -> dict[str, str]:
    """What rebuilds the layer: its cell and its sizes; and the version of the operators."""
    sizes = {name: getattr(layer, name) for name in ("input_size", "hidden_size", "num_layers")}
    return {
        "cell": text,
        "opset": str(OPSET),
        **{name: str(size) for name, size in sizes.items()},
        "bidirectional": str(layer.bidirectional).lower(),
    }


def _declared(
    names: Sequence[str], shapes: Sequence[tuple[str | int, ...]]
) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]


def _stack(layer: CellLayer, nodes: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """All layers, one over the other, from the inputs to the outputs."""
    suffixes = [
        f"_l{level}{reverse}" if len(layer.cells) > 1 else ""
        for level in range(layer.num_layers)
        for reverse in ("", "_reverse")[: layer.directions]
    ]
    states = [state.name for state in layer.cell.states]
    pairs = zip(inputs[1:], states, strict=True)
    first = list(zip(*(_cut(nodes, name, s, suffixes) for name, s in pairs), strict=True))
    last: list[list[str]] = []
    x = inputs[0]
    for level in range(layer.num_layers):
        here = range(level * layer.directions, (level + 1) * layer.directions)
        y = outputs[0] if here.stop == len(suffixes) else nodes.give(f"y_l{level}_all")
        ys = [y] if len(here) == 1 else [nodes.give(f"y{suffixes[index]}") for index in here]
        for index, part in zip(here, ys, strict=True):
            recurrence = Recurrence(cast("Cell", layer.cells[index]), nodes, suffixes[index])
            last.append(recurrence.write(x, first[index], part, backwards=index > here.start))
        x = y if len(here) == 1 else nodes.add("Concat", ys, y, axis=2)
    for name, values in zip(outputs[1:], zip(*last, strict=True), strict=True):
        _join(nodes, values, name, suffixes)


def _cut(nodes: Nodes, name: str, state: str, suffixes: Sequence[str]) -> list[str]:
    """The first state (B, width) of every cell module, from that of all (L·D, B, width)."""
    parts = [name]
    if len(suffixes) > 1:
        parts = [nodes.give(f"{name}{suffix}") for suffix in suffixes]
        nodes.spread("Split", [name], parts, axis=0)
    axes = nodes.wholes("axes", [0])
    return [
        nodes.add("Squeeze", [part, axes], nodes.give(f"{state}_first{suffix}"))
        for part, suffix in zip(parts, suffixes, strict=True)
    ]


def _join(nodes: Nodes, values: Sequence[str], name: str, suffixes: Sequence[str]) -> None:
    """The last state of all (L·D, B, width), under its name, from that of every cell module."""
    single = len(suffixes) == 1
    parts = [name] if single else [nodes.give(f"{name}{suffix}") for suffix in suffixes]
    axes = nodes.wholes("axes", [0])
    for value, part in zip(values, parts, strict=True):
        nodes.add("Unsqueeze", [value, axes], part)
    if not single:
        nodes.add("Concat", parts, name, axis=0)

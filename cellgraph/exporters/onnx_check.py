"""The check of an ONNX file: by the package onnx, and run by onnxruntime as its user will."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from cellgraph.errors import CellError
from cellgraph.exporters import Difference
from cellgraph.exporters.check import largest_difference
from cellgraph.exporters.onnx_graph import names_of
from cellgraph.layer import CellLayer


def difference(layer: CellLayer, path: Path) -> Difference:
    """The largest difference of the file at `path` from the interpreter. Raises `CellError` for too
    large a one, and for a file that the checker of ONNX or the runtime does not take."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = open_session(path)
    except Exception as error:  # what either raises has no base of its own
        reason = str(error).strip().splitlines()
        raise CellError(
            f"the exported {layer.cell.name} is no ONNX file: {reason[0] if reason else error!r}"
        ) from error
    inputs, outputs = names_of(layer)

    def run(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = zip(inputs, (x, *state), strict=True)
        y, *last = session.run(outputs, {name: value.numpy() for name, value in given})
        return torch.from_numpy(y), tuple(map(torch.from_numpy, last))

    return largest_difference(layer, run)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """The file in onnxruntime, on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings tell of what it leaves out of the graph
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

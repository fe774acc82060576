"""The check of an exported Keras module: it runs in a process of its own, on Keras's torch backend.

Keras fixes its backend when it is imported, and writes into the home directory of its user; neither
may happen to the process that exports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from cellgraph.errors import CellError
from cellgraph.exporters import Difference
from cellgraph.exporters.check import cases, compared
from cellgraph.layer import CellLayer
from cellgraph.parameters import Cell

_SCRIPT = """
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
import numpy as np
import torch

torch.set_num_threads(1)
path, name, data, count, states, units, *widths = sys.argv[1:]
loader = SourceFileLoader("exported", path)
module = module_from_spec(spec_from_loader("exported", loader))
loader.exec_module(module)
data, results = np.load(data), {}
sizes = {k: int(v) for k, v in (width.split("=") for width in widths)}
layer = getattr(module, name)(int(units), **sizes, return_sequences=True, return_state=True)
layer.build(data["x0"].shape)
layer.assign_weights({key: data[key] for key in data.files if key.startswith("cells.0.")})
for i in range(int(count)):
    given = [torch.from_numpy(data[f"state{i}_{k}"]) for k in range(int(states))]
    y, *last = layer(torch.from_numpy(data[f"x{i}"]), initial_state=given)
    for k, value in enumerate([y, *last]):
        results[f"y{i}_{k}"] = value.detach().cpu().numpy()
np.savez(sys.argv[3] + ".out.npz", **results)
"""


def difference(layer: CellLayer, path: Path, name: str, arguments: dict[str, str]) -> Difference:
    """The largest difference of the Keras layer `name` in the file at `path` from the interpreter,
    with the weights of a layer. `arguments`: what the constructor calls the widths beside H. Raises
    `CellError` for too large a one, and where Keras is not installed."""
    if find_spec("keras") is None:
        raise CellError("format keras is checked with keras: pip install 'cellsearch[keras]'")
    found = list(cases(layer))
    one = layer.cells[0]
    if not isinstance(one, Cell):
        raise TypeError(f"a layer of {type(one).__name__}, expected cells")
    arrays = {f"cells.0.{key}": value.numpy() for key, value in one.state_dict().items()}
    for i, case in enumerate(found):
        arrays[f"x{i}"] = case.x.transpose(0, 1).contiguous().numpy()
        arrays |= {f"state{i}_{k}": value[0].numpy() for k, value in enumerate(case.state)}
    widths = [f"{argument}={layer.widths[width]}" for width, argument in arguments.items()]
    with TemporaryDirectory(prefix="cellsearch-") as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **arrays)
        done = subprocess.run(  # noqa: S603  # our own text, run by our own Python
            [sys.executable, "-c", _SCRIPT, str(path), name, str(data), str(len(found)),
             str(len(layer.cell.states)), str(layer.hidden_size), *widths],
            env={**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": folder},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CellError(f"the exported {layer.cell.name} does not run in Keras: {last[0]}")
        results = dict(np.load(f"{data}.out.npz"))

    def answer(i: int) -> tuple[Tensor, list[Tensor]]:
        count = len(layer.cell.states) + 1
        y, *last = (torch.from_numpy(results[f"y{i}_{k}"]) for k in range(count))
        return y.transpose(0, 1), [value.unsqueeze(0) for value in last]

    return compared(layer, ((case, answer(i)) for i, case in enumerate(found)))

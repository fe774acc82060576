"""Cells as files that work without this package: one table of formats, one way to write a file.

A format is a function from a cell to text. Checks of the path and the atomic write live here alone.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cellgraph.errors import CellError, closest
from cellgraph.exporters import torch_source
from cellgraph.graph import CellGraph
from cellgraph.loading import load
from cellgraph.notation import parse
from cellgraph.recipes import recipe, to_json

if TYPE_CHECKING:
    from cellgraph.layer import CellLayer


@dataclass(frozen=True, slots=True)
class Design:
    """What is exported: a cell, and the sizes of the layer that it came from, if it came from one.

    `sizes` holds the constructor arguments of a layer by name (`input_size`, `hidden_size`,
    `num_layers`, …), `widths` the sizes of the widths that the cell declares besides H.
    """

    cell: CellGraph
    sizes: Mapping[str, int | float | bool] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)


#: What `export` writes, by the name of the format.
FORMATS: dict[str, Callable[[Design], str]] = {
    "cell": lambda design: str(design.cell),
    "torch": lambda design: torch_source.render(design.cell, design.sizes, design.widths),
    "nasbench": lambda design: to_json(recipe(design.cell)),
}


def export(
    cell_or_layer: CellGraph | CellLayer | str | Path,
    path: str | Path,
    format: str,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a cell or a layer to `path` in one of `FORMATS`; returns the path.

    `"cell"` is notation. `"torch"` is one module of Python that needs torch alone: a class with
    the constructor and the shapes of torch.nn.LSTM and the state_dict of our layer. Given a layer,
    its sizes become the defaults of that constructor; its weights are not in the file, and go over
    by `exported.load_state_dict(layer.state_dict())`. `"nasbench"` is a recipe of NAS-Bench-NLP in
    JSON, of a cell that is one (see `cellgraph.recipe`). Text and paths are read by
    `cellgraph.load`.

    The file appears complete or not at all. Raises `CellError` for an unknown format, a file that
    is there already (unless `overwrite`), and a path that cannot be written.
    """
    if not isinstance(format, str) or format not in FORMATS:
        raise CellError(
            f"no export format {format!r}{closest(str(format), FORMATS)}, "
            f"expected one of {', '.join(FORMATS)}"
        )
    target = Path(path)
    text = FORMATS[format](_design(cell_or_layer))
    _write(target, text, overwrite)
    return target


def _design(source: CellGraph | CellLayer | str | Path) -> Design:
    if isinstance(source, str | Path):
        source = load(source)
    if isinstance(source, CellGraph):
        return Design(_checked(source))
    from cellgraph.layer import CellLayer  # only a layer needs torch

    if not isinstance(source, CellLayer):
        raise CellError(f"a {type(source).__name__} cannot be exported, expected a cell or a layer")
    names = ("input_size", "hidden_size", "num_layers", "batch_first", "dropout", "bidirectional")
    widths = {s.width: n for s, n in zip(source.cell.states, source.state_sizes, strict=True)}
    return Design(
        _checked(source.cell),
        {name: getattr(source, name) for name in names},
        {name: size for name, size in widths.items() if name != "H"},
    )


def _checked(cell: CellGraph) -> CellGraph:
    """The cell as read back from its own text: every name in it is a plain identifier."""
    read = parse(str(cell))
    if read != cell:
        raise CellError(f"cell {cell.name!r} cannot be written as notation, expected plain names")
    return read


def _write(target: Path, text: str, overwrite: bool) -> None:
    """Through a temporary file beside the target, so that no reader ever sees half a file."""
    made = None
    try:
        if target.is_dir():
            raise CellError(f"{target} is a directory, expected the path of a file")
        if target.exists() and not overwrite:
            raise CellError(f"{target} exists, expected a new path (or overwrite)")
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        with temporary.open("xb") as file:
            made = temporary
            # A comment may hold what no file can, such as half of a surrogate pair.
            file.write(text.encode("utf-8", "replace"))
        os.replace(temporary, target)
        made = None
    except CellError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise CellError(
            f"{str(target)!r} cannot be written ({getattr(error, 'strerror', None) or error}), "
            "expected a path in a writable directory"
        ) from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)

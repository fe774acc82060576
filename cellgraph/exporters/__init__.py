"""Cells as files that work without this package: one table of formats, one way to write a file.

A format makes bytes of a design, and checks the file that they became; paths, atomic writes and the
order of things live here alone. No file stays that has not passed its check.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgraph import node_link
from cellgraph.errors import CellError, closest
from cellgraph.exporters import dot, keras_source, latex, svg, torch_source
from cellgraph.exporters.source import camel
from cellgraph.exporters.torch_model import Ends
from cellgraph.graph import CellGraph
from cellgraph.loading import load
from cellgraph.notation import parse
from cellgraph.recipes import recipe, to_json

if TYPE_CHECKING:
    from cellgraph.layer import CellLayer

#: Sizes of a layer that is made of a cell alone.
SIZES: Mapping[str, int] = {"input_size": 64, "hidden_size": 64}
STEPS = (1, 7, 50)  #: lengths at which exports are compared with the interpreter
TOLERANCE = 1e-5  #: by which an export may differ, where float32 can tell
#: The ending of the note beside an export.
NOTE = ".md"


@dataclass(frozen=True)
class Design:
    """What is exported: a cell; the sizes of the layer that it came from, if it came from one; and
    options of the format.

    `sizes` holds the constructor arguments of a layer by name (`input_size`, `hidden_size`,
    `num_layers`, …), `widths` the sizes of the widths that the cell declares besides H, `ends` what
    surrounds the layer in a trained model.
    """

    cell: CellGraph
    sizes: Mapping[str, int | float | bool] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    given: CellLayer | None = None
    ends: Ends | None = None

    @cached_property
    def layer(self) -> CellLayer:
        """The layer with its weights, float32 on the CPU, computed by torch: a copy of the given
        one; or, of a cell, one with the parameters that `compile` gives it after
        torch.manual_seed(0)."""
        from cellgraph.exporters.check import concrete  # text alone needs no torch

        return concrete(self.cell, {**SIZES, **self.sizes}, self.widths, self.given)


class Difference(NamedTuple):
    """From the interpreter, of values above 1 relative to them: the largest of all that could be
    compared, and of single steps alone. Some cells make more of every rounding with every step, so
    that float32 tells nothing of many; `steps`: of how many it does."""

    largest: float
    step: float
    steps: int

    def __str__(self) -> str:
        words = f"largest difference {self.largest:.1e}"
        if self.largest <= TOLERANCE and self.steps == STEPS[-1]:
            return words
        if self.steps > 1:
            words += f" over up to {self.steps} steps, {self.step:.1e}"
        return f"{words} over single steps: this cell makes more of every rounding"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check has found: differences from the interpreter, and lines to print."""

    difference: Difference | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a cell.

    `render`: the contents of the files by the ending that is added to the path, "" for the file
    itself. `check`: the largest differences of what the file at a path computes from the
    interpreter, or a `Checked` where there is more to say; raises `CellError` for too large a one.
    None where the file says what the cell is and computes nothing. `options`: names of those that
    it takes.
    """

    about: str
    render: Callable[[Design], Mapping[str, bytes]]
    check: Callable[[Design, Path], Difference | Checked] | None = None
    options: tuple[str, ...] = ()


def _text(render: Callable[[Design], str]) -> Callable[[Design], Mapping[str, bytes]]:
    # A comment may hold what no file can, such as half of a surrogate pair.
    return lambda design: {"": render(design).encode("utf-8", "replace")}


def _check_torch(design: Design, path: Path) -> Difference:
    from cellgraph.exporters import torch_check  # only what computes needs torch

    return torch_check.difference(design.layer, path, camel(design.cell.name))


def _onnx(design: Design) -> Mapping[str, bytes]:
    _need("onnx", "onnx", "onnxruntime")
    from cellgraph.exporters import onnx_graph  # imports an optional package

    return {"": onnx_graph.render(design.layer)}


def _check_onnx(design: Design, path: Path) -> Difference:
    from cellgraph.exporters import onnx_check

    return onnx_check.difference(design.layer, path)


def _need(extra: str, *modules: str) -> None:
    """Raise `CellError` unless the packages of an extra are installed."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise CellError(
                f"the package {module} cannot be imported ({error}), "
                f"expected it installed: pip install 'cellsearch[{extra}]'"
            ) from None


def _render_pt2(design: Design) -> Mapping[str, bytes]:
    from cellgraph.exporters import pt2  # text alone needs no torch.export

    return pt2.render(design.layer)


def _check_pt2(design: Design, path: Path) -> Difference:
    from cellgraph.exporters import pt2

    return pt2.difference(design.layer, path)


def _check_keras(design: Design, path: Path) -> Difference:
    from cellgraph.exporters import keras_check  # only what computes needs torch

    cell = design.cell
    return keras_check.difference(
        design.layer, path, camel(cell.name), keras_source.arguments(cell)
    )


def _render_c(design: Design) -> Mapping[str, bytes]:
    from cellgraph.exporters import c_check

    return {"": c_check.render(design)}


def _check_c(design: Design, path: Path) -> Checked:
    from cellgraph.exporters import c_check

    return c_check.check(design, path)


#: What `export` writes, by the name of the format.
FORMATS: dict[str, Format] = {
    "cell": Format("notation", _text(lambda design: str(design.cell))),
    "torch": Format(
        "a .py file that needs only torch",
        _text(lambda d: torch_source.render(d.cell, d.sizes, d.widths, d.ends)),
        _check_torch,
    ),
    "onnx": Format("an ONNX file with the weights, for any runtime", _onnx, _check_onnx),
    "pt2": Format(
        "a torch.export program for any T and B, weights inside", _render_pt2, _check_pt2
    ),
    "keras": Format(
        "a .py file that needs only keras 3",
        _text(lambda design: keras_source.render(design.cell, design.sizes, design.widths)),
        _check_keras,
    ),
    "latex": Format(
        "equations and a TikZ picture of one step, a document that compiles",
        _text(lambda design: latex.render(design.cell)),
    ),
    "svg": Format("a picture of one step", _text(lambda design: svg.render(design.cell))),
    "dot": Format(
        "a picture of one step for Graphviz", _text(lambda design: dot.render(design.cell))
    ),
    "json": Format(
        "the graph in node-link form, which `load` reads",
        _text(lambda design: node_link.dumps(design.cell)),
    ),
    "c": Format(
        "a C99 file for inference that needs only libm, with its weights",
        _render_c,
        _check_c,
        ("int8",),
    ),
    "nasbench": Format(
        "a recipe of NAS-Bench-NLP, of a cell that is one",
        _text(lambda design: to_json(recipe(design.cell))),
    ),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the file, those beside it, the largest difference from the interpreter
    (None: the format computes nothing), and what else the check has to say, in lines."""

    path: Path
    beside: tuple[Path, ...]
    difference: Difference | None
    notes: tuple[str, ...] = ()


def export(
    cell_or_layer: CellGraph | CellLayer | str | Path,
    path: str | Path,
    format: str,
    *,
    overwrite: bool = False,
    **options: object,
) -> Path:
    """Write a cell or a layer to `path` in one of `FORMATS`; returns the path.

    `"cell"` is notation. `"torch"` is one module of Python that needs torch alone: a class with
    the constructor and the shapes of torch.nn.LSTM and the state_dict of our layer. Given a layer,
    its sizes become the defaults of that constructor; its weights are not in the file, and go over
    by `exported.load_state_dict(layer.state_dict())`. `"onnx"` and `"pt2"` hold the weights, in
    float32 and for any number of steps and rows. The former takes x (T, B, X) and a state s_0 for
    each of the cell, gives y and the last states s_n, and needs the extra `onnx`; the latter is a
    program of torch.export: `torch.export.load(path).module()(x, state)`. `"keras"` is a layer for
    Keras 3. `"c"` is one C99 file for inference that needs libm alone: functions for a step and for
    a sequence, with the weights as constants, matrices in int8 with `int8=True`; its check takes a
    C compiler. `"latex"`, `"svg"` and `"dot"` show the cell: its equations with a picture of one
    step, and that picture alone. `"json"` is the graph in the node-link form of networkx,
    `"nasbench"` a recipe of NAS-Bench-NLP in JSON, of a cell that is one (see `cellgraph.recipe`);
    `cellgraph.load` reads both, as it reads text and paths here.

    What computes is compared with the interpreter first. The file appears complete and checked, or
    not at all. Raises `CellError` for an unknown format or option, a file that is there already
    (unless `overwrite`), a path that cannot be written, and a file that is not the cell.
    """
    return write(cell_or_layer, path, format, overwrite=overwrite, options=options).path


def write(
    source: CellGraph | CellLayer | str | Path,
    path: str | Path,
    format: str,
    *,
    overwrite: bool = False,
    sizes: Mapping[str, int | float | bool] | None = None,
    options: Mapping[str, object] | None = None,
    ends: Ends | None = None,
    note: Callable[[Design, Difference | None], str] | None = None,
) -> Exported:
    """As `export`. `sizes`: of the layer that is made of a cell, constructor arguments by name.
    `ends`: what surrounds a layer in its model; a Python file then has the model too. `note`: the
    text of a file beside the export, named after it and ending in .md, of the design and the
    difference; it appears with the export or not at all."""
    chosen, target, options = format_of(format), Path(path), dict(options or {})
    for name in options:
        if name not in chosen.options:
            known = ", ".join(chosen.options) or "none"
            raise CellError(f"format {format} has no option {name!r}, expected one of: {known}")
    design = replace(_design(source, sizes or {}, options), ends=ends)
    contents = chosen.render(design)

    def finish(file: Path) -> tuple[Checked, dict[str, bytes]]:
        found = _checked_file(chosen, design, file)
        if note is None:
            return found, {}
        return found, {NOTE: note(design, found.difference).encode("utf-8", "replace")}

    endings = [*contents, *([] if note is None else [NOTE])]
    return _write(target, endings, contents, overwrite, finish)


def format_of(format: str) -> Format:
    """The format of that name. Raises `CellError` where there is none."""
    if not isinstance(format, str) or format not in FORMATS:
        raise CellError(
            f"no export format {format!r}{closest(str(format), FORMATS)}, "
            f"expected one of {', '.join(FORMATS)}"
        )
    return FORMATS[format]


def _checked_file(chosen: Format, design: Design, file: Path) -> Checked:
    if chosen.check is None:
        return Checked(None)
    found = chosen.check(design, file)
    return found if isinstance(found, Checked) else Checked(found)


def _design(
    source: CellGraph | CellLayer | str | Path,
    sizes: Mapping[str, int | float | bool],
    options: Mapping[str, object],
) -> Design:
    if isinstance(source, str | Path):
        source = load(source)
    if isinstance(source, CellGraph):
        return Design(_checked(source), sizes, {}, options)
    from cellgraph.layer import CellLayer  # only a layer needs torch

    if not isinstance(source, CellLayer):
        raise CellError(f"a {type(source).__name__} cannot be exported, expected a cell or a layer")
    if sizes:
        raise CellError(f"a layer has its sizes, expected none beside it, got {', '.join(sizes)}")
    names = ("input_size", "hidden_size", "num_layers", "batch_first", "dropout", "bidirectional")
    return Design(
        _checked(source.cell),
        {name: getattr(source, name) for name in names},
        source.widths,
        options,
        source,
    )


def _checked(cell: CellGraph) -> CellGraph:
    """The cell as read back from its own text: every name in it is a plain identifier."""
    read = parse(str(cell))
    if read != cell:
        raise CellError(f"cell {cell.name!r} cannot be written as notation, expected plain names")
    return read


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> Path:
    """Any file, complete or not at all. Raises `CellError` for one that is there already and for a
    path that cannot be written."""
    return _write(path, [""], {"": content}, overwrite, lambda made: (Checked(None), {})).path


def _write(
    target: Path,
    endings: Sequence[str],
    contents: Mapping[str, bytes],
    overwrite: bool,
    finish: Callable[[Path], tuple[Checked, Mapping[str, bytes]]],
) -> Exported:
    """Through a folder beside the target, so that no reader ever sees half a file, nor one that
    has not been checked. `finish` checks, and gives the contents of the other endings."""
    folder: Path | None = None
    try:
        paths = {ending: target.with_name(target.name + ending) for ending in endings}
        for path in paths.values():
            if path.is_dir():
                raise CellError(f"{path} is a directory, expected the path of a file")
            if path.exists() and not overwrite:
                raise CellError(f"{path} exists, expected a new path (or overwrite)")
        made = target.with_name(f".{uuid.uuid4().hex}.tmp")
        made.mkdir()
        folder = made
        for ending, content in contents.items():
            (folder / paths[ending].name).write_bytes(content)
    except CellError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(target, error) from None
    try:
        found, more = finish(folder / target.name)
        for ending, content in more.items():
            (folder / paths[ending].name).write_bytes(content)
        for path in paths.values():
            os.replace(folder / path.name, path)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    beside = tuple(path for ending, path in paths.items() if ending)
    return Exported(target, beside, found.difference, found.notes)


def _unwritable(target: Path, error: Exception) -> CellError:
    return CellError(
        f"{str(target)!r} cannot be written ({getattr(error, 'strerror', None) or error}), "
        "expected a path in a writable directory"
    )

"""`cellsearch export` and `cellsearch sample`: cells and trained models as files, and what those
models make up."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cellgraph.exporters import Design, Difference, format_of, write, write_file
from cellgraph.exporters.torch_model import Ends
from search.errors import SearchError

if TYPE_CHECKING:
    from search.trained import Retrained

#: The text of a card, of a design and its difference from the interpreter.
Note = Callable[[Design, Difference | None], str]

WEIGHTS = ".safetensors"  #: how the file of a trained model ends
#: Arguments of a layer that is made of a cell alone.
SIZES = ("input_size", "hidden_size", "num_layers", "bidirectional")


def export(
    options: argparse.Namespace, say: Callable[[int, int], None], note: Note | None
) -> Iterator[str]:
    """Do it; yields the lines that tell of it. `say`: steps done, and the steps of a training.
    `note`: what writes the card. Raises CellError, DataError, SearchError."""
    sizes = {name: v for name in SIZES if (v := getattr(options, name)) is not None}
    source, ends, model = options.target, None, None
    weights = Path(options.out).with_suffix(WEIGHTS)
    if options.weights is not None:
        if sizes:
            raise SearchError("a trained model has its sizes, expected none beside --weights")
        _check_before_training(options, weights)
        model = _trained(options, say)
        content = model.dump()  # may lack a package: before anything is written
        task = model.best.stage.task
        ends = Ends(task.input_kind, task.input_width, task.output_width)
        source = model.model.layers
    elif options.task is not None:
        raise SearchError("--task says whose training, expected --weights best beside it")
    made = write(
        source,
        options.out,
        options.format,
        overwrite=options.force,
        sizes=sizes,
        options={"int8": True} if options.int8 else {},
        ends=ends,
        note=note,
    )
    if model is not None:
        write_file(weights, content, overwrite=options.force)
        yield _told(model)
        yield str(weights)
    yield str(made.path)
    yield from map(str, made.beside)
    if made.difference is not None:
        yield f"checked against the interpreter: {made.difference}"
    yield from made.notes


def _check_before_training(options: argparse.Namespace, weights: Path) -> None:
    """What would be an error after it."""
    for path in (weights, Path(options.out)):
        if path.exists() and not options.force:
            raise SearchError(f"{path} exists, expected a new path (or --force)")
    format_of(options.format)


def _trained(options: argparse.Namespace, say: Callable[[int, int], None]) -> Retrained:
    from search import trained  # torch, which a cell alone does not need

    run, colon, key = options.target.rpartition(":")
    if not colon or not run:
        raise SearchError(
            f"{options.target} is a cell without a training, expected RUN:KEY beside --weights"
        )
    return trained.retrain(trained.best(run, key, options.task), say)


def _told(model: Retrained) -> str:
    best = model.best
    metric = best.stage.task.metric
    state = "as in the run"
    if not model.same:
        value = model.record["metrics"][metric]
        state = f"here {value:.6g}: another kind of CPU, or other versions"
    return (
        f"{best.cell.name} {best.key[:8]}, trained on {best.stage.name} with {best.setting.id}: "
        f"{metric} {best.value:.6g} on validation data, {state}"
    )


def sample(options: argparse.Namespace) -> str | Path:
    """Text, or the path of the file that was written. Raises DataError, SearchError, CellError."""
    from evaluators import sample as sampling
    from evaluators import saved

    if Path(options.file).suffix != WEIGHTS:
        raise SearchError(f"{options.file} is no file of weights, expected one in {WEIGHTS}")
    found = saved.load(options.file)
    if options.task not in (None, found.about.family):
        raise SearchError(
            f"{options.file} was trained on {found.about.task}, expected a model of {options.task}"
        )
    drawn = (options.length, options.temperature, options.seed)
    if found.about.beats is None:
        text = sampling.text(found, *drawn, options.prompt)
        if options.out is None:
            return text
        return write_file(Path(options.out), text.encode())
    if options.out is None:
        raise SearchError("music goes into a file, expected --out FILE.mid")
    roll = sampling.frames(found, *drawn)
    return write_file(Path(options.out), sampling.midi(roll, found.about.beats))

"""A trained model as one file: weights, and all that is needed to use them, in safetensors.

The header says cell, sizes, task, vocabulary, settings, figures and data; nothing of a file is ever
executed, and nothing in it is believed before it is checked.

Letters: V vocabulary, F notes in a frame, H units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import cellgraph as cg
from cellgraph import CellError, CellGraph
from cellgraph.exporters.torch_model import Ends
from evaluators.errors import DataError
from evaluators.model import Model
from evaluators.settings import Settings
from evaluators.task import Task
from evaluators.tasks.music import MusicTask

VERSION = 1  #: of the header
HEADER = "cellsearch"  #: its name among the metadata
LARGEST = 100_000  #: V, F or H


@dataclass(frozen=True)
class About:
    """What the header says beside the sizes.

    `task`: name and family; `vocabulary`: the text of every token, None where there is none;
    `beats`: quarter notes in a frame, of music; `metrics`: of the best evaluation, on validation
    data; `data`: as `Task.describe`; `origin`: where cell and settings come from, JSON-able.
    """

    task: str
    family: str
    vocabulary: tuple[str, ...] | None
    beats: float | None
    metrics: Mapping[str, float]
    data: Mapping[str, Any]
    origin: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, task: Task, metrics: Mapping[str, float], origin: Mapping[str, Any] | None = None
    ) -> About:
        beats = task.beats if isinstance(task, MusicTask) else None
        vocabulary, data = task.vocabulary, task.describe()
        return cls(
            task.name, task.family, vocabulary, beats, dict(metrics), data, dict(origin or {})
        )


@dataclass(frozen=True)
class Saved:
    """A model with the parameters that it was trained to, and what is known of it."""

    cell: CellGraph
    settings: Settings
    ends: Ends
    model: Model
    about: About


def dump(model: Model, cell: CellGraph, task: Task, settings: Settings, about: About) -> bytes:
    """The file of a model. Raises `DataError` where safetensors is not installed."""
    header = {
        "version": VERSION,
        "cell": str(cell),
        "hidden_size": model.hidden_size,
        "widths": [task.input_kind, task.input_width, task.output_width],
        "settings": settings.to_dict(),
        "about": vars(about),
    }
    weights = {n: value.detach().cpu().contiguous() for n, value in model.state_dict().items()}
    text = json.dumps(header, sort_keys=True, ensure_ascii=False)
    made: bytes = _safetensors().torch.save(weights, metadata={HEADER: text})
    return made


def load(path: str | Path, backend: str = "auto") -> Saved:
    """The model of a file that `dump` made. Raises `DataError` for any other file, and where
    safetensors is not installed."""
    library = _safetensors()
    try:
        with library.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{path} is not there, expected a file of weights") from None
    except (OSError, library.SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}), expected safetensors") from None
    if HEADER not in metadata:
        raise DataError(
            f"{path} holds weights without a header of ours, expected a file that "
            "`cellsearch export RUN:KEY --weights best` has written"
        )
    try:
        return _read(json.loads(metadata[HEADER]), weights, backend)
    except (CellError, DataError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} has a header that is damaged: {_one_line(error)}") from None


def _read(header: Mapping[str, Any], weights: Mapping[str, torch.Tensor], backend: str) -> Saved:
    if header["version"] != VERSION:
        raise DataError(f"version {header['version']!r}, expected {VERSION}")
    cell, settings = cg.parse(header["cell"]), Settings.from_dict(header["settings"])
    kind, *sizes = header["widths"]
    if kind not in ("tokens", "frames"):
        raise DataError(f"inputs are {kind!r}, expected tokens or frames")
    x, y, hidden = (_size(n) for n in (*sizes, header["hidden_size"]))
    about = _about(header["about"])
    if about.vocabulary is not None and len(about.vocabulary) != y:
        raise DataError(f"{len(about.vocabulary)} symbols, expected {y}")
    ends = Ends(kind, x, y)
    with torch.random.fork_rng(devices=[]):  # a module draws values that are replaced at once
        model = Model(cell, ends, settings, hidden, backend)
    model.load_state_dict(weights)
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise DataError("weights are not finite")
    return Saved(cell, settings, ends, model.eval(), about)


def _about(given: Mapping[str, Any]) -> About:
    words = given["vocabulary"]
    texts = [given["task"], given["family"], *(words or ())]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("names and symbols are not all texts")
    beats = given["beats"]
    if beats is not None and not 0 < float(beats) < math.inf:
        raise DataError(f"beats are {beats!r}, expected a positive number")
    metrics = {str(name): float(value) for name, value in given["metrics"].items()}
    return About(
        given["task"],
        given["family"],
        None if words is None else tuple(words),
        None if beats is None else float(beats),
        metrics,
        dict(given["data"]),
        dict(given["origin"]),
    )


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        raise DataError(f"a size is {value!r}, expected a whole number up to {LARGEST}")
    return value


def _safetensors() -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise DataError(
            "weights are kept in safetensors, which is not installed: "
            "pip install 'cellsearch[weights]'"
        ) from None
    return safetensors


def _one_line(error: Exception) -> str:
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:300]

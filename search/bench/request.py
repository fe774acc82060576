"""What the measurements of `cellsearch bench` are asked for: words and numbers, cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Shape(NamedTuple):
    """T time steps, B batch rows, H units; the input is as wide as the cell."""

    steps: int
    rows: int
    hidden: int

    def __str__(self) -> str:
        return f"T {self.steps}, B {self.rows}, H {self.hidden}"

    @property
    def size(self) -> int:
        """What work grows with."""
        return self.steps * self.rows * self.hidden**2


#: Three of small and two of large models; 35 × 20 and 650 are those of the LSTM for Penn Treebank
#: of Zaremba et al. 2014, "medium".
SHAPES = (
    Shape(35, 20, 64),
    Shape(50, 32, 128),
    Shape(35, 20, 200),
    Shape(50, 32, 256),
    Shape(35, 20, 650),
)
#: Long sequences, for what needs no loop over time.
LONG_SHAPES = (Shape(512, 8, 128), Shape(4096, 8, 128))
PARTS = ("rates", "cells", "scan", "compile", "steps")
DTYPES = ("float32", "float64")
MUTANTS = 60


@dataclass(frozen=True)
class Request:
    """cells: names or files, None for the whole zoo; long_shapes: of the scans; mutants: how many
    random cells besides; interpreter: at every shape and for mutants too, where it takes long."""

    cells: tuple[str, ...] | None = None
    shapes: tuple[Shape, ...] = SHAPES
    long_shapes: tuple[Shape, ...] = LONG_SHAPES
    mutants: int = MUTANTS
    seed: int = 0
    dtype: str = "float32"
    input_grad: bool = False
    interpreter: bool = False
    parts: tuple[str, ...] = PARTS


# -- cellsearch bench search

SEARCH_PARTS = ("keys", "ledger", "loop", "resume")
CANDIDATES = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class SearchRequest:
    """candidates: of each of the searches without training; folder: where their journals are
    written, None for the place of temporary files."""

    candidates: tuple[int, ...] = CANDIDATES
    workers: int = 2
    seed: int = 0
    parts: tuple[str, ...] = SEARCH_PARTS
    folder: str | None = None


# -- cellsearch bench export

EXPORT_PARTS = ("checks", "speed")
EXPORT_FORMATS = ("torch", "pt2", "onnx", "c")
EXPORT_MUTANTS = 200


@dataclass(frozen=True)
class ExportRequest:
    """cells: names or files, None for the whole zoo; mutants: how many random cells besides."""

    cells: tuple[str, ...] | None = None
    mutants: int = EXPORT_MUTANTS
    formats: tuple[str, ...] = EXPORT_FORMATS
    seed: int = 0
    parts: tuple[str, ...] = EXPORT_PARTS

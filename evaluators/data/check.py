"""Whether arrays are what a data set must be, so that no task trips over them later.

Lives here: the one check that installed arrays and cached ones go through. Must not live here:
reading (text, rolls, chorales), what the data sets are (catalogue).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.data import rolls
from evaluators.data.catalogue import DataSet
from evaluators.errors import DataError


def check(entry: DataSet, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises DataError unless the arrays have the names, kinds and ranges that `load` promises."""
    extra = ["vocab"] if entry.kind == "text" else [f"{split}_lengths" for split in rolls.SPLITS]
    for key in (*rolls.SPLITS, *extra, "source"):
        array = arrays.get(key)
        if not isinstance(array, np.ndarray):
            raise DataError(f"data set {entry.name} lacks the array {key!r}")
        if key in ("vocab", "source") and (array.dtype.kind != "U" or array.ndim != 1):
            raise DataError(f"data set {entry.name}: {key} is not a list of strings")
    for split in rolls.SPLITS:
        if entry.kind == "text":
            _check_tokens(f"data set {entry.name}: {split}", arrays[split], len(arrays["vocab"]))
        else:
            _check_roll(
                f"data set {entry.name}: {split}", arrays[split], arrays[f"{split}_lengths"]
            )


def _check_tokens(where: str, array: NDArray[Any], symbols: int) -> None:
    if array.dtype.kind != "i" or array.ndim != 1 or len(array) < 2:
        raise DataError(f"{where} is not a list of token numbers")
    if array.min() < 0 or array.max() >= symbols:
        raise DataError(f"{where} goes beyond its vocabulary")


def _check_roll(where: str, array: NDArray[Any], lengths: NDArray[Any]) -> None:
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != rolls.NOTES:
        raise DataError(f"{where} is not (frames, {rolls.NOTES}) uint8")
    if lengths.dtype.kind != "i" or lengths.ndim != 1:
        raise DataError(f"{where}_lengths is not a list of whole numbers")
    # Two frames are needed to predict one. None is longer than the whole, so that the sum cannot
    # overflow and come out right.
    fits = len(lengths) > 0 and lengths.min() >= 2 and lengths.max() <= len(array)
    if not fits or lengths.sum(dtype=np.int64) != len(array):
        raise DataError(f"{where}_lengths do not add up to its frames")
    if array.max() > 1:
        raise DataError(f"{where} holds values other than 0 and 1")

"""Learning curves as the ledger stores them: one blob for all records of a result.

A curve is a list of rows of equal length: step, losses, metric. As JSON it takes 60 bytes a row,
in a blob 28, and every number comes back bit for bit, so that a curve agrees with its record's
metrics and a replay sees what the search saw. Losses in float32 would take half, and would not.
zlib would save a sixth more (the last bits of a loss are noise), 2 % of a ledger, and would take
longer, 0.13 ms a call, than all the rest of writing a result.

    blob    head, line end, body
    head    JSON, a list with an entry for every record of the result:
              null                       it has no curve
              [rows, kinds, given...]    kinds: one letter per column
                f  float64 in the body; NaN stands for None
                s  evenly spaced whole numbers, given as [first, difference]
                i  other whole numbers, given as a list
              {"json": curve}            anything else
    body    the columns f of all curves in that order, each float64 little endian
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

from search.errors import SearchError
from search.rows import finite_json, null_nonfinite

NAME = "curve"  #: the field of a record

Curve = list[list[Any]]

_NONE = object()  # a record without a curve; one may have None for a curve


def split(records: Sequence[Any]) -> tuple[list[Any], bytes | None]:
    """The records without their curves, and the blob of these; None when no record has one."""
    rest: list[Any] = []
    head: list[Any] = []
    body: list[bytes] = []
    for record in records:
        if isinstance(record, Mapping) and NAME in record:
            rest.append({name: value for name, value in record.items() if name != NAME})
            head.append(_packed(record[NAME], body))
        else:
            rest.append(record)
            head.append(None)
    if not any(entry is not None for entry in head):
        return rest, None
    return rest, b"".join([finite_json(head).encode(), b"\n", *body])


def _packed(curve: Any, body: list[bytes]) -> Any:
    """The entry of a curve in the head; appends to the body what belongs there."""
    kinds, given, floats = "", [], []
    for column in _columns(curve):
        types = set(map(type, column))
        if types == {int}:
            evenly = _evenly(column)
            kinds += "s" if evenly else "i"
            given.append(evenly or list(column))
        elif all(issubclass(t, (float, type(None))) for t in types):
            kinds += "f"
            known = type(None) not in types
            numbers = column if known else [math.nan if v is None else v for v in column]
            floats.append(struct.pack(f"<{len(column)}d", *numbers))
        else:
            kinds = ""
            break
    if not kinds:
        return {"json": null_nonfinite(curve)}
    body += floats
    return [len(curve), kinds, *given]


def _columns(curve: Any) -> list[Sequence[Any]]:
    """The columns of a curve; none where it is no table."""
    if not isinstance(curve, (list, tuple)):
        return []
    if not all(isinstance(row, (list, tuple)) for row in curve):
        return []
    if len(set(map(len, curve))) != 1:
        return []
    return list(zip(*curve, strict=True))


def _evenly(column: Sequence[int]) -> list[int] | None:
    """[first, difference] of evenly spaced numbers."""
    difference = column[1] - column[0] if len(column) > 1 else 0
    even = all(b - a == difference for a, b in pairwise(column))
    return [column[0], difference] if even else None


class PackedCurves:
    """The curves of one result, unpacked whenever one is asked for: a tenth of the memory."""

    __slots__ = ("_blob", "_file", "_unit")

    def __init__(self, blob: bytes | None, file: Path, unit: int) -> None:
        self._blob, self._file, self._unit = blob, file, unit

    def __getitem__(self, index: int) -> Curve | None:
        """The curve of a record, exactly as it was written; None where the record has none."""
        curves = self._unpack()
        found: Curve | None = curves[index] if index < len(curves) else None
        return None if found is _NONE else found

    def _unpack(self) -> list[Any]:
        if self._blob is None:
            return []
        try:
            return _unpacked(self._blob)
        except (
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
            RecursionError,
            struct.error,
        ):
            raise SearchError(
                f"{self._file}: is damaged (the curves of unit {self._unit} cannot be read)"
            ) from None

    def join(self, records: Sequence[Any]) -> list[Any]:
        """The records that `split` was given. Raises SearchError when they do not fit."""
        curves = self._unpack()
        if not curves:
            return list(records)
        if len(curves) != len(records) or not all(isinstance(r, dict) for r in records):
            raise SearchError(
                f"{self._file}: is damaged (the curves of unit {self._unit} are not those of "
                "its records)"
            )
        return [
            record if curve is _NONE else {**record, NAME: curve}
            for record, curve in zip(records, curves, strict=True)
        ]


def _unpacked(blob: bytes) -> list[Any]:
    head, mark, body = blob.partition(b"\n")
    if not mark:
        raise ValueError("no head")
    curves: list[Any] = []
    place = 0
    for entry in json.loads(head):
        if entry is None or isinstance(entry, dict):
            curves.append(_NONE if entry is None else entry["json"])
            continue
        rows, kinds, *given = entry
        columns: list[Iterable[Any]] = []
        for kind in kinds:
            if kind == "f":
                columns.append(_floats(struct.unpack_from(f"<{rows}d", body, place)))
                place += 8 * rows
            elif kind == "s":
                first, difference = given.pop(0)
                steps = range(first, first + rows * difference, difference or 1)
                columns.append(steps if difference else repeat(first, rows))
            elif kind == "i":
                columns.append(given.pop(0))
            else:
                raise ValueError("no such kind of column")
        curves.append([list(row) for row in zip(*columns, strict=True)])
    if place != len(body):
        raise ValueError("a body of another length")
    return curves


def _floats(numbers: Sequence[float]) -> Sequence[float | None]:
    if all(map(math.isfinite, numbers)):
        return numbers
    return [number if math.isfinite(number) else None for number in numbers]

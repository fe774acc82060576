"""The rows of the ledger as values, and the JSON in which their structured fields are stored."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CandidateRow:
    """A proposed cell. Ids are the caller's, so that a replay gives the same ones."""

    id: int
    key: str
    name: str
    cell: str
    origin: str
    parents: tuple[int, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitRow:
    """One piece of work: a stage of a candidate; cost, start and end in virtual time."""

    id: int
    candidate: int
    stage: str
    payload: Mapping[str, Any]
    cost: float
    start: float
    end: float


@dataclass(frozen=True)
class ResultRow:
    """What became of a unit; `seconds` of wall time on `worker` at the last of its `attempts`."""

    unit: int
    status: str
    records: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    worker: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class EventRow:
    """Something worth telling the reader (resumed, worker lost); never part of a replay."""

    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


#: Strict JSON with sorted keys; NaN, inf and objects of no JSON type are errors (ValueError,
#: TypeError). One encoder for all: json.dumps makes a new one per call, 2 µs of every row.
to_json = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode


def null_nonfinite(value: Any) -> Any:
    """A copy of JSON-able data with NaN and ±inf, which JSON cannot write, replaced by None.

    A diverged training reports such losses; that it diverged is in the record's status.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: null_nonfinite(item) for key, item in value.items()}
    return [null_nonfinite(item) for item in value] if isinstance(value, (list, tuple)) else value


def finite_json(value: Any) -> str:
    """`to_json` of `null_nonfinite`, which is needed only where something diverged."""
    try:
        return to_json(value)
    except (TypeError, ValueError):
        return to_json(null_nonfinite(value))

"""Checks of plain values, as they come out of configurations and journals.

Each raises `DataError`: one line that says what is wrong, where, and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args

from evaluators.errors import DataError, unknown

Checked = TypeVar("Checked")


def from_dict(cls: type[Checked], kind: str, values: Mapping[str, Any]) -> Checked:
    """A dataclass from a mapping of its fields; unknown and missing keys are errors."""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown(f"key of a {kind}", name, known)
    missing = [n for n, field in known.items() if field.default is MISSING and n not in values]
    if missing:
        raise DataError(f"{kind} without {', '.join(missing)}")
    return cls(**values)


def real(kind: str, name: str, value: Any) -> float:
    """A finite number, as a float: a YAML 1 and a YAML 1.0 are the same."""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{kind} {name} is {value!r:.40}; expected a finite number")
    return number


def whole(kind: str, name: str, value: Any) -> None:
    """A whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{kind} {name} is {value!r}; expected a whole number from 1")


def one_of(kind: str, name: str, value: Any, choices: Any) -> None:
    """One of the values of a `Literal`."""
    if value not in get_args(choices):
        expected = " or ".join(repr(choice) for choice in get_args(choices))
        raise DataError(f"{kind} {name} is {value!r}; expected {expected}")

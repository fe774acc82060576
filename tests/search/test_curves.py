"""Packed curves: every number comes back bit for bit, and what is no curve comes back as it was."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.curves import PackedCurves, split
from search.errors import SearchError
from search.rows import null_nonfinite

FILE = Path("runs/one/journal.sqlite")

finite = st.floats(allow_nan=False, allow_infinity=False)
step = st.integers(-(2**70), 2**70)
row = st.tuples(step, finite, finite | st.none(), finite)
tables = st.lists(row.map(list), max_size=6)
# Whatever else JSON knows may stand there: rows of different lengths, text, whole numbers as loss.
anything = st.recursive(
    st.none() | st.booleans() | step | finite | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
curves = tables | st.lists(st.lists(finite | step | st.booleans(), max_size=3)) | anything
record = st.fixed_dictionaries({"status": st.just("ok")}, optional={"curve": curves})


def joined(records: list[Any]) -> list[Any]:
    rest, blob = split(records)
    return PackedCurves(blob, FILE, 3).join(json.loads(json.dumps(rest)))


def exact(value: Any) -> str:
    """Text in which 1, 1.0 and True differ, and 0.0 from -0.0."""
    return json.dumps(value, sort_keys=True)


@given(st.lists(record, max_size=4))
def test_what_was_split_can_be_joined(records: list[Any]) -> None:
    assert exact(joined(records)) == exact(records)
    rest, blob = split(records)
    assert all("curve" not in one for one in rest)
    assert (blob is None) == all("curve" not in one for one in records)


def test_numbers_are_exact() -> None:
    numbers = [0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308, math.pi]
    curve = [[50 * (i + 1), x, -x, x / 3] for i, x in enumerate(numbers)]
    back = joined([{"curve": curve}])[0]["curve"]
    assert [struct.pack("<3d", *r[1:]) for r in back] == [struct.pack("<3d", *r[1:]) for r in curve]
    assert [type(value) for value in back[0]] == [int, float, float, float]


def test_what_is_not_finite_becomes_none() -> None:
    curve = [[50, 1.5, math.inf, None], [60, math.nan, -math.inf, None], [65, 0.5, 0.25, None]]
    assert joined([{"curve": curve}]) == null_nonfinite([{"curve": curve}])
    ragged = [{"curve": [[50, math.nan], [60]]}]
    assert joined(ragged) == null_nonfinite(ragged)


def test_a_curve_takes_less_than_half_of_its_json() -> None:
    curve = [[50 * i, 3.1 / i, 2.7 / (i + 0.1), 1 - 1 / (i + 0.7)] for i in range(1, 11)]
    records = [{"status": "ok", "curve": curve}] * 3
    _, blob = split(records)
    assert blob is not None
    assert len(blob) < 27 * 30
    assert len(blob) < 0.5 * len(json.dumps([curve] * 3, separators=(",", ":")))


def test_one_curve_of_several() -> None:
    first, last = [[5, 0.5, 0.25, 0.1]], [[5, 1.5, 1.25, 0.3], [9, 1.0, 1.0, 0.4]]
    _, blob = split([{"curve": first}, {"error": "lost"}, {"curve": last}])
    packed = PackedCurves(blob, FILE, 3)
    assert [packed[index] for index in range(4)] == [first, None, last, None]
    assert PackedCurves(None, FILE, 3)[0] is None


GOOD = split([{"curve": [[5, 0.5], [10, 0.25]]}, {}])[1] or b""


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\n",
        b"5\n",
        b"[5]\n",
        b"{}",
        b'["abc"]\n',
        b'[{"jason": []}]\n',
        b'[[2,"sq",[5,5]]]\n',
        GOOD[:-1],
        GOOD + b"1234567",
        GOOD.replace(b"[[2,", b"[[3,"),
        GOOD.replace(b"[5,5]", b"[5]"),
        GOOD.replace(b"[5,5]", b'"ab"'),
        GOOD.replace(b'"sf"', b'"si"'),
        b"[" * 100_000 + b"\n",
        "text",
        5,
    ],
)
def test_a_damaged_blob_is_one_clear_line(blob: Any) -> None:
    with pytest.raises(SearchError) as caught:
        PackedCurves(blob, FILE, 3).join([{}, {}])
    assert str(caught.value) == f"{FILE}: is damaged (the curves of unit 3 cannot be read)"


@pytest.mark.parametrize("records", [[{}], [{}, {}, {}], [{}, 5]])
def test_curves_of_other_records(records: list[Any]) -> None:
    with pytest.raises(SearchError, match="curves of unit 3 are not those of its records"):
        PackedCurves(GOOD, FILE, 3).join(records)

"""What a report says of units whose cells were not compiled; of all others, nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from reports import collect, page, tables
from reports.collect import Run
from tests.reports import journals

NONE = "no C compiler found; install gcc"
FORGED = "cc: not done\x1b[2J after <b>30 s</b>"


def _run(directory: Path, reasons: Mapping[int, tuple[str | None, ...]]) -> Run:
    """The usual run, with the reasons of fallbacks by unit and setting."""
    results = [
        replace(
            row,
            records=tuple(
                {**record, "fallback": reason} if reason else record
                for record, reason in zip(row.records, reasons[row.unit], strict=True)
            ),
        )
        if row.unit in reasons
        else row
        for row in journals.rows()[1]
    ]
    return collect.read(journals.write(directory, results=results))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return _run(tmp_path / "run", {0: (NONE, NONE), 1: (FORGED, NONE), 4: (NONE,), 7: (None, NONE)})


def _status(run: Run) -> str:
    out = io.StringIO()
    tables.status(run, Console(file=out, width=300, highlight=False))
    return out.getvalue()


def test_units_are_counted_and_so_are_their_reasons(run: Run) -> None:
    assert run.totals["fallbacks"] == 4
    assert run.fallbacks == {NONE: 4, FORGED: 1}
    data = tables.status_data(run)
    assert (data["fallbacks"], data["fallback_reasons"]) == (4, {NONE: 4, FORGED: 1})
    assert json.loads(json.dumps(data)) == data
    frame = run.records
    assert frame[frame["fallback"].notna()].groupby("unit").size().to_dict() == {
        0: 2,
        1: 2,
        4: 1,
        7: 1,
    }


def test_status_names_the_most_frequent_reason(run: Run) -> None:
    (line,) = [line for line in _status(run).splitlines() if "not compiled" in line]
    assert line.split("  ", 1)[1].strip() == f"4, left to torch: {NONE} (and 1 other reasons)"


def test_the_page_lists_them_harmlessly(run: Run, tmp_path: Path) -> None:
    text = page.write(run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>4</b><span>units not compiled</span>" in text
    assert f"<li>{NONE}: 4</li>" in text
    assert (
        "<li>cc: not done\N{REPLACEMENT CHARACTER}[2J after &lt;b&gt;30 s&lt;/b&gt;: 1</li>" in text
    )
    assert "\x1b" not in text + _status(run)


def test_of_many_reasons_the_page_lists_a_few(tmp_path: Path) -> None:
    """A compiler's errors name the line of the cell: each cell may have its own."""
    singles = {
        row.unit: tuple(f"{row.unit}.c:{i}: error" for i, _ in enumerate(row.records))
        for row in journals.rows()[1]
        if row.status == "ok"
    }
    run = _run(tmp_path / "run", singles)
    text = page.write(run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count(": error: 1</li>") == 12
    assert f"and {len(run.fallbacks) - 12} other reasons" in text


def test_a_run_that_was_compiled_is_not_told_of_compilers(tmp_path: Path) -> None:
    """As are those whose journals are older than compiled cells."""
    run = collect.read(journals.write(tmp_path / "usual"))
    assert run.totals["fallbacks"] == 0
    assert run.fallbacks == {}
    assert "not compiled" not in _status(run)
    assert "ot compiled" not in page.write(run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert not run.records["fallback"].notna().any()
    assert "fallback" in collect.read(journals.launched(tmp_path / "empty")).records.columns

"""Texts that must be refused, and how: one `CellError` that points at the fault and says what was
expected.

A table has two lines a case: the text, its lines joined by "; ", with § before the character that
the caret must point at; then how the message must begin. Two more spaces after "; " indent a line.
"""

from __future__ import annotations

import pytest

from cellgraph import CellError, parse
from tests.strategies import assert_round_trip


def table(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line]
    return list(zip(lines[::2], lines[1::2], strict=True))


def assert_refused(joined: str, message: str) -> None:
    marked, message = joined.replace("; ", "\n "), message.strip()
    assert marked.count("§") == 1
    before = marked[: marked.index("§")].split("\n")
    with pytest.raises(CellError) as caught:
        parse(marked.replace("§", ""))
    first, source, caret = str(caught.value).split("\n")
    assert first.startswith(f"line {len(before)}: {message}"), first
    assert "expected" in first
    assert (caught.value.line, caught.value.column) == (len(before), len(before[-1]))
    assert caret == " " * (4 + len(before[-1])) + "^"
    assert (
        source.rstrip()
        == "    "
        + marked.replace("§", "").split("\n")[len(before) - 1].replace("\xa0", " ").rstrip()
    )


def read_or_refused(text: str) -> None:
    """Whatever the text is: a cell that prints and reads back, or one error."""
    try:
        cell = parse(text)
    except CellError as error:
        refused = error
    else:
        assert_round_trip(cell)
        return
    assert "expected" in str(refused)
    assert refused.line is None or 1 <= refused.line <= len(text.splitlines())

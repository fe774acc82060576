"""The page of a run: whole, safe, self-contained, and the same every time."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import collect, figures, page
from reports.collect import Run
from search.errors import SearchError
from tests.reports import journals
from tests.reports.journals import KEYS

ROOT = Path(__file__).resolve().parents[2]
VOID = ("meta", "br", "link", "img", "hr", "input")


class Checker(HTMLParser):
    """Raises on tags that do not match; collects what a reader would see, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.seen = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.seen += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect.read(journals.write(tmp_path_factory.mktemp("reports") / "small"))


@pytest.fixture
def empty(tmp_path: Path) -> Run:
    return collect.read(journals.launched(tmp_path / "empty"))


def harmless(text: str) -> Checker:
    """The checked page: balanced, without scripts, and with nothing that a browser would fetch."""
    checked = Checker(text)
    assert not {"script", "img", "link", "iframe", "object", "u"} & {*checked.tags}
    for tag, name, value in checked.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "style", "action")
        if name == "href":
            assert value.startswith("#")
    assert re.search(r"https?://|@import|url\(|javascript:", text) is None
    ids = [value for _, name, value in checked.attributes if name == "id"]
    assert len(ids) == len({*ids})
    targets = [value[1:] for _, name, value in checked.attributes if name == "href"]
    assert {*targets} <= {*ids}
    return checked


def test_the_page_says_what_was_found(run: Run) -> None:
    seen = re.sub(r"\s+", " ", harmless(page.render(run)).seen)
    assert "<b>small</b> A search over recurrent cells, begun 2026-01-02T03:04:05" in seen
    assert "not finished when this page was made" in seen
    for words in (
        "5 / 8candidates decided", "26trainings", "2,380training steps", "2 min 06 s",
        "These are search scores: the best of the settings tried, on validation data",
        "6 finished, 4 passed (67 %)",
        "2 finished, 1 passed (50 %)",
        "1. good score 1.0667, 6 settings",
        "h' = z * h + (1 - z) * g",
        "z = sigmoid(W_z @ x + U_z @ h + b_z) → sigmoid(W_z @ x + b_z)",
        "7.5 nats/frame", "clip=5 dropout=0 layers=1 lr=0.001",
        "python 3.11.9, torch 2.6.0", "Linux x86_64", "sha256 " + "12" * 32, "generated (length=5)",
        '"seed_settings": 2', "0.9 × gru", "good (best 57.20)", "gru (best 52.00)",
    ):  # fmt: skip
        assert words in seen, words


def test_failures_are_counted_by_stage_and_status(run: Run) -> None:
    failures = page.context(run)["failures"]
    assert [(f["stage"], f["status"], f["trainings"], f["cells"]) for f in failures] == [
        ("memorisation", "crashed", 1, 1),
        ("ptb_char", "diverged", 2, 2),
        ("jsb", "diverged", 1, 1),
    ]
    assert "WorkerDied: <u>killed</u> by signal 9" in harmless(page.render(run)).seen


def test_foreign_text_is_escaped_wherever_it_stands(tmp_path: Path) -> None:
    evil = "</title></style></pre><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x"
    rows = [dataclasses.replace(c, name=evil, origin=c.origin + evil) for c in journals.CANDIDATES]
    for number in (0, 1):  # seeds are known by their origin
        rows[number] = dataclasses.replace(rows[number], origin="seed")
    rows[4] = dataclasses.replace(rows[4], cell=evil)  # unreadable notation is shown as it stands
    units, results = journals.rows()
    cut = [r.records[0] | {"status": "crashed" + evil, "error": evil} for r in results[:1]]
    results[0] = dataclasses.replace(results[0], records=(*cut, results[0].records[1]))
    name = "small</style><script>"
    meta = {key: text.replace("small", name) for key, text in journals.META.items()}
    made = journals.write(tmp_path / "r", meta, candidates=rows, units=units, results=results)
    seen = harmless(page.render(collect.read(made))).seen
    assert seen.count(evil) > 10


def test_a_run_that_has_just_begun_has_a_page(empty: Run) -> None:
    seen = harmless(page.render(empty)).seen
    for words in ("No cell has a result", "No candidate has left the funnel", "Nothing has been"):
        assert words in seen


def test_a_run_with_seeds_alone_has_a_page(tmp_path: Path) -> None:
    units, results = journals.rows()
    made = journals.write(
        tmp_path / "r", candidates=journals.CANDIDATES[:2], units=units[:4], results=results[:4]
    )
    seen = harmless(page.render(collect.read(made))).seen
    assert "gru (best 52.00)" in seen
    assert "None has a result on every task yet." in seen


def test_the_same_journal_gives_the_same_page_in_any_process(tmp_path: Path) -> None:
    directory = journals.write(tmp_path / "run")
    code = (
        "import sys, hashlib; from reports import collect, page;"
        "run = collect.read(sys.argv[1]);"
        "text = page.render(run) + collect.leaderboard_text(run);"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    run = collect.read(directory)
    text = page.render(run) + collect.leaderboard_text(run)
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_the_page_replaces_an_older_one_as_a_whole(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert page.write(run, path) == path
    assert path.read_text(encoding="utf-8") == page.render(run)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert page.write(run, str(path)) == path


def test_a_place_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "report.html", tmp_path):
        with pytest.raises(SearchError, match="cannot be written") as caught:
            page.write(run, path)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_large_run_stays_small(tmp_path: Path) -> None:
    """60 candidates on every stage, curves of 100 points: well below 1.5 MB."""
    candidates, units, results = list(journals.CANDIDATES[:2]), *journals.rows()
    units, results = units[:4], results[:4]
    for number in range(2, 62):
        row = dataclasses.replace(journals.CANDIDATES[4], id=number, name=f"cell_{number}")
        candidates.append(dataclasses.replace(row, key=hashlib.sha256(b"%d" % number).hexdigest()))
        for unit, result in ((6, 6), (8, 8), (10, 10)):
            whole = journals.rows()
            made = dataclasses.replace(whole[0][unit], id=len(units), candidate=number)
            end = made.end + 10.0 * number
            units.append(dataclasses.replace(made, end=end))
            curve = [[i, 1.0 / 3, 2.0 / 3, math.sin(i) / 3 + 0.5] for i in range(100)]
            records = tuple({**r, "curve": curve} for r in whole[1][result].records)
            results.append(dataclasses.replace(whole[1][result], unit=made.id, records=records))
    directory = journals.write(tmp_path / "r", candidates=candidates, units=units, results=results)
    run = collect.read(directory)
    assert len(run.leaderboard) == 62
    assert run.history.tried == 60
    text = page.render(run)
    harmless(text)
    assert "and 32 more" in text
    assert len(text.encode()) < 200_000


@given(st.lists(st.floats(-1e12, 1e12), max_size=6), st.integers(3, 10))
def test_ticks_span_the_values(values: list[float], count: int) -> None:
    marks = figures.ticks(values, count)
    assert 2 <= len(marks) <= count + 3
    assert marks == sorted({*marks})
    if values:
        slack = 1e-6 * (marks[1] - marks[0])
        assert marks[0] <= min(values) + slack
        assert marks[-1] >= max(values) - slack
    texts = figures.labels(marks)
    assert len({*texts}) == len(marks)


def test_charts_of_awkward_data() -> None:
    line = figures.Series("a & b", [(0.0, 1.0), None, (2.0, 1.0), (3.0, 1.0)], 9)
    figure = figures.chart("<t>", "x", "y", [line, figures.Series("none", [], 1)])
    assert figure.legend == [("a & b", "s1"), ("none", "s1")]
    assert figure.svg.count("<polyline") == 1
    assert figure.svg.count("<circle") == 1  # a point alone is not lost
    assert "&lt;t&gt;: y over x" in figure.svg
    Checker(str(figure.svg))
    assert "nan" not in figures.chart("t", "x", "y", []).svg
    zero = figures.bars("t", [("a", 0, 0)], ("finished", "passed"))
    assert "0 finished, 0 passed</text>" in zero.svg
    scaled = figures.bars("t", [("a", 8, 2), ("b", 2, 0)], ("finished", "passed"))
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"', scaled.svg)]
    assert widths == pytest.approx([285.0, 285 / 4, 285 / 4, 0.0], abs=0.1)


def test_the_curve_of_a_cell_is_drawn_where_its_numbers_are(run: Run) -> None:
    figure = page.context(run)["curves"][1]  # jsb: 8.0 for the gru, half of it at step 50
    assert figure.title == "jsb: nats/frame"
    assert [label for label, _ in figure.legend] == [
        "good (best 7.5)", "lstm (best 8.8)", "gru (best 8)",
    ]  # fmt: skip
    lines = re.findall(r'<polyline class="curve (s\d)" points="([^"]+)"', figure.svg)
    ys = {colour: [float(p.split(",")[1]) for p in points.split()] for colour, points in lines}
    assert ys["s0"][1] > ys["s2"][1] > ys["s1"][1]  # less is lower: SVG counts from the top
    steps = (ys["s1"][0] - ys["s2"][0]) / (ys["s1"][1] - ys["s2"][1])
    assert steps == pytest.approx(0.5, abs=0.02)
    assert KEYS["good"][:8] in page.render(run)

"""The card of an exported cell: what must stand in it, and that nothing in it is markup."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import cellgraph as cg
from cellgraph.exporters import Difference, write
from reports import card, confirmed, measured
from search.cli import main
from search.errors import SearchError
from tests.cellgraph.test_export import HARD, HOSTILE_DOC
from tests.reports import journals, test_reports_confirmed

ROOT = Path(__file__).parents[2]
EXPORT = card.Export(
    file="gru.py",
    about="a .py file",
    sizes={"input_size": 3, "hidden_size": 4},
    difference=Difference(2.5e-7, 1e-7, 50),
    command="cellsearch export gru --out 'my gru.py'",
    versions={"cellsearch": "1.2"},
)


def section(text: str, title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return str(found)


def test_the_card_of_a_named_cell() -> None:
    text = card.card(cg.load("gru"), EXPORT)
    assert str(cg.load("gru")) in section(text, "Equations")
    assert cg.load("gru").key() in text
    parameters = cg.count_parameters(cg.load("gru"), 3, 4)
    assert f"; {parameters} parameters." in text
    assert "Cho et al. 2014" in section(text, "Origin")
    assert "No trained weights" in section(text, "Weights and training data")
    assert "largest difference 2.5e-07" in section(text, "Check")
    assert "Not stated" in section(text, "Licence")
    assert "\n```sh\ncellsearch export gru --out 'my gru.py'\n```\n" in section(text, "Made with")
    assert text.startswith('---\nlicense: "not stated"\n---\n')
    assert "Search scores" not in text


def test_a_licence_that_is_stated() -> None:
    text = card.card(cg.load("gru"), replace(EXPORT, licence='CC-BY: "4.0"\n# x'))
    assert text.startswith('---\nlicense: "CC-BY: \\"4.0\\" # x"\n---\n')
    assert "CC-BY" in section(text, "Licence")


def test_a_cell_that_only_has_the_name_of_a_named_one() -> None:
    text = card.card(cg.parse("cell gru(x, h)\n h' = tanh(W @ x + h)"), EXPORT)
    assert "Cho" not in text
    assert "Neither a named cell" in section(text, "Origin")


def test_a_description_has_no_layer_and_no_difference() -> None:
    text = card.card(cg.load("gru"), replace(EXPORT, sizes={}, difference=None))
    assert "Layer:" not in text
    assert "computes nothing" in section(text, "Check")


def test_the_card_of_a_found_cell(tmp_path: Path) -> None:
    run = journals.write(tmp_path / "run")
    found = card.origin(f"{run}:{journals.KEYS['good'][:12]}")
    assert found is not None
    export = replace(EXPORT, licences={"ptb": "LDC"})
    text = card.card(cg.parse(journals.GOOD), export, found)
    where = section(text, "Origin")
    assert "seed 3, algorithm jozefowicz" in where
    assert "2026-01-02T03:04:05+00:00" in where
    assert re.search(rf"^1\. good {journals.KEYS['good'][:8]}, mutation$", where, re.M)
    assert re.search(rf"^2\. gru {journals.KEYS['gru'][:8]}, seed$", where, re.M)
    assert "z = sigmoid(W\\_z @ x + U\\_z @ h + b\\_z) → sigmoid(W\\_z @ x + b\\_z)" in where
    data = section(text, "Weights and training data")
    assert "SHA-256 " + "12" * 32 in data
    assert "SHA-256 " + "ab" * 32 in data
    assert "licence of the data: LDC" in data
    assert "memorisation (length=5): generated" in data
    scores = section(text, "Search scores")
    assert "not results on test data" in scores
    assert "| jsb | 7.5 nats/frame |" in scores
    assert "no confirmation of this run" in section(text, "Results on test data")


def test_results_come_with_their_intervals(tmp_path: Path) -> None:
    run = journals.write(tmp_path / "run")
    test_reports_confirmed.write(run)
    found = card.origin(f"{run}:{journals.KEYS['good']}")
    results = section(card.card(cg.parse(journals.GOOD), EXPORT, found), "Results on test data")
    document = measured.read(run)
    (mine,) = [c for c in document["tasks"][0]["cells"] if c["key"] == journals.KEYS["good"]]
    mean, half = (confirmed.number("accuracy", mine[name]) for name in ("mean", "half"))
    assert f"{mean} ± {half}" in results
    assert "gru: better (p " in results
    assert "At the level 0.05" in results
    other = card.origin(f"{run}:{journals.KEYS['flat']}")
    text = card.card(cg.parse(journals.FLAT), EXPORT, other)
    assert "was not among those confirmed" in section(text, "Results on test data")


def test_an_unfinished_confirmation_shows_nothing(tmp_path: Path) -> None:
    run = journals.write(tmp_path / "run")
    test_reports_confirmed.write(run, leave_out=5)
    found = card.origin(f"{run}:{journals.KEYS['good']}")
    results = section(card.card(cg.parse(journals.GOOD), EXPORT, found), "Results on test data")
    assert "not finished" in results
    assert "±" not in results


def test_what_is_no_cell_of_a_run(tmp_path: Path) -> None:
    run = journals.write(tmp_path / "run")
    assert card.origin("gru") is None
    assert card.origin(f"{tmp_path}:abc") is None
    assert card.origin("a\0:abc") is None
    with pytest.raises(SearchError, match="holds no cell whose key begins with 0000"):
        card.origin(f"{run}:0000")


@pytest.mark.parametrize("name", ["words of Python", "a state is x", "no parameters"])
def test_cards_of_hard_cells(name: str) -> None:
    cell = replace(cg.parse(HARD[name]), doc=f"{HOSTILE_DOC}\n````\n<script>alert(1)</script>")
    text = card.card(cell, replace(EXPORT, sizes={}))
    tokens = MarkdownIt().parse(text.split("---\n", 2)[2])
    blocks = [token for token in tokens if token.type == "fence"]
    assert len(blocks) == 2
    assert "script" in blocks[0].content
    headings = [t.content for t, before in zip(tokens[1:], tokens, strict=False)
                if before.type == "heading_open"]  # fmt: skip
    assert headings[1:] == [
        "Equations", "Origin", "Weights and training data", "Check", "Licence", "Made with",
    ]  # fmt: skip
    assert not any(token.type in ("html_block", "html_inline") for token in tokens)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = journals.write(tmp_path / "run")
    found = card.origin(f"{run}:{journals.KEYS['hostile']}")
    export = replace(
        EXPORT,
        file="`<b>`.py",
        command="cellsearch '\n```\n<script>'",
        licence="<i>[a](javascript:x)",
    )
    text = card.card(cg.parse(journals.HOSTILE), export, found)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text.split("---\n", 2)[2])
    for mark in ("<img", "<script", "<i>", "<b>", "href", "\x1b"):
        assert mark not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


# -- beside the file -------------------------------------------------------------------------------


def test_the_command_writes_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gru.json"
    words = ["export", "gru", "--format", "json", "--out", str(out)]
    assert main([*words, "--licence", "MIT"]) == 0
    assert capsys.readouterr().out == f"{out}\n{out}.md\n"
    text = (tmp_path / "gru.json.md").read_text()
    assert f"cellsearch export gru --format json --out {out} --licence MIT\n" in text
    assert main(words) == 2
    out.unlink()
    assert main(words) == 2  # the card is there still
    assert "gru.json.md exists" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--no-card"]) == 0
    assert main([*words, "--force"]) == 0
    assert "Not stated" in (tmp_path / "gru.json.md").read_text()


def test_a_cell_of_a_run_gets_the_card_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = journals.write(tmp_path / "run")
    out = tmp_path / "good.svg"
    target = f"{run}:{journals.KEYS['good'][:9]}"
    assert main(["export", target, "--format", "svg", "--out", str(out)]) == 0
    text = Path(f"{out}.md").read_text()
    assert "algorithm jozefowicz" in text
    assert "SHA-256" in text


def test_a_note_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(design: object, difference: object) -> str:
        raise SearchError("no run")

    with pytest.raises(SearchError):
        write("gru", tmp_path / "a.cell", "cell", note=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_card_made_twice_is_the_same() -> None:
    code = (
        "import sys, cellgraph as cg; from reports import card\n"
        "export = card.Export('a.py', 'a file', {'input_size': 3, 'hidden_size': 4}, None, 'c')\n"
        "sys.stdout.write(card.card(cg.load('lstm'), export))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    export = card.Export("a.py", "a file", {"input_size": 3, "hidden_size": 4}, None, "c")
    assert done.stdout.decode() == card.card(cg.load("lstm"), export)

"""The tables on the terminal and their twins as data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import cellgraph as cg
from reports import collect, tables, wording
from reports.collect import Run
from reports.equations import changes, sizes
from search.errors import SearchError
from search.journal import CandidateRow
from tests.reports import journals
from tests.reports.journals import KEYS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect.read(journals.write(tmp_path_factory.mktemp("reports") / "small"))


@pytest.fixture
def empty(tmp_path: Path) -> Run:
    return collect.read(journals.launched(tmp_path / "empty"))


def printed(show: Callable[[Console], None], width: int = 100, terminal: bool = False) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=terminal, highlight=False))
    return out.getvalue()


def test_the_leaderboard_has_the_seeds_in_their_places(run: Run) -> None:
    text = printed(lambda out: tables.leaderboard(run, console=out))
    rows = [line.split() for line in text.splitlines() if line[:2].strip().isdigit()]
    bits = (1 - 0.572) / 0.6931471805599453
    assert rows[0][:4] == ["1", "good", KEYS["good"][:8], "1.0667"]
    assert rows[0][4:] == [f"{bits:.4g}", "7.5", "6", "mutation"]
    assert rows[1][:4] == ["2", "gru", KEYS["gru"][:8], "1.0000"]
    assert rows[1][4:] == ["0.6925", "8", "4", "baseline"]
    assert rows[2][1:4] == ["lstm", KEYS["lstm"][:8], "0.9091"]
    assert rows[2][-1] == "seed"
    assert "bits/char" in text
    assert "nats/frame" in text
    assert "search scores: the best of the settings tried, on validation data" in text
    assert "best of gru" in text


def test_the_leaderboard_says_what_it_leaves_out(run: Run) -> None:
    text = printed(lambda out: tables.leaderboard(run, 1, out))
    assert "and 3 more" in text
    assert "lstm" not in text
    assert [cell["name"] for cell in tables.leaderboard_data(run, 1)["cells"]] == ["good"]


def test_leaderboard_data(run: Run) -> None:
    data = tables.leaderboard_data(run)
    assert data["ranked"] == len(data["cells"]) == 4
    assert data["baseline"] == "gru"
    assert "not results on test data" in data["note"]
    best, gru = data["cells"][:2]
    assert (best["rank"], best["key"], best["score"]) == (1, KEYS["good"], 8 / 7.5)
    assert (best["seed"], best["baseline"], best["pooled"]) == (False, False, True)
    assert (gru["seed"], gru["baseline"]) == (True, True)
    assert best["results"]["jsb"] == {
        "metric": "nll",
        "value": 7.5,
        "ratio": 8 / 7.5,
        "customary": {"metric": "nll", "value": 7.5},
        "settings": 2,
    }
    assert best["results"]["ptb_char"]["customary"]["metric"] == "bits_per_character"


def test_foreign_text_drives_neither_the_terminal_nor_the_markup(run: Run) -> None:
    whole = "<img src=x onerror=alert(1)>\N{REPLACEMENT CHARACTER}[31m[bold]"
    for show, shown in (
        (lambda out: tables.leaderboard(run, console=out), whole[: tables.LONGEST_NAME - 1]),
        (lambda out: tables.cell_page(run, KEYS["hostile"], out), whole),
    ):
        text = printed(show, width=200)
        assert "\x1b" not in text
        assert shown in text
    coloured = printed(lambda out: tables.leaderboard(run, console=out), 200, terminal=True)
    assert "\x1b[1m" in coloured
    assert "\x1b[31m" not in coloured


@pytest.mark.parametrize("width", [40, 60, 100])
def test_tables_keep_to_the_width(run: Run, width: int) -> None:
    for show in (
        lambda out: tables.leaderboard(run, console=out),
        lambda out: tables.status(run, out),
    ):
        assert max(map(len, printed(show, width).splitlines())) <= width


def test_without_a_terminal_the_text_is_plain(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    tables.leaderboard(run)
    tables.status(run)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= tables.PLAIN_WIDTH


def test_the_page_of_a_cell(run: Run) -> None:
    text = printed(lambda out: tables.cell_page(run, KEYS["good"][:10], out))
    lines = text.splitlines()
    assert lines[0] == "good of <b>small</b>: evaluated"
    assert f"key {KEYS['good']}" in lines
    assert "search score 1.0667, rank 1 of 4" in lines
    assert "cell good(x, h)" in lines
    assert "  h' = z * h + (1 - z) * g" in lines
    assert "at X = 64, H = 64: 20,672 parameters, 41,792 flops a step and row" in lines
    assert "settings tried: 4 (1 diverged, 3 ok)" in lines
    best = f"{(1 - 0.572) / 0.6931471805599453:.4g} bits/char"
    ratio = "ratio to the baseline 1.1000"
    assert f"best of them: accuracy 57.20 %; {best}; {ratio}; at step 100" in lines
    assert "28.60 ▁█ 57.20  accuracy, %, steps 50 to 100" in lines
    assert "with clip=5 dropout=0 layers=1 lr=0.001 optimizer=adam params=2000 scale=1" in lines
    assert "H = 17, 1,987 parameters, 4,000 flops a step and row" in lines
    assert "failed: training loss <inf> at step 60" in lines
    changed = "z = sigmoid(W_z @ x + U_z @ h + b_z) → sigmoid(W_z @ x + b_z)"
    assert f"good {KEYS['good'][:8]}, mutation: {changed}" in lines
    assert f"gru {KEYS['gru'][:8]}, seed" in lines


def test_the_page_of_a_cell_that_never_trained(run: Run) -> None:
    text = printed(lambda out: tables.cell_page(run, KEYS["late"], out))
    assert "late of <b>small</b>: running" in text
    assert text.count("not tried") == 3
    crashed = printed(lambda out: tables.cell_page(run, KEYS["fatal"], out))
    assert "settings tried: 1 (1 crashed)" in crashed
    assert "failed: WorkerDied: <u>killed</u> by signal 9" in crashed
    assert "best of them" not in crashed


def test_cell_data(run: Run) -> None:
    data = tables.cell_data(run, KEYS["hostile"])
    assert (data["rank"], data["score"], data["outcome"]) == (4, 0.4, "rejected at jsb")
    assert data["notation"] == journals.HOSTILE
    assert ["h'", "z * h + (1 - z) * g"] in data["equations"]
    assert ["init b_z", "1"] in data["equations"]
    assert data["lineage"][0]["parents"] == [KEYS["good"], KEYS["lstm"]]
    assert data["lineage"][0]["changes"] == [
        "g = tanh(W_g @ x + U_g @ (r * h) + b_g) → relu(W_g @ x + U_g @ h + b_g)",
        "+ init b_z = 1",
        "− r = sigmoid(W_r @ x + U_r @ h + b_r)",
    ]
    assert [ancestor["name"] for ancestor in data["lineage"][1:]] == ["good", "gru"]
    jsb = data["stages"][2]
    assert (jsb["ratio"], jsb["best"]["value"], jsb["statuses"]) == (0.4, 20.0, {"ok": 2})
    assert jsb["best"]["curve"] == [[50, 2.0, 1.5, 10.0], [100, 1.2, 1.1, 20.0]]
    assert jsb["best"]["setting"]["lr"] == 0.001
    with pytest.raises(SearchError, match="holds no cell"):
        tables.cell_data(run, "0" * 20)


@pytest.mark.parametrize("which", ["run", "empty"])
def test_all_data_are_strict_json(which: str, request: pytest.FixtureRequest) -> None:
    made: Run = request.getfixturevalue(which)
    documents = [tables.leaderboard_data(made), tables.status_data(made)]
    documents += [tables.cell_data(made, key) for key in made.first]
    for document in documents:
        assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_status_of_an_unfinished_run(run: Run) -> None:
    text = printed(lambda out: tables.status(run, out), width=160)
    assert "unfinished: running, or stopped (go on with: cellsearch resume" in text
    assert "5 of 8 candidates decided, 2 under way" in text
    assert "16 of 18 handed out are back" in text
    assert "26: 1 crashed, 3 diverged, 22 ok" in text
    assert "2,380 steps, 2 min 06 s of evaluation" in text
    assert "units tried again" in text
    assert "workers lost" not in text
    rows = [line.split() for line in text.splitlines()]
    assert ["memorisation", "7", "6", "4"] in rows
    assert ["jsb", "2", "2", "1"] in rows
    data = tables.status_data(run)
    assert data["state"] == "unfinished"
    assert data["last_event"] == {"kind": "launched", "at": "2027-01-15T08:00:00+00:00"}
    assert data["seed_units"] == {"planned": 4, "done": 4}
    assert [cell["name"] for cell in data["best"]] == ["good", "gru", "lstm"]


def test_status_of_a_run_that_has_just_begun(empty: Run) -> None:
    text = printed(lambda out: tables.status(empty, out), width=160)
    assert "training the seeds: 0 of 4 units" in text
    assert "Best so far" not in text
    board = printed(lambda out: tables.leaderboard(empty, console=out))
    assert "none yet (training the seeds: 0 of 4 units)" in board


def test_status_of_runs_that_ended(tmp_path: Path) -> None:
    done = collect.read(journals.write(tmp_path / "a", events=("launched", "finished")))
    assert "<b>small</b>: finished\n" in printed(lambda out: tables.status(done, out))
    broken = collect.read(journals.write(tmp_path / "b", events=("launched", "interrupted")))
    text = printed(lambda out: tables.status(broken, out), width=300)
    assert "interrupted (go on with: cellsearch resume" in text


@pytest.mark.parametrize("name", cg.zoo.names())
def test_every_named_cell_has_a_page(name: str) -> None:
    cell, info = cg.load(name), cg.zoo.info(name)
    text = printed(lambda out: tables.named_cell_page(cell, info, out), width=500)
    assert text.startswith(f"{name}: {info.title}")
    assert info.reference in text
    assert info.notes in text
    assert f"{cg.count_parameters(cell, 64, 64):,} parameters" in text
    assert ("constants: beta = 1\n" in text) == (name == "janet")
    data = tables.named_cell_data(cell, info)
    assert data["constants"] == cg.constants(name)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert cg.parse(data["notation"]) == cell


def test_the_page_of_a_file() -> None:
    cell = cg.parse("# My cell,\n# improved\ncell mine(x, h: P)\n    h' = tanh(W @ x + U @ h)\n")
    data = tables.named_cell_data(cell, None)
    assert data["title"] == "My cell, improved"
    assert data["sizes"] == {
        "input_size": 64,
        "hidden_size": 64,
        "P": 32,
        "parameters": 32 * 64 + 32 * 32,
        "flops_per_step": 2 * (32 * 64 + 32 * 32) + 2 * 32,
    }
    text = printed(lambda out: tables.named_cell_page(cell, None, out))
    assert text.splitlines()[0] == "mine: My cell, improved"
    assert "at X = 64, H = 64, P = 32: 3,072 parameters" in text


def test_changes_are_listed_by_the_name_on_the_left() -> None:
    gru, lstm = cg.load("gru"), cg.load("lstm")
    assert changes(gru, gru) == []
    found = changes(gru, lstm)
    assert "h' = z * h + (1 - z) * g → o * tanh(c')" in found
    assert "− z = sigmoid(W_z @ x + U_z @ h + b_z)" in found
    assert found[-1].startswith("−")
    assert "+ c' = f * c + i * g" in found
    free = cg.parse("cell a(x, h)\n h' = tanh(W @ x + U @ h)")
    assert changes(free, cg.parse(f"{free} skew U")) == ["+ skew U = U - U^T"]
    assert sizes(gru)["parameters"] == 3 * (64 * 64 * 2 + 64)


def test_notation_that_no_longer_parses_is_said(tmp_path: Path) -> None:
    rows = list(journals.CANDIDATES)
    old = "cell good(x, h)\n h' = old(x)"
    rows[4] = CandidateRow(4, KEYS["good"], "good", old, "mutation", (1,))
    made = collect.read(journals.write(tmp_path / "r", candidates=rows))
    (change,) = tables.cell_data(made, KEYS["hostile"])["lineage"][0]["changes"]
    assert change.startswith("(unreadable notation: line 2:")
    with pytest.raises(cg.CellError):
        tables.cell_data(made, KEYS["good"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (61.0, "1 min 01 s"),
        (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (400_000, "111 h 06 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_sparklines() -> None:
    assert wording.sparkline([]) == ""
    assert wording.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert wording.sparkline([3.0, 3.0]) == "▁▁"
    assert wording.sparkline([None, float("nan"), 2.0, 1.0]) == "··█▁"
    assert wording.sparkline([None]) == "·"
    long = wording.sparkline([float(i) for i in range(1000)])
    assert (len(long), long[0], long[-1]) == (32, "▁", "█")


def test_quantities() -> None:
    assert wording.quantity("accuracy", 0.98765) == "98.77"
    assert wording.quantity("perplexity", 123.456) == "123.5"
    assert wording.quantity("nll", None) == wording.quantity("nll", float("nan")) == "–"
    assert wording.labelled("accuracy", 0.5) == "accuracy 50.00 %"
    assert wording.labelled("nll", 8.41) == "8.41 nats/frame"
    assert wording.labelled("perplexity", 120.0) == "perplexity 120"
    assert wording.clean("a\tb\nc\x1b\u202e") == "a b c\N{REPLACEMENT CHARACTER}" + "\ufffd"
